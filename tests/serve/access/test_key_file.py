"""The file of API keys: strict to read, private to write, and without the keys themselves."""

import base64
import hashlib
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.access.key_file import KeyEntry, add_key, digest_of, parse_keys, read_keys, remove_key
from zoo.base.errors import UsageError

DIGEST = "0" * 63 + "a"


def _entry(**changes: object) -> str:
    values: dict[str, object] = {"name": '"app"', "sha256": f'"{DIGEST}"'} | changes
    return "[[key]]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())


def test_a_new_key_is_32_random_bytes_of_which_the_file_has_the_hash_only(tmp_path):
    path = tmp_path / "new" / "keys.toml"
    key = add_key(path, "app", rate=2.5)
    assert len(base64.urlsafe_b64decode(key + "=")) == 32
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    (entry,) = read_keys(path)
    assert entry == KeyEntry(name="app", sha256=hashlib.sha256(key.encode()).hexdigest(), rate=2.5, burst=None)
    assert (entry.capacity, digest_of(key.encode()).hex()) == (3, entry.sha256)


def test_keys_are_appended_below_what_a_person_wrote(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text("# our keys\n" + _entry())
    path.chmod(0o644)
    keys = {add_key(path, "root"), add_key(path, "b@x.org", rate=7, burst=3)}
    assert len(keys) == 2
    assert path.read_text().startswith("# our keys\n[[key]]\n")
    assert path.stat().st_mode & 0o777 == 0o600
    entries = read_keys(path)
    assert [(e.name, e.rate, e.burst) for e in entries] == [
        ("app", None, None),
        ("root", None, None),
        ("b@x.org", 7.0, 3),
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_is_removed_with_its_lines(tmp_path):
    path = tmp_path / "keys.toml"
    for name in ("a", "b", "c"):
        add_key(path, name)
    before = read_keys(path)
    remove_key(path, "b")
    assert read_keys(path) == (before[0], before[2])
    with pytest.raises(UsageError, match=r"unknown key in .*keys.toml 'b'"):
        remove_key(path, "b")


@pytest.mark.parametrize(
    "text",
    [
        f'key = [{{name = "app", sha256 = "{DIGEST}"}}]\n',
        '[["key"]]\n' + _entry().partition("\n")[2] + _entry(name='"b"', sha256=f'"{DIGEST[::-1]}"'),
    ],
)
def test_a_layout_that_cannot_be_cut_is_left_to_an_editor(tmp_path, text):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"remove 'app' with an editor"):
        remove_key(path, "app")
    assert path.read_text() == text


def test_names_are_given_once(tmp_path):
    path = tmp_path / "keys.toml"
    add_key(path, "app")
    before = path.read_text()
    with pytest.raises(UsageError, match=r"there is a key 'app'; choose another name"):
        add_key(path, "app")
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key = 3", r"keys.toml.key: expected tuple, got 3"),
        ("[[key]]\n", r"keys.toml.key\[0\]: key 'name' is missing"),
        ("keys = []", r"unknown key 'keys'; did you mean key\?"),
        (_entry(colour=1), r"key\[0\]: unknown key 'colour'"),
        (_entry(name='"a b"'), r"key\[0\] \('a b'\): name: expected 1 to 64 letters"),
        (_entry(sha256='"abc"'), r"key\[0\] \('app'\): sha256: expected 64 lower-case hexadecimal digits, got 'abc'"),
        (_entry(sha256=f'"{DIGEST.upper()}"'), r"sha256: expected 64 lower-case"),
        (
            _entry(role='"admin"'),
            r"key\[0\] \('app'\): role: expected predict or no role, got 'admin'; ",
        ),
        (_entry(role="3"), r"role: expected predict or no role, got 3"),
        (_entry(rate="0"), r"rate: expected requests per second, above 0, got 0.0"),
        (_entry(rate="nan"), r"rate: expected"),
        (_entry(rate="inf"), r"rate: expected"),
        (_entry(rate='"5"'), r"key\[0\].rate: expected float"),
        (_entry(rate="5", burst="0"), r"burst: expected a whole number of at least 1, got 0"),
        (_entry(rate="5", burst="1.5"), r"burst: expected int"),
        (_entry(burst="5"), r"burst: expected together with a rate"),
        (_entry() + _entry(sha256=f'"{DIGEST[::-1]}"'), r"key\[1\] \('app'\): expected names that differ.*key\[0\]"),
        (_entry() + _entry(name='"b"'), r"key\[1\] \('b'\): expected keys that differ"),
        ("[[key]", r"expected TOML with \[\[key\]\] entries"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text, message):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_keys(path)
    assert str(path) in str(caught.value)


def test_files_that_give_every_key_the_role_to_predict_are_still_read(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(_entry(role='"predict"') + _entry(name='"b"', sha256=f'"{DIGEST[::-1]}"'))
    assert [entry.name for entry in read_keys(path)] == ["app", "b"]
    remove_key(path, "app")
    assert "role" not in path.read_text()


@pytest.mark.parametrize("content", [b"\xff", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "keys.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"keys.toml: cannot be read as a file of API keys"):
        read_keys(path)


def test_a_file_that_cannot_be_written_leaves_no_rest(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "keys.toml").mkdir()
    with pytest.raises(UsageError, match=r"cannot be read"):
        add_key(tmp_path / "folder" / "keys.toml", "app")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written.*--file"):
        add_key(tmp_path / "file" / "keys.toml", "app")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "keys.toml"]


@pytest.mark.parametrize("changes", [{"name": "a\nb"}, {"name": ""}, {"rate": -1.0}, {"burst": 3}, {"name": "ä"}])
def test_no_entry_is_written_that_would_not_be_read(tmp_path, changes):
    path = tmp_path / "keys.toml"
    with pytest.raises(UsageError):
        add_key(path, **({"name": "app"} | changes))
    assert not path.exists()


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", fullmatch=True),
            st.one_of(st.none(), st.floats(1e-6, 1e9)),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda entry: entry[0],
    )
)
def test_what_is_written_is_what_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys = [add_key(path, name, rate=rate) for name, rate in rows]
    found = read_keys(path)
    assert [(entry.name, entry.rate) for entry in found] == rows
    assert [entry.sha256 for entry in found] == [hashlib.sha256(key.encode()).hexdigest() for key in keys]
    assert len(tomllib.loads(path.read_text())["key"]) == len(rows)


@given(st.text(max_size=200) | st.text(alphabet='[]key=" \n#{}0.', max_size=60))
def test_any_text_gives_keys_or_a_usage_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "keys.toml"
    try:
        assert isinstance(parse_keys(text, path), tuple)
    except UsageError as error:
        assert str(path) in str(error)
