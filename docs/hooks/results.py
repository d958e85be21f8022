"""Shows the images and the report that `pocketzoo bench publish` keeps in bench/results/, which lies beside docs/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "bench/results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not below docs/."""
    for path in sorted((ROOT / RESULTS).rglob("*")):
        if path.suffix in (".png", ".html"):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links of top-level pages that hold in the repository hold in the site, whose root is docs/."""
    return markdown.replace(f"](../{RESULTS}/", f"]({RESULTS}/")
