"""Writes the page of recipes from the comments on top of their files."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).resolve().parents[2] / "zoo" / "recipes"
FACTS = ("Reproduces", "Command", "Hardware", "Minutes", "Expected")
INTRO = """# Recipes

`pocketzoo train --recipe NAME` (or `make train compress export RECIPE=NAME`) takes one of these; a path that ends in
`.toml` is one of your own. Each says what was measured here, with which data; what was not run here says so. [Keys of
a recipe](keys.md) lists what they may contain.
"""


def facts(path: Path) -> dict[str, str]:
    """What the comment on top of a recipe says, by its first words."""
    found: dict[str, str] = {}
    name = ""
    for line in takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines()):
        text = line.removeprefix("#").strip()
        start, colon, rest = text.partition(":")
        if colon and start in FACTS:
            name, text = start, rest.strip()
        found[name] = f"{found.get(name, '')} {text}".strip()
    assert set(found) == set(FACTS), f"{path}: {sorted(found)}"
    return found


def page() -> str:
    """Markdown with a section for each recipe."""
    sections = [INTRO]
    for path in sorted(FOLDER.glob("*.toml")):
        told = facts(path)
        lines = [f"## {path.stem}\n", f"{told['Reproduces']}\n", f"```text\n{told['Command']}\n```\n"]
        lines += [f"- {name}: {told[name]}" for name in ("Hardware", "Minutes", "Expected")]
        content = path.read_text(encoding="utf-8").partition("\n\n")[2]
        lines.append(f'\n??? note "{path.name}"\n\n    ```toml\n')
        lines[-1] += "".join(f"    {line}\n" if line else "\n" for line in content.splitlines()) + "    ```\n"
        sections.append("\n".join(lines))
    return "\n".join(sections)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, "reference/recipes.md", content=page()))
    return files
