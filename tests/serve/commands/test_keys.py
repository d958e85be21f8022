"""`pocketzoo key`: a key is shown once, its hash is kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from serve.access.key_file import read_keys
from tests.conftest import run_cli
from zoo.base.errors import UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_key_is_printed_alone_on_standard_output(file: Path) -> None:
    result = run_cli("key", "phone-app", "--rate", "10", "--burst", "20", "--file", file)
    key = result.stdout.strip()
    (entry,) = read_keys(file)
    assert (entry.name, entry.rate, entry.burst) == ("phone-app", 10.0, 20)
    assert hashlib.sha256(key.encode()).hexdigest() == entry.sha256
    assert key not in result.stderr
    assert f"POCKETZOO_KEYS_FILE={file}" in result.stderr


def test_scripts_get_json(file: Path) -> None:
    made = json.loads(run_cli("key", "root", "--file", file, "--json").stdout)
    assert (made["name"], made["file"], len(made["key"])) == ("root", str(file), 43)
    (listed,) = json.loads(run_cli("key", "--list", "--file", file, "--json").stdout)
    assert listed["sha256"] == hashlib.sha256(made["key"].encode()).hexdigest()
    assert json.loads(run_cli("key", "root", "--remove", "--file", file, "--json").stdout)["name"] == "root"
    assert read_keys(file) == ()


def test_the_list_shows_limits_and_no_key(file: Path) -> None:
    key = run_cli("key", "a", "--rate", "2.5", "--file", file).stdout.strip()
    run_cli("key", "b", "--file", file)
    lines = run_cli("key", "--list", "--file", file).stdout.splitlines()
    assert lines[1].split()[:3] == ["a", "2.5", "3"]
    assert lines[2].split()[0] == "b"
    assert key not in "".join(lines)


def test_the_file_may_come_from_the_servers_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETZOO_KEYS_FILE", str(file))
    run_cli("key", "app")
    assert [entry.name for entry in read_keys(file)] == ["app"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected the NAME of a key, or --list alone"),
        (("app", "--list"), "expected the NAME of a key, or --list alone"),
        (("--list", "--remove"), "expected the NAME of a key, or --list alone"),
        (("app", "--rate", "0"), "above 0, got 0"),
        (("app", "--burst", "3"), "together with a rate"),
        (("a b",), "expected 1 to 64 letters"),
        (("app", "--remove"), "cannot be read as a file of API keys"),
    ],
)
def test_wrong_usage_is_said(file: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_cli("key", *arguments, "--file", file)
    assert message in str(caught.value)
    assert not file.exists()
