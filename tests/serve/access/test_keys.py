"""Who may do what, and how often."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

import serve.access.buckets
from serve.access.key_file import add_key, remove_key
from serve.access.keys import Keys
from serve.protocols.http import Refused, reply_of_error
from serve.settings import Settings
from zoo.base.errors import UsageError


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.toml"


def _keys(path, *, workers=1, clock=None) -> Keys:
    settings = Settings(keys_file=path, workers=workers)
    return Keys(settings, clock=clock) if clock else Keys(settings)


def _bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


def _status(keys: Keys, headers) -> int:
    with pytest.raises(Refused) as caught:
        keys.authorize(headers)
    return caught.value.status


def test_without_a_file_anyone_may_predict():
    keys = Keys(Settings())
    assert keys.authorize({}) is None
    assert keys.authorize(_bearer("anything")) is None
    keys.take(None)
    assert not keys.reload(force=True)
    assert not keys.required


def test_with_a_file_predicting_needs_one_of_its_keys(path):
    one, two = add_key(path, "app"), add_key(path, "other")
    keys = _keys(path)
    assert [keys.authorize(_bearer(key)) for key in (one, two)] == ["app", "other"]
    assert keys.required
    for headers in ({}, _bearer(one[:-1]), _bearer("wrong")):
        assert _status(keys, headers) == 401


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        (b"authorization", b"Bearer %s", True),
        (b"authorization", b"bearer   %s ", True),
        (b"authorization", b"BEARER %s", True),
        (b"authorization", b"Basic %s", False),
        (b"authorization", b"Bearer", False),
        (b"authorization", b"Bearer ", False),
        (b"authorization", b"%s", False),
        (b"authorization", b"Bearer\t%s", False),
        (b"x-api-key", b"%s", True),
        (b"x-api-key", b" %s ", True),
        (b"x-api-key", b"", False),
        (b"x-api-key", b"Bearer %s", False),
        (b"cookie", b"key=%s", False),
    ],
)
def test_where_a_key_is_looked_for(path, name, value, known):
    key = add_key(path, "app").encode()
    headers = {name: value.replace(b"%s", key)}
    keys = _keys(path)
    if known:
        assert keys.authorize(headers) == "app"
    else:
        assert _status(keys, headers) == 401


def test_a_proxy_may_use_authorization_for_itself(path):
    key = add_key(path, "app").encode()
    assert _keys(path).authorize({b"authorization": b"Basic YTpi", b"x-api-key": key}) == "app"


def test_the_hash_of_a_key_is_no_key(path):
    add_key(path, "app")
    digest = path.read_text().partition('sha256 = "')[2][:64]
    keys = _keys(path)
    assert _status(keys, _bearer(digest)) == 401
    assert _status(keys, {b"x-api-key": bytes.fromhex(digest)}) == 401


@given(st.binary(max_size=80))
def test_no_bytes_get_in_or_break_it(tmp_path_factory, token):
    path = tmp_path_factory.getbasetemp() / "fixed-keys.toml"
    if not path.exists():
        add_key(path, "app")
    keys = _keys(path)
    for headers in ({b"authorization": b"Bearer " + token}, {b"authorization": token}, {b"x-api-key": token}):
        assert _status(keys, headers) == 401


def test_every_digest_is_compared_whichever_matches(path, monkeypatch):
    drawn = [add_key(path, f"k{index}") for index in range(4)]
    keys, seen = _keys(path), []
    monkeypatch.setattr("serve.access.keys.hmac.compare_digest", lambda a, b: seen.append(1) or a == b)
    for index, key in enumerate(drawn):
        assert keys.authorize(_bearer(key)) == f"k{index}"
    assert len(seen) == 16


def test_a_refusal_says_how_to_send_a_key_and_which_scheme(path):
    add_key(path, "app")
    with pytest.raises(Refused, match=r"Authorization: Bearer KEY") as caught:
        _keys(path).authorize({})
    assert (b"www-authenticate", b"Bearer") in reply_of_error(caught.value).headers


def test_a_rate_is_a_burst_and_then_so_many_per_second(path):
    add_key(path, "app", rate=2, burst=3)
    clock = _Clock()
    keys = _keys(path, clock=clock)
    for _ in range(3):
        keys.take("app")
    with pytest.raises(Refused, match=r"'app' has used up its rate of 2 requests per second") as caught:
        keys.take("app")
    assert (caught.value.status, caught.value.retry_after) == (429, pytest.approx(0.5))
    clock.now += 0.5
    keys.take("app")
    clock.now += 3600
    for _ in range(3):
        keys.take("app")
    with pytest.raises(Refused):
        keys.take("app")


def test_retry_after_is_never_too_early(path):
    add_key(path, "app", rate=1 / 1.4)
    clock = _Clock()
    keys = _keys(path, clock=clock)
    keys.take("app")
    with pytest.raises(Refused) as caught:
        keys.take("app")
    (seconds,) = [value for name, value in reply_of_error(caught.value).headers if name == b"retry-after"]
    clock.now += int(seconds)
    keys.take("app")


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=60), st.floats(0.1, 50.0), st.integers(1, 20))
def test_no_stretch_of_time_lets_more_through_than_burst_plus_rate(tmp_path_factory, gaps, rate, burst):
    path = tmp_path_factory.mktemp("rates") / "keys.toml"
    add_key(path, "app", rate=rate, burst=burst)
    clock = _Clock()
    keys = _keys(path, clock=clock)
    start, passed = clock.now, 0
    for gap in gaps:
        clock.now += gap
        try:
            keys.take("app")
            passed += 1
        except Refused as error:
            assert 0 < error.retry_after <= 1 / rate + 1e-9
    assert 1 <= passed <= burst + (clock.now - start) * rate + 1e-6


def test_keys_have_buckets_of_their_own_and_those_without_a_rate_none(path):
    for name, rate in (("a", 1.0), ("b", 1.0), ("free", None)):
        add_key(path, name, rate=rate)
    keys = _keys(path, clock=_Clock())
    keys.take("a")
    keys.take("b")
    for _ in range(100):
        keys.take("free")
        keys.take("removed meanwhile")
    with pytest.raises(Refused):
        keys.take("a")


@pytest.mark.parametrize("workers", [1, 2, 16])
@pytest.mark.parametrize("order", ["in turn", "one only"])
def test_workers_share_a_rate(path, workers, order):
    """Together they let through the burst, then the rate, however connections spread over them."""
    add_key(path, "app", rate=4, burst=5)
    clock = _Clock()
    servers = [_keys(path, workers=workers, clock=clock) for _ in range(workers)]
    for turn in range(5):
        servers[turn % workers if order == "in turn" else 0].take("app")
    for keys in servers:
        with pytest.raises(Refused, match=r"rate of 4 requests") as caught:
            keys.take("app")
        assert caught.value.retry_after == pytest.approx(0.25)
    clock.now += 0.5
    servers[-1].take("app")
    servers[0].take("app")
    with pytest.raises(Refused):
        servers[-1].take("app")


@pytest.mark.parametrize(("workers", "at_once", "wait"), [(1, 8, 0.25), (2, 4, 0.5), (16, 1, 4.0)])
def test_workers_that_can_share_nothing_have_their_parts(path, monkeypatch, caplog, workers, at_once, wait):
    monkeypatch.setattr(serve.access.buckets, "fcntl", None)
    add_key(path, "app", rate=4, burst=8)
    keys = _keys(path, workers=workers, clock=_Clock())
    assert ("counts its part of the rate of app" in caplog.text) is (workers > 1)
    for _ in range(at_once):
        keys.take("app")
    with pytest.raises(Refused, match=r"rate of 4 requests") as caught:
        keys.take("app")
    assert caught.value.retry_after == pytest.approx(wait)


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(path):
    old = add_key(path, "app")
    keys = _keys(path)
    assert not keys.reload()
    new = add_key(path, "new")
    assert _status(keys, _bearer(new)) == 401
    assert keys.reload()
    assert keys.authorize(_bearer(new)) == "new"
    remove_key(path, "app")
    assert keys.reload()
    assert _status(keys, _bearer(old)) == 401
    assert not keys.reload()
    assert keys.reload(force=True)


def test_a_broken_file_keeps_the_keys_and_warns_once(path, caplog):
    key = add_key(path, "app")
    whole = path.read_text()
    keys = _keys(path)
    for content in (whole[:20], "", "key = 3"):
        path.write_text(content)
        caplog.clear()
        assert not keys.reload()
        assert not keys.reload()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(path) in caplog.text
        assert keys.authorize(_bearer(key)) == "app"
    path.unlink()
    assert not keys.reload()
    assert keys.authorize(_bearer(key)) == "app"
    path.write_text(whole)
    path.chmod(0o600)
    assert keys.reload()


def test_buckets_outlive_a_reload_unless_the_rate_changed(path):
    add_key(path, "app", rate=1, burst=2)
    clock = _Clock()
    keys = _keys(path, clock=clock)
    keys.take("app")
    keys.take("app")
    keys.reload(force=True)
    with pytest.raises(Refused):
        keys.take("app")
    path.write_text(path.read_text().replace("rate = 1.0", "rate = 5.0"))
    keys.reload()
    keys.take("app")


@pytest.mark.parametrize("content", [None, "", "# nothing yet\n", "[[key]]\n"])
def test_a_server_does_not_start_open_because_its_file_is_bad(path, content):
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"keys.toml"):
        _keys(path)


@pytest.mark.skipif(os.name != "posix", reason="the bits of a mode mean nothing elsewhere")
def test_a_file_that_others_can_read_is_worth_a_warning(path, caplog):
    key = add_key(path, "app")
    _keys(path)
    assert not caplog.records
    path.chmod(0o640)
    assert _keys(path).authorize(_bearer(key)) == "app"
    assert "chmod 600" in caplog.text
