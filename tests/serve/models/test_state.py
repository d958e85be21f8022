import dataclasses
import json
import logging
import shutil
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.models.state import SCHEMA, Split, State, StateFile, Target, from_json, to_json
from zoo.base.errors import ArtefactError, UsageError

_names = st.text(min_size=1, max_size=12)
_versions = st.none() | st.text("0123456789abcdef", min_size=12, max_size=12)
_states = st.builds(
    State,
    pins=st.dictionaries(_names, st.text("0123456789abcdef", min_size=12, max_size=12), max_size=3),
    splits=st.dictionaries(
        _names, st.builds(Split, to=_names, version=_versions, percent=st.floats(0, 100)), max_size=3
    ),
    shadows=st.dictionaries(_names, st.builds(Target, to=_names, version=_versions), max_size=3),
    reloads=st.integers(0, 1 << 40),
)

_EXAMPLE = State(
    pins={"vit": "0123456789ab"},
    splits={"vit": Split(to="vit-int8", percent=12.5)},
    shadows={"other": Target(to="other", version="ba9876543210")},
    reloads=3,
)


@given(_states)
def test_a_state_survives_its_json(state):
    assert from_json(to_json(state)) == state


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_anything_else_is_refused_in_a_sentence(text):
    with pytest.raises(ArtefactError, match="cannot be understood: "):
        from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "pocketzoo.state/2"}, r"has the schema 'pocketzoo\.state/2', this version reads"),
        ({"pinz": {}}, "unknown key 'pinz'; did you mean pins"),
        ({"pins": {"a": 1}}, r"state\.pins\.a: expected str, got 1"),
        ({"splits": {"a": {"to": "b"}}}, r"state\.splits\.a: key 'percent' is missing"),
        ({"splits": {"a": {"to": "b", "percent": 101}}}, "expected a number from 0 to 100, got 101"),
        ({"splits": {"a": {"to": "b", "percent": float("nan")}}}, "expected a number from 0 to 100, got nan"),
        ({"shadows": []}, r"state\.shadows: expected"),
    ],
)
def test_a_state_is_read_strictly(change, message):
    with pytest.raises(ArtefactError, match=message):
        from_json(json.dumps({"schema": SCHEMA} | change))


def test_nested_too_deeply():
    with pytest.raises(ArtefactError, match="cannot be understood"):
        from_json("[" * 200_000)


def test_a_share_is_per_cent():
    assert Split(to="a", percent=100).target == Target(to="a")
    for percent in (-0.1, 100.1, float("nan")):
        with pytest.raises(UsageError, match="percent: expected a number from 0 to 100"):
            Split(to="a", percent=percent)


def test_what_one_worker_writes_another_reads(tmp_path):
    one, two = StateFile(tmp_path / "s"), StateFile(tmp_path / "s")
    assert one.now == State()
    assert not two.refresh()
    one.update(lambda state: _EXAMPLE)
    assert two.refresh()
    assert two.now == _EXAMPLE == StateFile(tmp_path / "s").now
    assert not two.refresh()
    assert not one.refresh()


def test_no_update_is_lost(tmp_path):
    files = [StateFile(tmp_path) for _ in range(4)]

    def count(file):
        for _ in range(5):
            file.update(lambda state: replace(state, reloads=state.reloads + 1))

    threads = [threading.Thread(target=count, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert StateFile(tmp_path).now.reloads == 20


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"x" * (2 << 20), json.dumps({"schema": "?"}).encode()])
def test_an_unreadable_state_leaves_the_old_one_and_is_warned_of_once(tmp_path, caplog, content):
    file = StateFile(tmp_path)
    file.update(lambda state: _EXAMPLE)
    file.path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "bentoml.pocketzoo"):
        assert not file.refresh()
        assert not file.refresh()
    assert file.now == _EXAMPLE
    assert len(caplog.records) == 1
    assert "what was decided before still holds" in caplog.text
    # The next decision mends it.
    file.update(lambda state: replace(state, reloads=4))
    assert StateFile(tmp_path).now == dataclasses.replace(_EXAMPLE, reloads=4)


def test_a_state_that_vanishes_still_holds(tmp_path):
    file = StateFile(tmp_path / "s")
    file.update(lambda state: _EXAMPLE)
    shutil.rmtree(tmp_path / "s")
    assert not file.refresh()
    assert file.now == _EXAMPLE


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    file = StateFile(tmp_path / "file" / "s")
    with pytest.raises(ArtefactError, match=r"state\.json: cannot be written .*POCKETZOO_STATE"):
        file.update(lambda state: _EXAMPLE)
    assert file.now == State()


def test_targets_are_what_takes_part_of_others_traffic():
    assert _EXAMPLE.targets() == {Target(to="vit-int8"), Target(to="other", version="ba9876543210")}
