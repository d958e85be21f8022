"""The measurement of the server's start: one short real run, and what is told of it."""

import json

import onnx
import pytest

from bench.rows import START, append, read
from bench.serving.start import StartConfig, markdown, measure, write_large
from tests.conftest import run_cli
from tests.soak.artefacts import write_tiny
from zoo.artefact.onnx_file import read_card
from zoo.artefact.predictor import Predictor
from zoo.base.errors import UsageError
from zoo.base.files import sha256_file


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = write_tiny(tmp_path_factory.mktemp("start") / "tiny" / "model.onnx", seed=0)
    return measure(path, StartConfig(rounds=1, many=2, megabytes=0.05))


def test_every_case_has_a_complete_row(rows, tmp_path):
    append(tmp_path / START, rows)
    assert read(tmp_path / START) == json.loads(json.dumps(rows))
    cases = [(row["artefact"], row["models"], row["known"], row["rounds"]) for row in rows]
    assert cases == [("tiny", 1, False, 1), ("tiny", 1, True, 1), ("large-01", 2, False, 1), ("large-01", 2, True, 1)]
    for row in rows:
        assert len(row["ready_seconds"]) == len(row["predicted_seconds"]) == 1
        assert 0 < row["ready_seconds"][0] <= row["predicted_seconds"][0]
        for process in ("worker_mb", "supervisor_mb"):
            assert 10 < row[process]["uss"] <= row[process]["pss"] <= row[process]["rss"]


def test_the_table_has_a_line_per_case_and_names_the_machine(rows):
    lines = markdown(rows).splitlines()
    assert [line.split(" | ")[:4] for line in lines[2:6]] == [
        ["| 1", "0", "new", "1"],
        ["| 1", "0", "checked before", "1"],
        ["| 2", "0", "new", "1"],
        ["| 2", "0", "checked before", "1"],
    ]
    assert "load average" in lines[-1]


def test_large_artefacts_have_digests_and_names_of_their_own_and_pass_their_check(tmp_path):
    write_large(tmp_path, 3, 0.5)
    paths = sorted(tmp_path.glob("*/model.onnx"))
    assert [read_card(path).name for path in paths] == ["large-01", "large-02", "large-03"]
    assert len({sha256_file(path) for path in paths}) == 3
    for path in paths:
        assert path.stat().st_size == pytest.approx(0.5e6, rel=0.1)
        assert read_card(path).inform.bytes == sum(len(w.raw_data) for w in onnx.load_model(path).graph.initializer)
        assert Predictor(path, check=True).card.use.golden is not None


def test_bad_settings_are_refused():
    for wrong in ({"rounds": 0}, {"many": -1}, {"megabytes": 0.0}):
        with pytest.raises(UsageError, match=f"--{next(iter(wrong))}"):
            StartConfig(**wrong)


def test_the_command_appends_its_rows_and_prints_them(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))
    path = write_tiny(tmp_path / "tiny" / "model.onnx", seed=0)
    asked = []

    def fake(artefact, config):
        asked.append((artefact, config))
        return rows

    monkeypatch.setattr("bench.serving.start.measure", fake)
    assert "checked before" in run_cli("bench", "start", path.parent, "--rounds", "2").stdout
    assert len(run_cli("bench", "start", path, "--many", "0", "--json").stdout.splitlines()) == len(rows)
    assert asked == [(path, StartConfig(rounds=2)), (path, StartConfig(many=0))]
    assert len(read(tmp_path / "output" / "bench" / START)) == 2 * len(rows)
