"""Kept rows, what is made from them, and that the committed documents say what the committed rows say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench import rows as kinds
from bench.artefact_table import collect
from bench.artefact_table import render as table_of
from bench.commands.publish import DOCUMENTS
from bench.pareto import KEY, draw_pareto, front
from bench.publish import PARETO, digest_of, filled, groups, publish, render
from tests.conftest import run_cli
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import PROJECT
from zoo.base.tables import plain

RESULTS = PROJECT / "bench" / "results"
DOCUMENT = "# Numbers\n\n<!-- rows: mnist5k -->\nold\n<!-- end of rows -->\n\nafter\n"


LEAST = {
    "README.md": {"trained"},
    "docs/benchmarks.md": {
        *{"compare", "mnist5k", "flowers102", "race", "training", "serving", "start", "soak", "attacks"},
        *{"score", "listing"},
    },
    "docs/tutorials/lora.md": {"mnist5k"},
    "docs/guides/training.md": {"ablation"},
    "zoo/recipes/README.md": {"ablation"},
}
"""Tables that the documents have at least."""


@pytest.fixture
def output(chain: Path, tmp_path: Path) -> Path:
    """What the chain made, measured at a clean commit."""
    folder = tmp_path / "output"
    shutil.copytree(chain, folder)
    for name in (kinds.ACCURACY, kinds.LATENCY):
        kinds.write(folder / "bench" / name, [at_a_commit(row) for row in kinds.read(folder / "bench" / name)])
    return folder


def at_a_commit(row: dict[str, Any], commit: str | None = "0123456789ab") -> dict[str, Any]:
    return row | {"environment": row["environment"] | {"commit": commit}}


def whole(name: str, **changes: Any) -> dict[str, Any]:
    """A kept row of a kind, with the fields that came later."""
    row = kinds.KINDS[name].model.model_validate_json(json.dumps(kinds.read(RESULTS / name)[0]))
    return row.model_dump(mode="json") | changes


@pytest.mark.parametrize("document", LEAST)
def test_documents_say_what_the_kept_rows_say(document: str):
    text = (PROJECT / document).read_text(encoding="utf-8")
    names = re.findall(r"<!-- rows: (\S+) -->", text)
    assert set(names) >= LEAST[document]
    assert text.count("<!-- end of rows -->") == len(names)
    assert filled(text, RESULTS) == text, "`pocketzoo bench publish` makes it anew"


def test_a_number_that_no_row_has_is_noticed():
    text = (PROJECT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for before, after in (
        ("97.4  96.2", "98.4  96.2"),
        ("| malformed requests | 10000 |", "| malformed requests | 99999 |"),
    ):
        assert before in text
        assert filled(text.replace(before, after), RESULTS) == text


def test_only_these_documents_have_tables():
    documents = [*PROJECT.glob("*.md"), *PROJECT.glob("[!.]*/**/*.md")]
    found = [path for path in documents if "<!-- rows:" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(PROJECT) for path in found} <= {*DOCUMENTS}, "`pocketzoo bench publish` fills these"
    assert {str(path) for path in DOCUMENTS} == set(LEAST)


@pytest.mark.parametrize("commit", ["0123456789ab-dirty", None])
def test_rows_of_a_commit_that_is_not_clean_are_refused(output: Path, tmp_path: Path, commit: str | None):
    path = output / "bench" / kinds.LATENCY
    rows = kinds.read(path)
    kinds.write(path, [*rows[:2], at_a_commit(rows[2], commit), *rows[3:]])
    with pytest.raises(ArtefactError, match=rf"latency.jsonl:3: environment.commit: expected .*, got {commit!r}; "):
        publish(output, tmp_path / "kept", [])
    assert not (tmp_path / "kept").exists()
    shutil.copytree(RESULTS, tmp_path / "kept")
    for file, name in ((kinds.SOAK, "soak"), (kinds.ACCURACY, "mnist5k")):
        kept = kinds.read(RESULTS / file)
        kinds.write(tmp_path / "kept" / file, [kept[0], at_a_commit(kept[1], commit), *kept[2:]])
        with pytest.raises(ArtefactError, match=rf"{file}:2: environment.commit"):
            render(name, tmp_path / "kept")


@pytest.mark.parametrize("change", [{"cpu": "another"}, {"cores": 64}, {"flags": []}])
def test_a_table_is_of_one_machine(tmp_path: Path, change: dict[str, Any]):
    shutil.copytree(RESULTS, tmp_path / "kept")
    for file, name in ((kinds.SERVING, "serving"), (kinds.LATENCY, "mnist5k")):
        rows = kinds.read(RESULTS / file)
        other = rows[0] | {"environment": rows[0]["environment"] | change}
        kinds.write(tmp_path / "kept" / file, [other, *rows[1:]])
        with pytest.raises(ArtefactError, match=r"expected one machine, got .*; measure all of them on one"):
            render(name, tmp_path / "kept")


def test_what_kept_rows_lack_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(RESULTS, tmp_path / "kept")
    publish(tmp_path / "output", tmp_path / "kept", [])
    lacking = kinds.lacking(RESULTS / kinds.SCORE)
    said = capsys.readouterr().err
    assert all(f"{kinds.SCORE}: {count} of 2 rows lack {field}; " in said for field, count in lacking.items())


def test_the_picture_was_drawn_from_the_kept_rows():
    with Image.open(RESULTS / PARETO) as picture:
        assert picture.text[KEY] == digest_of(RESULTS)


def test_every_kept_row_names_its_commit():
    kept = (kinds.ACCURACY, kinds.LATENCY, kinds.COMPARE, kinds.SERVING, kinds.SCORE, kinds.LOAD)
    for name in (*kept, kinds.SOAK, kinds.ATTACKS):
        found = kinds.read(RESULTS / name)
        assert found, name
        assert all(kinds.unclean(row) is None and row["environment"]["flags"] for row in found)


def test_publishing_keeps_rows_and_fills_documents(output: Path, tmp_path: Path):
    document = tmp_path / "README.md"
    document.write_text(DOCUMENT)
    written = publish(output, tmp_path / "kept", [document])
    assert {path.name for path in written} >= {kinds.ACCURACY, kinds.LATENCY, PARETO, "README.md"}
    lines = collect(output)
    table = plain(table_of(lines))
    assert plain(table_of(groups(tmp_path / "kept")["mnist5k"])) == table
    assert document.read_text() == DOCUMENT.replace("old\n", f"```\n{table}\n```\n")
    before = {path: path.read_bytes() for path in written}
    publish(output, tmp_path / "kept", [document])
    assert {path: path.read_bytes() for path in written} == before


def test_newer_runs_replace_and_others_stay(tmp_path: Path):
    output, kept = tmp_path / "output", tmp_path / "kept"
    (output / "bench").mkdir(parents=True)
    serving = [whole(kinds.SERVING, artefact=name, run=name, n=0) for name in "ab"]
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


def test_a_partial_measurement_does_not_mix_runs(output: Path, tmp_path: Path):
    latency = kinds.read(output / "bench" / kinds.LATENCY)
    kinds.append(output / "bench" / kinds.LATENCY, [latency[0] | {"run": "later"}])
    publish(output, tmp_path / "kept", [])
    assert {row["run"] for row in kinds.read(tmp_path / "kept" / kinds.LATENCY)} == {latency[0]["run"]}
    assert plain(table_of(groups(tmp_path / "kept")["mnist5k"])) == plain(table_of(collect(output)))


def test_scenarios_of_one_model_are_kept_apart(tmp_path: Path):
    output = tmp_path / "output"
    (output / "bench").mkdir(parents=True)
    load = [whole(kinds.LOAD, model="a", scenario=name, run="r") for name in "xy"]
    kinds.append(output / "bench" / kinds.LOAD, load)
    publish(output, tmp_path / "kept", [])
    kinds.append(output / "bench" / kinds.LOAD, [load[0] | {"run": "s"}])
    publish(output, tmp_path / "kept", [])
    found = {(row["scenario"], row["run"]) for row in kinds.read(tmp_path / "kept" / kinds.LOAD)}
    assert found == {("y", "r"), ("x", "s")}


def test_an_unknown_table_is_a_sentence(tmp_path: Path):
    with pytest.raises(UsageError, match="unknown rows 'mnist5'; did you mean mnist5k"):
        filled("<!-- rows: mnist5 -->\n<!-- end of rows -->", RESULTS)
    assert "No rows are kept yet; `pocketzoo bench race` measures them." in render("race", tmp_path)


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


def test_the_command_writes_where_it_is_told(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(output))
    document = tmp_path / "page.md"
    document.write_text(DOCUMENT)
    done = run_cli("bench", "publish", "--results", str(tmp_path / "kept"), "--document", str(document))
    assert done.exit_code == 0
    assert "tiny-resnet-int8" in document.read_text()
    rows = (tmp_path / "kept" / kinds.LATENCY).read_text().splitlines()
    assert {json.loads(row)["artefact"] for row in rows} >= {"tiny-resnet", "tiny-vit-full"}
