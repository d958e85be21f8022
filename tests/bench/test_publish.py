"""Kept rows, what is made from them, and that the committed documents say what the committed rows say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from bench import rows as kinds
from bench.artefact_table import collect
from bench.artefact_table import render as table_of
from bench.commands.publish import DOCUMENTS
from bench.pareto import KEY, draw_pareto, front
from bench.publish import PARETO, digest_of, filled, groups, publish, render
from tests.conftest import run_cli
from zoo.base.errors import UsageError
from zoo.base.files import PROJECT
from zoo.base.tables import plain

RESULTS = PROJECT / "bench" / "results"
DOCUMENT = "# Numbers\n\n<!-- rows: mnist5k -->\nold\n<!-- end of rows -->\n\nafter\n"


@pytest.mark.parametrize(
    ("document", "least"),
    [
        ("README.md", {"trained"}),
        ("docs/benchmarks.md", {"compare", "mnist5k", "serving", "soak", "attacks"}),
        ("docs/tutorials/lora.md", {"mnist5k"}),
    ],
)
def test_documents_say_what_the_kept_rows_say(document: str, least: set[str]):
    text = (PROJECT / document).read_text(encoding="utf-8")
    names = re.findall(r"<!-- rows: (\S+) -->", text)
    assert set(names) >= least
    assert text.count("<!-- end of rows -->") == len(names)
    for name in names:
        assert render(name, RESULTS) in text, f"{name}: `pocketzoo bench publish` makes it anew"


def test_only_these_documents_have_tables():
    found = [path for path in PROJECT.glob("[!.]*/**/*.md") if "<!-- rows:" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(PROJECT) for path in found} <= {*DOCUMENTS}, "`pocketzoo bench publish` fills these"


def test_the_picture_was_drawn_from_the_kept_rows():
    with Image.open(RESULTS / PARETO) as picture:
        assert picture.text[KEY] == digest_of(RESULTS)


def test_every_kept_row_is_complete_and_names_its_commit():
    kept = (kinds.ACCURACY, kinds.LATENCY, kinds.COMPARE, kinds.SERVING, kinds.SCORE, kinds.LOAD)
    for name in (*kept, kinds.SOAK, kinds.ATTACKS):
        found = kinds.read(RESULTS / name)
        assert found, name
        assert all(row["environment"]["commit"] and row["environment"]["flags"] for row in found)
        assert not any(row["environment"]["commit"].endswith("-dirty") for row in found)


def test_publishing_keeps_rows_and_fills_documents(chain: Path, tmp_path: Path):
    document = tmp_path / "README.md"
    document.write_text(DOCUMENT)
    written = publish(chain, tmp_path / "kept", [document])
    assert {path.name for path in written} >= {kinds.ACCURACY, kinds.LATENCY, PARETO, "README.md"}
    lines = collect(chain)
    table = plain(table_of(lines))
    assert plain(table_of(groups(tmp_path / "kept")["mnist5k"])) == table
    assert document.read_text() == DOCUMENT.replace("old\n", f"```\n{table}\n```\n")
    before = {path: path.read_bytes() for path in written}
    publish(chain, tmp_path / "kept", [document])
    assert {path: path.read_bytes() for path in written} == before


def test_newer_runs_replace_and_others_stay(chain: Path, tmp_path: Path):
    output, kept = tmp_path / "output", tmp_path / "kept"
    (output / "bench").mkdir(parents=True)
    serving = [dict.fromkeys(kinds.REQUIRED[kinds.SERVING], 0) | {"artefact": name, "run": name} for name in "ab"]
    kinds.append(output / "bench" / kinds.SERVING, serving)
    publish(output, kept, [])
    newer = [serving[0] | {"run": "later", "n": number} for number in (1, 2)]
    (output / "bench" / kinds.SERVING).unlink()
    kinds.append(output / "bench" / kinds.SERVING, [serving[0] | {"run": "between", "n": 9}, *newer])
    publish(output, kept, [])
    found = [(row["artefact"], row["run"], row["n"]) for row in kinds.read(kept / kinds.SERVING)]
    assert found == [("b", "b", 0), ("a", "later", 1), ("a", "later", 2)]


def test_rows_of_files_that_are_gone_are_not_kept(chain: Path, tmp_path: Path):
    output = tmp_path / "output"
    (output / "bench").mkdir(parents=True)
    for name in (kinds.ACCURACY, kinds.LATENCY):
        (output / "bench" / name).write_bytes((chain / "bench" / name).read_bytes())
    publish(output, tmp_path / "kept", [])
    assert kinds.read(tmp_path / "kept" / kinds.ACCURACY) == []


def test_a_partial_measurement_does_not_mix_runs(chain: Path, tmp_path: Path):
    output = tmp_path / "output"
    shutil.copytree(chain, output)
    latency = kinds.read(output / "bench" / kinds.LATENCY)
    kinds.append(output / "bench" / kinds.LATENCY, [latency[0] | {"run": "later"}])
    publish(output, tmp_path / "kept", [])
    assert {row["run"] for row in kinds.read(tmp_path / "kept" / kinds.LATENCY)} == {latency[0]["run"]}
    assert plain(table_of(groups(tmp_path / "kept")["mnist5k"])) == plain(table_of(collect(output)))


def test_scenarios_of_one_model_are_kept_apart(chain: Path, tmp_path: Path):
    output = tmp_path / "output"
    (output / "bench").mkdir(parents=True)
    load = [
        dict.fromkeys(kinds.REQUIRED[kinds.LOAD], 0) | {"model": "a", "scenario": name, "run": "r"} for name in "xy"
    ]
    kinds.append(output / "bench" / kinds.LOAD, load)
    publish(output, tmp_path / "kept", [])
    kinds.append(output / "bench" / kinds.LOAD, [load[0] | {"run": "s"}])
    publish(output, tmp_path / "kept", [])
    found = {(row["scenario"], row["run"]) for row in kinds.read(tmp_path / "kept" / kinds.LOAD)}
    assert found == {("y", "r"), ("x", "s")}


def test_an_unknown_table_is_a_sentence(tmp_path: Path):
    with pytest.raises(UsageError, match="unknown rows 'mnist5'; did you mean mnist5k"):
        filled("<!-- rows: mnist5 -->\n<!-- end of rows -->", RESULTS)


def test_a_document_without_tables_stays(tmp_path: Path):
    assert filled("# Nothing\n", tmp_path) == "# Nothing\n"


def test_the_front_holds_what_nothing_beats(chain: Path):
    lines = [line for line in collect(chain) if line.accuracy and line.latency]
    best = front(lines)
    for line in lines:
        beaten = any(
            other.latency["p50_ms"] <= line.latency["p50_ms"]
            and other.accuracy["top1"] >= line.accuracy["top1"]
            and (other.latency["p50_ms"], -other.accuracy["top1"]) != (line.latency["p50_ms"], -line.accuracy["top1"])
            for other in lines
        )
        assert (line in best) != beaten


def test_the_picture_is_readable(chain: Path, tmp_path: Path):
    draw_pareto({"mnist5k": collect(chain), "again": collect(chain)}, tmp_path / "p.png", digest="x")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 1400
        assert picture.text[KEY] == "x"


def test_the_command_writes_where_it_is_told(made: Path, tmp_path: Path):
    document = tmp_path / "page.md"
    document.write_text(DOCUMENT)
    done = run_cli("bench", "publish", "--results", str(tmp_path / "kept"), "--document", str(document))
    assert done.exit_code == 0
    assert "tiny-resnet-int8" in document.read_text()
    rows = (tmp_path / "kept" / kinds.LATENCY).read_text().splitlines()
    assert {json.loads(row)["artefact"] for row in rows} >= {"tiny-resnet", "tiny-vit-full"}
