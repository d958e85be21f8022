"""The page: one file, every part, nothing from elsewhere, nothing that a name can break, no number of its own."""

from __future__ import annotations

import base64
import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.report.history import read_peers
from bench.report.json_document import document
from bench.report.measure import Report
from bench.report.render import html, markdown
from bench.report.sections import headline, pictures, sections
from bench.rows import COMPARE, append
from tests.bench.reports import HOSTILE, measured
from tests.bench.runtimes.test_tables import family
from zoo.base.files import output_root
from zoo.base.tables import escape_markdown

_VOID = {"meta", "img", "br", "link", "wbr"}


class Reader(HTMLParser):
    """Collects tags, addresses and cells; a tag that is closed in the wrong place fails."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.idents: list[str] = []
        self.cells: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.idents += [found["id"] or ""] if "id" in found else []
        if tag == "img":
            self.alts.append(found["alt"] or "")
        if tag in ("td", "p"):
            self.cells.append("")
        if tag == "h2":
            self.titles.append("")
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in ("td", "p"):
            self.cells[-1] += data
        if self.stack and self.stack[-1] == "h2":
            self.titles[-1] += data


def page_of(done: Report) -> tuple[str, Reader]:
    text = html(done.artefact, headline(done), sections(done), pictures(done))
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.stack == []
    return text, reader


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    return measured(tmp_path, monkeypatch)


def test_every_part_is_there_and_nothing_comes_from_elsewhere(done: Report) -> None:
    text, reader = page_of(done)
    parts = ["compression", "confusion", "errors", "classes", "reliability", "peers", "curves", "card", "lineage"]
    parts += ["measured", "method"]
    assert [ident for ident in reader.idents if not ident.endswith("-title")] == parts
    assert len(reader.titles) == len(parts)
    assert {"script", "link", "iframe"}.isdisjoint(reader.tags)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in reader.addresses)
    assert "@import" not in text
    assert "url(" not in text
    images = [address for address in reader.addresses if address.startswith("data:")]
    assert len(images) == len(reader.alts) == 3 + len(done.answers.errors if done.answers else ())
    assert all(base64.b64decode(image.split(",")[1]).startswith(b"\x89PNG") for image in images)
    assert all(reader.alts)


def test_names_are_text(done: Report) -> None:
    assert done.answers
    assert done.answers.errors[0].name == HOSTILE
    error = dataclasses.replace(done.answers.errors[0], truth=HOSTILE, answer=HOSTILE)
    hostile = dataclasses.replace(
        done, artefact=HOSTILE, answers=dataclasses.replace(done.answers, errors=(error,), wrong=1)
    )
    text, reader = page_of(hostile)
    assert "script" not in reader.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert f"{HOSTILE} taken for {HOSTILE}" in reader.cells
    page = markdown(hostile.artefact, sections(hostile))
    assert "<script" not in page
    (row,) = [line for line in page.splitlines() if line.startswith("| &lt;script>")]
    assert row.replace("\\|", "").count("|") == 6


def test_markdown_escapes() -> None:
    assert escape_markdown("a|b <i> [x](y) `c` *d*\n&e") == r"a\|b &lt;i> \[x\](y) \`c\` \*d\* &amp;e"
    assert escape_markdown("tf_efficientnet_lite0") == "tf_efficientnet_lite0"


def test_numbers_are_those_of_the_json_file(done: Report) -> None:
    values = document(done)
    _, reader = page_of(done)
    for row in values["answers"]["classes"]:
        start = [place for place, cell in enumerate(reader.cells) if cell == row["label"]]
        wanted = [f"{100 * row[name]:.1f}" for name in ("precision", "recall", "f1")] + [f"{row['n']:,}"]
        assert wanted in [reader.cells[place + 1 : place + 5] for place in start]
    for line in values["files"]:
        place = reader.cells.index(f"{line['artefact']}/{line['file']}")
        found = line["metrics"]
        top1 = f"{100 * found['top1']:.2f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
        assert reader.cells[place + 1 : place + 3] == [top1, f"{100 * line['calibration_error']:.2f}"]
    assert sum(cell["n"] for cell in values["answers"]["confusion"]) == values["n"] == 40
    assert values["answers"]["calibration"]["after"]["error"] == values["files"][-1]["calibration_error"]
    assert values["subject"] == "cat-pruned/model.int8.onnx"
    assert any(cell.startswith(f"Answers of {values['subject']}") for cell in reader.cells)


def test_pictures_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = measured(tmp_path, monkeypatch, labels=False)
    _, reader = page_of(done)
    assert document(done)["answers"] is None
    assert sum("The images have no labels" in cell for cell in reader.cells) == 4
    assert (reader.alts, len(reader.titles)) == ([], 11)


def test_rows_beside_other_runtimes(done: Report) -> None:
    assert any("pocketzoo bench compare" in text for text in page_of(done)[0].splitlines())
    rows = [row | {"digest": f"{number:064}"} for number, row in enumerate(family())]
    rows[1]["digest"] = done.lines[0].digest
    older = [row | {"run": "older", "p50_ms": 77.0} for row in rows]
    other = [row | {"run": "other", "digest": "f" * 64, "p50_ms": 99.0} for row in rows]
    append(output_root() / "bench" / COMPARE, [*older, *rows, *other])
    found = read_peers({line.digest for line in done.lines})
    assert list(found.rows) == rows
    _, reader = page_of(dataclasses.replace(done, peers=found))
    shown = [f"{row['variant']} (OpenVINO)" if "pocketzoo" in row["variant"] else row["variant"] for row in rows]
    assert [cell for cell in reader.cells if cell in shown] == shown
    assert document(dataclasses.replace(done, peers=found))["peers"]["rows"] == tuple(rows)
