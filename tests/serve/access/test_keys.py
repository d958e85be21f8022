"""Who may do what, and how often."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def _status(keys: Keys, headers, *, admin: bool) -> int:
    with pytest.raises(Refused) as caught:
        keys.authorize(headers, admin=admin)
    return caught.value.status


def test_without_a_file_anyone_may_predict_and_nobody_administrate():
    keys = Keys(Settings())
    assert keys.authorize({}, admin=False) is None
    assert keys.authorize(_bearer("anything"), admin=False) is None
    keys.take(None)
    assert not keys.reload(force=True)
    with pytest.raises(Refused, match=r"^no such route") as caught:
        keys.authorize(_bearer("anything"), admin=True)
    assert caught.value.status == 404
    assert (keys.required, keys.admin) == (False, False)


def test_roles(path):
    user, root = add_key(path, "app", role="predict"), add_key(path, "root", role="admin")
    keys = _keys(path)
    assert keys.authorize(_bearer(user), admin=False) == "app"
    assert [keys.authorize(_bearer(root), admin=admin) for admin in (False, True)] == ["root", "root"]
    assert _status(keys, _bearer(user), admin=True) == 403
    for admin in (False, True):
        assert _status(keys, {}, admin=admin) == 401
        assert _status(keys, _bearer(user[:-1]), admin=admin) == 401
    assert (keys.required, keys.admin) == (True, True)


def test_predicting_is_open_with_admin_keys_only(path):
    root = add_key(path, "root", role="admin")
    keys = _keys(path)
    assert keys.authorize({}, admin=False) is None
    assert keys.authorize(_bearer("wrong"), admin=False) is None
    assert keys.authorize(_bearer(root), admin=True) == "root"
    assert _status(keys, {}, admin=True) == 401


def test_administration_is_off_with_predict_keys_only(path):
    user = add_key(path, "app", role="predict")
    assert _status(_keys(path), _bearer(user), admin=True) == 404


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
    key = add_key(path, "app", role="predict").encode()
    headers = {name: value.replace(b"%s", key)}
    keys = _keys(path)
    if known:
        assert keys.authorize(headers, admin=False) == "app"
    else:
        assert _status(keys, headers, admin=False) == 401


def test_a_proxy_may_use_authorization_for_itself(path):
    key = add_key(path, "app", role="predict").encode()
    assert _keys(path).authorize({b"authorization": b"Basic YTpi", b"x-api-key": key}, admin=False) == "app"


def test_the_hash_of_a_key_is_no_key(path):
    add_key(path, "app", role="predict")
    digest = path.read_text().partition('sha256 = "')[2][:64]
    keys = _keys(path)
    assert _status(keys, _bearer(digest), admin=False) == 401
    assert _status(keys, {b"x-api-key": bytes.fromhex(digest)}, admin=False) == 401


@given(st.binary(max_size=80))
def test_no_bytes_get_in_or_break_it(tmp_path_factory, token):
    path = tmp_path_factory.getbasetemp() / "fixed-keys.toml"
    if not path.exists():
        add_key(path, "app", role="predict")
    keys = _keys(path)
    for headers in ({b"authorization": b"Bearer " + token}, {b"authorization": token}, {b"x-api-key": token}):
        assert _status(keys, headers, admin=False) == 401


def test_every_digest_is_compared_whichever_matches(path, monkeypatch):
    drawn = [add_key(path, f"k{index}", role="predict") for index in range(4)]
    keys, seen = _keys(path), []
    monkeypatch.setattr("serve.access.keys.hmac.compare_digest", lambda a, b: seen.append(1) or a == b)
    for index, key in enumerate(drawn):
        assert keys.authorize(_bearer(key), admin=False) == f"k{index}"
    assert len(seen) == 16


def test_a_refusal_says_how_to_send_a_key_and_which_scheme(path):
    add_key(path, "app", role="predict")
    with pytest.raises(Refused, match=r"Authorization: Bearer KEY") as caught:
        _keys(path).authorize({}, admin=False)
    assert (b"www-authenticate", b"Bearer") in reply_of_error(caught.value).headers


def test_a_rate_is_a_burst_and_then_so_many_per_second(path):
    add_key(path, "app", role="predict", rate=2, burst=3)
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
    add_key(path, "app", role="predict", rate=1 / 1.4)
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
    add_key(path, "app", role="predict", rate=rate, burst=burst)
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
        add_key(path, name, role="predict", rate=rate)
    keys = _keys(path, clock=_Clock())
    keys.take("a")
    keys.take("b")
    for _ in range(100):
        keys.take("free")
        keys.take("removed meanwhile")
    with pytest.raises(Refused):
        keys.take("a")


@pytest.mark.parametrize(("workers", "at_once", "wait"), [(1, 8, 0.25), (2, 4, 0.5), (16, 1, 4.0)])
def test_workers_share_a_rate(path, workers, at_once, wait):
    add_key(path, "app", role="predict", rate=4, burst=8)
    keys = _keys(path, workers=workers, clock=_Clock())
    for _ in range(at_once):
        keys.take("app")
    with pytest.raises(Refused, match=r"rate of 4 requests") as caught:
        keys.take("app")
    assert caught.value.retry_after == pytest.approx(wait)


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(path):
    old = add_key(path, "app", role="predict")
    keys = _keys(path)
    assert not keys.reload()
    new = add_key(path, "new", role="admin")
    assert _status(keys, _bearer(new), admin=False) == 401
    assert keys.reload()
    assert keys.authorize(_bearer(new), admin=True) == "new"
    remove_key(path, "app")
    assert keys.reload()
    assert _status(keys, _bearer(old), admin=False) == 401
    assert not keys.reload()
    assert keys.reload(force=True)


def test_a_broken_file_keeps_the_keys_and_warns_once(path, caplog):
    key = add_key(path, "app", role="predict")
    whole = path.read_text()
    keys = _keys(path)
    for content in (whole[:20], "", "key = 3"):
        path.write_text(content)
        caplog.clear()
        assert not keys.reload()
        assert not keys.reload()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(path) in caplog.text
        assert keys.authorize(_bearer(key), admin=False) == "app"
    path.unlink()
    assert not keys.reload()
    assert keys.authorize(_bearer(key), admin=False) == "app"
    path.write_text(whole)
    path.chmod(0o600)
    assert keys.reload()


def test_removing_the_last_predict_key_does_not_open_a_running_server(path):
    add_key(path, "app", role="predict")
    root = add_key(path, "root", role="admin")
    keys = _keys(path)
    remove_key(path, "app")
    assert keys.reload()
    assert _status(keys, {}, admin=False) == 401
    assert keys.authorize(_bearer(root), admin=False) == "root"
    assert _keys(path).authorize({}, admin=False) is None


def test_buckets_outlive_a_reload_unless_the_rate_changed(path):
    add_key(path, "app", role="predict", rate=1, burst=2)
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
    key = add_key(path, "app", role="predict")
    _keys(path)
    assert not caplog.records
    path.chmod(0o640)
    assert _keys(path).authorize(_bearer(key), admin=False) == "app"
    assert "chmod 600" in caplog.text
