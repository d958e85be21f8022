"""Images without labels: any layout, in the order of their paths, each once."""

from __future__ import annotations

import hashlib
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zoo.factories import encode, picture
from zoo.base.errors import DataError
from zoo.data.folders.image_files import verified_samples
from zoo.data.folders.unlabelled import UNKNOWN, open_images, sample_images

pytestmark = pytest.mark.usefixtures("output")

CONTENTS = [encode(picture(seed)) for seed in range(4)]
names = st.text("ab", min_size=1, max_size=2)
folders = st.lists(st.one_of(names, names.map(".{}".format)), max_size=3)
files = st.tuples(names, st.sampled_from([".png", ".PNG", ".jpg", ".txt", ""]))


def _put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@given(st.dictionaries(st.tuples(folders.map(tuple), files), st.sampled_from(CONTENTS), max_size=8))
def test_any_layout(layout):
    paths = {Path(*parents, "f-" + name + suffix): content for (parents, (name, suffix)), content in layout.items()}
    wanted: dict[str, Path] = {}
    for path in sorted(paths):
        if path.suffix.lower() in (".png", ".jpg") and not any(part.startswith(".") for part in path.parts):
            wanted.setdefault(hashlib.sha256(paths[path]).hexdigest(), path)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "photos"
        root.mkdir()
        for path, content in paths.items():
            _put(root / path, content if path.suffix.lower() in (".png", ".jpg") else b"no image")
        if not wanted:
            with pytest.raises(DataError, match=r"photos: no images below it; expected files ending in \.apng"):
                open_images(root)
            return
        found = open_images(root)
        assert {sample.digest: Path(sample.name) for sample in found} == wanted
        assert [Path(sample.name) for sample in found] == sorted(wanted.values())
        assert {sample.label for sample in found} == {UNKNOWN}
        assert all(sample.read() == paths[Path(sample.name)] for sample in found)


def test_the_first_of_equal_pictures_stays(tmp_path):
    for name in ("b/2.png", "a/9.png", "1.png"):
        _put(tmp_path / name, CONTENTS[0])
    assert [sample.name for sample in open_images(tmp_path)] == ["1.png"]
    _put(tmp_path / "0/3.png", CONTENTS[0])
    assert [sample.name for sample in open_images(tmp_path)] == ["0/3.png"]


def test_unreadable_pictures_are_skipped_with_a_note(tmp_path, capsys):
    for number in range(20):
        _put(tmp_path / f"{number}.png", encode(picture(number)))
    _put(tmp_path / "broken.jpg", b"no image")
    assert len(open_images(tmp_path)) == 20
    assert "1 not used: unreadable (broken.jpg: cannot decode" in capsys.readouterr().err
    _put(tmp_path / "too.jpg", b"no image either")
    with pytest.raises(DataError, match=r"2 of 22 images would not be used, more than 5%: unreadable \(broken\.jpg: "):
        open_images(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"gone: expected a folder of images, found nothing there; name the folder"):
        open_images(tmp_path / "gone")
    with pytest.raises(DataError, match=r"1\.png: expected a folder of images, found a file there"):
        open_images(_put(tmp_path / "1.png", CONTENTS[0]))


def test_a_folder_that_is_named_like_a_picture_is_looked_into(tmp_path):
    _put(tmp_path / "odd.png/1.png", CONTENTS[0])
    assert [sample.name for sample in open_images(tmp_path)] == ["odd.png/1.png"]


def _counted(monkeypatch):
    """Names of the files that are looked at."""
    looked = []

    def counted(groups, labels, root, *, white=None):
        looked.extend(file.name for files in groups.values() for file in files)
        return verified_samples(groups, labels, root, white=white)

    monkeypatch.setattr("zoo.data.folders.unlabelled.verified_samples", counted)
    return looked


def test_of_many_images_only_those_drawn_are_read(tmp_path, monkeypatch):
    for number in range(3000):
        # What is not drawn is not read: most of these are no images.
        _put(tmp_path / f"{number % 7}" / f"{number}.png", b"")
    drawn = sorted(f"{number % 7}/{number}.png" for number in range(3000))
    random.Random(5).shuffle(drawn)
    for place, name in enumerate(drawn[:12]):
        _put(tmp_path / name, encode(picture(place)))
    looked = _counted(monkeypatch)
    found = sample_images(tmp_path, 12, seed=5)
    assert sorted(looked) == sorted(drawn[:12]) == [sample.name for sample in found]
    assert {sample.label for sample in found} == {UNKNOWN}


def test_for_copies_others_are_drawn(tmp_path, monkeypatch):
    for number in range(40):
        _put(tmp_path / f"{number:02}.png", encode(picture(number % 20)))
    looked = _counted(monkeypatch)
    found = sample_images(tmp_path, 15)
    assert len(found) == len({sample.digest for sample in found}) == 15
    assert 15 < len(looked) < 40


def test_of_copies_of_a_few_images_not_all_are_read(tmp_path, monkeypatch, capsys):
    for number in range(200):
        _put(tmp_path / f"{number:03}.png", encode(picture(number % 5)))
    looked = _counted(monkeypatch)
    assert len(sample_images(tmp_path, 10)) == 5
    assert len(looked) == 40
    told = "40 of 200 images are looked at, drawn with the seed 0; only 5 of them differ"
    assert told in capsys.readouterr().err


def test_of_files_that_are_no_images_not_all_are_read(tmp_path, monkeypatch):
    for number in range(200):
        _put(tmp_path / f"{number:03}.png", b"no image")
    looked = _counted(monkeypatch)
    with pytest.raises(DataError, match=r"40 of 40 images would not be used, more than 5%: unreadable"):
        sample_images(tmp_path, 10)
    assert len(looked) == 40


def test_a_folder_of_no_more_images_is_taken_whole(tmp_path):
    for number in range(8):
        _put(tmp_path / f"{number}.png", encode(picture(number % 6)))
    assert sample_images(tmp_path, 6) == sample_images(tmp_path, 100, seed=3) == open_images(tmp_path)
    with pytest.raises(DataError, match="found nothing there"):
        sample_images(tmp_path / "gone", 3)


def test_other_images_are_noticed(tmp_path):
    for number in range(50):
        _put(tmp_path / f"{number}.png", encode(picture(number)))
    before = sample_images(tmp_path, 10)
    assert sample_images(tmp_path, 10) == before
    _put(tmp_path / before[3].name, encode(picture(77)))
    assert {sample.digest for sample in sample_images(tmp_path, 10)} != {sample.digest for sample in before}
