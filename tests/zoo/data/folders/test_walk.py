"""Listing a folder: which files are opened to see whether they are images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.factories import encode, picture
from zoo.data.folders import walk as module
from zoo.data.folders.walk import walk

pytestmark = pytest.mark.usefixtures("output")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder apart from that of artefacts."""
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content is looked at; of a suffix, three in a row are enough."""
    found: list[str] = []
    kind = module._kind

    def counted(path: str) -> str | None:
        found.append(Path(path).name)
        return kind(path)

    monkeypatch.setattr(module, "_kind", counted)
    monkeypatch.setattr(module, "_OPENED", 3)
    return found


def test_of_files_beside_images_only_the_first_are_opened(root: Path, opened: list[str]) -> None:
    for number in range(6):
        (root / f"{number}.png").write_bytes(b"")
        (root / f"{number}.json").write_text("{}")
    found = walk(root)
    assert opened == ["0.json", "1.json", "2.json"]
    assert found.images == [f"{number}.png" for number in range(6)]
    assert [(entry.file, entry.reason, entry.lost) for entry in found.unused] == [
        (f"{number}.json", "no images (.json)", False) for number in range(6)
    ]


def test_where_one_is_an_image_others_are_looked_for(root: Path, opened: list[str]) -> None:
    for number in range(8):
        (root / f"{number}.dat").write_bytes(encode(picture(number), "WEBP") if number == 2 else b"none")
        (root / f"{number}").write_bytes(b"none")
    found = walk(root)
    assert [name for name in opened if name.endswith(".dat")] == [f"{number}.dat" for number in range(6)]
    assert [name for name in opened if not name.endswith(".dat")] == [str(number) for number in range(8)]
    assert [entry.file for entry in found.unused if entry.lost] == ["2.dat"]
