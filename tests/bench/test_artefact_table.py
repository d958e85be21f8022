"""Tests of bench.latency, bench.accuracy and bench.artefact_table, on what the recipe `tiny` made."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bench import artefact_table as table
from bench.accuracy import measure_accuracy
from bench.rows import ACCURACY, LATENCY, lacking, read
from zoo.artefact.environment import environment
from zoo.artefact.predictor import Predictor
from zoo.base.errors import DataError
from zoo.base.files import GRAPH, INT8_GRAPH, sha256_file
from zoo.data.catalogue import open_dataset
from zoo.data.image_set import truth


def test_rows_are_complete(chain: Path) -> None:
    for name in (ACCURACY, LATENCY):
        rows = read(chain / "bench" / name)
        assert len(rows) == 14
        assert lacking(chain / "bench" / name) == {}
        assert {row["digest"] for row in rows} == {sha256_file(path) for path in table.graphs(chain)}


def test_all_latencies_come_from_one_run(chain: Path) -> None:
    rows = read(chain / "bench" / LATENCY)
    assert len({row["run"] for row in rows}) == 1
    assert all(row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] and row["n"] >= 20 for row in rows)


def test_accuracy_is_that_of_the_predictor(chain: Path) -> None:
    path = chain / "tiny-resnet-pruned" / INT8_GRAPH
    dataset = open_dataset("mnist5k", per_split=200)
    row = measure_accuracy(path, dataset)
    answers = Predictor(path).predict([sample.read() for sample in dataset.splits["test"]], top=1)
    right = np.mean(
        [answer.labels[0] == dataset.labels[s.label] for answer, s in zip(answers, dataset.splits["test"], strict=True)]
    )
    assert (row["top1"], row["n"], row["dataset"]) == (pytest.approx(right), 200, "mnist5k")


def test_labels_are_matched_by_name() -> None:
    dataset = open_dataset("digits", per_split=20)
    backwards = tuple(reversed(dataset.labels))
    assert (truth(dataset, "test", backwards, where="x") == 9 - truth(dataset, "test", dataset.labels, where="x")).all()
    with pytest.raises(DataError, match="does not know the label '3'"):
        truth(dataset, "test", ("0", "1", "2"), where="x")


def test_the_table_says_what_was_measured(chain: Path) -> None:
    lines = table.collect(chain)
    assert [line.name for line in lines][:2] == ["tiny-resnet", "tiny-resnet-int8"]
    console = Console(width=140, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    console.print(table.render(lines))
    console.file.close()
    text = console.export_text()
    assert text.count("\n") == 15
    assert "control, on mnist5k" in text
    assert f"{lines[0].accuracy['top1'] * 100:.1f}" in text


def test_a_slower_int8_file_is_marked(chain: Path) -> None:
    lines = table.collect(chain)
    fp32, int8 = (next(line for line in lines if line.name == name) for name in ("tiny-resnet", "tiny-resnet-int8"))
    slow = dataclasses.replace(int8, latency=fp32.latency | {"round_ms": [2 * ms for ms in fp32.latency["round_ms"]]})
    assert table._cells(slow, fp32)[-2:] == ["0.50x", "slower than its FP32"]
    fast = dataclasses.replace(int8, latency=fp32.latency | {"round_ms": [ms / 2 for ms in fp32.latency["round_ms"]]})
    assert table._cells(fast, fp32)[-2:] == ["2.00x", ""]


def test_ratios_are_only_formed_within_a_run(chain: Path) -> None:
    lines = table.collect(chain)
    other = dataclasses.replace(lines[1], latency=lines[1].latency | {"run": "another"})
    assert table._cells(other, lines[0])[-2] == "-"


def test_what_is_unmeasured(chain: Path, tmp_path: Path) -> None:
    assert table.unmeasured(chain) == ([], [])
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / GRAPH).write_bytes((chain / "tiny-resnet" / GRAPH).read_bytes())
    assert table.unmeasured(tmp_path) == ([tmp_path / "x" / GRAPH], [tmp_path / "x" / GRAPH])


def test_environment_names_the_machine() -> None:
    found = environment()
    assert found["cores"] >= 1
    assert set(found["versions"]) - {"openvino"} == {"python", "onnxruntime", "numpy"}
    json.dumps(found)


def test_the_latest_complete_run_counts(chain: Path) -> None:
    rows = read(chain / "bench" / LATENCY)
    threads = rows[0]["threads"]

    def runs(*given: dict[str, object], of: list[dict[str, object]] = rows) -> list[object]:
        lines = table.lines_of(of, [], given, threads=threads)
        return [line.latency and line.latency["run"] for line in lines]

    single = rows[0] | {"run": "later", "p50_ms": 99.0}
    others = [row | {"run": "others", change: row[change] + 1} for row in rows for change in ("threads", "batch")]
    again = [row | {"run": "again"} for row in rows]
    assert set(runs(*rows, single, *others)) == {rows[0]["run"]}
    assert set(runs(*rows, *again, single)) == {"again"}
    assert runs(single) == ["later"] + [None] * 13
    assert runs(*rows, single, of=rows[:1]) == ["later"]
