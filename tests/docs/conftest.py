"""What the pages of docs/ say that a reader types, and a working directory to type it in."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.base.files import PROJECT
from zoo.data.catalogue import open_dataset

PAGES = PROJECT / "docs"


def blocks(page: str, kind: str) -> list[str]:
    """The code blocks of one language in a page, in their order."""
    text = (PAGES / page).read_text(encoding="utf-8")
    found = re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no {kind}"
    return found


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a digit and a folder of photographs (dark and bright noise), and no output/ yet."""
    folder = tmp_path / "desk"
    folder.mkdir()
    (folder / "digit.png").write_bytes(open_dataset("mnist5k").splits["test"][0].read())
    for label, level in (("ants", 0), ("bees", 160)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(1, 17):
            noise = np.random.default_rng([level, number]).integers(0, 96, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(noise + np.uint8(level)).save(folder / "photos" / label / f"{number}.jpg")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("POCKETZOO_OUTPUT", raising=False)
    monkeypatch.setenv("POCKETZOO_CACHE", str(tmp_path / "cache"))
    open_dataset.cache_clear()
    return folder
