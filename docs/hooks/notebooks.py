"""Shows notebooks as pages: their text and their code, with a link to the file."""

from __future__ import annotations

from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def page(path: Path) -> str:
    """Markdown of a notebook."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
    parts.append(f"[The notebook itself]({path.name})")
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, which stays beside it for download."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            target = file.src_uri.removesuffix("ipynb") + "md"
            files.append(File.generated(config, target, content=page(Path(str(file.abs_src_path)))))
    return files
