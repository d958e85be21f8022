"""The site builds without a broken link, loads nothing from elsewhere, and its generated pages are whole."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serve.settings import Settings
from zoo.artefact.card import Card
from zoo.base.files import PROJECT
from zoo.main import load_commands
from zoo.training.recipe import Run, recipe_names


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=PROJECT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _page(site: Path, name: str) -> str:
    return re.sub(r"<[^>]+>", "", (site / name / "index.html").read_text(encoding="utf-8"))


def test_no_page_loads_anything_from_other_servers(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    loading = re.compile(r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//|<link[^>]+(?:stylesheet|preconnect)[^>]+//")
    assert [str(page) for page in pages if loading.search(page.read_text(encoding="utf-8"))] == []


def test_every_command_has_a_section(site: Path) -> None:
    text = _page(site, "reference/commands")
    names = [
        command.name or command.callback.__name__.replace("_", "-") for command in load_commands().registered_commands
    ]
    assert len(names) > 20
    assert [name for name in names if f"pocketzoo {name}" not in text] == []


@pytest.mark.parametrize(
    ("page", "kind", "inside"),
    [
        (
            "reference/keys",
            Run,
            ["train.lr", "train.augment.mixup", "train.freeze.unfreeze", "recover.fit", "prune.macs"],
        ),
        ("reference/card", Card, ["use.input.resize.rule", "inform.metrics.top1", "lineage.parent", "build.lora.rank"]),
    ],
)
def test_every_field_has_its_line(site: Path, page: str, kind: type, inside: list[str]) -> None:
    text = _page(site, page)
    for name in [*(field.name for field in dataclasses.fields(kind)), *inside]:
        assert re.search(rf"^{re.escape(name)} \(", text, re.MULTILINE), name


def test_every_setting_and_every_recipe_is_there(site: Path) -> None:
    settings, recipes = _page(site, "reference/settings"), _page(site, "reference/recipes")
    assert [f.name for f in dataclasses.fields(Settings) if f"POCKETZOO_{f.name.upper()} (" not in settings] == []
    assert [
        name for name in recipe_names() if f"--recipe {name}" not in recipes and f"{name}.toml" not in recipes
    ] == []
