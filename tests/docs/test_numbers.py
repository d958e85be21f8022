"""What was measured stands in a document between marks, made from rows; this lists what is no measurement."""

from __future__ import annotations

import re
from itertools import takewhile

import pytest

from bench.rows import ACCURACY, read
from zoo.base.files import PROJECT
from zoo.training.recipe import recipe_names

_UNITS = r"%|ms|µs|s|seconds?|min|minutes?|hours?|[kKMG]i?B|bytes|points?|images/s|images (?:a|per) second"
_NUMBER = re.compile(rf"(?<![\w.])\d[\d,.]*(?: to \d[\d,.]*)? ?(?:{_UNITS})(?![\w-])|\d[\d.]*(?:x|-fold)(?![\w-])")
_MARKED = re.compile(
    r"<!-- rows: \S+ -->\n.*?<!-- end of rows -->|^```(?:sh|python)\n.*?^```$", re.DOTALL | re.MULTILINE
)

DOCUMENTS = [
    path.relative_to(PROJECT).as_posix()
    for path in (
        *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "serve/README.md", "zoo/recipes/README.md")),
        *sorted((PROJECT / "docs").rglob("*.md")),
    )
    if path.name != "changelog.md"
]

SETTINGS = {
    "docs/benchmarks.md": ["5 ms", "40 %", "100 MB"],
    "docs/guides/serving.md": ["20 MB", "8 bytes", "32 MB"],
    "docs/guides/training.md": ["3 %", "1 %", "20 %", "10 %"],
    "docs/security.md": ["4 MiB"],
    "docs/tutorials/compress.md": ["70 %"],
    "docs/tutorials/few-labels.md": ["1 %"],
    "docs/tutorials/ship.md": ["50 ms"],
}
"""Numbers that are limits, settings or shares of data, as they stand in the documents."""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_numbers_are_of_rows_or_settings(document: str) -> None:
    text = _MARKED.sub("", (PROJECT / document).read_text(encoding="utf-8"))
    assert _NUMBER.findall(text) == SETTINGS.get(document, []), "a measurement becomes a row; a setting is listed above"


def test_all_documents_are_looked_at() -> None:
    assert len(DOCUMENTS) > 15
    assert set(SETTINGS) <= set(DOCUMENTS)
    assert _NUMBER.findall("1.37x, 94.4 %, 0.96 ms in 3 to 4 minutes; 18.6 MB") == [
        "1.37x",
        "94.4 %",
        "0.96 ms",
        "3 to 4 minutes",
        "18.6 MB",
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_has_numbers_where_its_command_stands(name: str) -> None:
    """The header's command makes what the header expects; comments further down have no command."""
    lines = (PROJECT / "zoo" / "recipes" / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    header = len(list(takewhile(lambda line: line.startswith("#"), lines)))
    assert any(line.startswith("# Command:") for line in lines[:header])
    assert [line for line in lines[header:] if line.startswith("#") and _NUMBER.search(line)] == []


def test_the_quickstart_keeps_what_its_recipe_promises() -> None:
    (expected,) = re.findall(r"^# Expected: .*$", (PROJECT / "zoo/recipes/quickstart.toml").read_text(), re.MULTILINE)
    reached = {
        row["artefact"]: 100 * row["top1"]
        for row in read(PROJECT / "bench/results" / ACCURACY)
        if (row["dataset"], row["split"]) == ("mnist5k", "test")
    }
    promised = {"resnet": "ResNet", "vit-full": "ViT full", "vit-lora": "ViT LoRA"}
    for artefact, said in promised.items():
        (least,) = re.findall(rf"{said} >= (\d+) %", expected)
        assert reached[artefact] >= float(least)
