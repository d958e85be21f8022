"""Image files that are read once (test_folder has what folders of them may look like)."""

from __future__ import annotations

import pytest

from tests.zoo.factories import encode, picture
from zoo.base.errors import DataError
from zoo.data.folders.image_files import ImageFile, files_of_classes, read_image_files


@pytest.fixture
def root(tmp_path, output):
    for place in ("cat/1.png", "cat/deep/2.jpg", "dog/3.png", "dog/.4.png", ".hidden/5.png", "dog/6.txt"):
        path = tmp_path / "root" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(len(place))))
    return tmp_path / "root"


def test_files_class_by_class(root):
    found = files_of_classes(root, root.parent)
    assert [(file.name, file.label) for file in found] == [
        ("root/cat/1.png", "cat"),
        ("root/cat/deep/2.jpg", "cat"),
        ("root/dog/3.png", "dog"),
    ]


def test_samples_of_several_groups_in_order(root):
    files = files_of_classes(root, root)
    samples, unused = read_image_files({"a": files[:1], "b": files[1:]}, ("dog", "cat"), root)
    assert unused == ()
    assert {group: [(s.name, s.label) for s in found] for group, found in samples.items()} == {
        "a": [("cat/1.png", 1)],
        "b": [("cat/deep/2.jpg", 1), ("dog/3.png", 0)],
    }
    assert samples["a"][0].source == str(root / "cat/1.png")


def test_a_missing_and_an_unreadable_file(root):
    with pytest.raises(DataError, match=r"an image is missing: 7\.png; unpack it again"):
        read_image_files({"a": [ImageFile(root / "7.png", "7.png", "cat")]}, ("cat",), root)
    (root / "dog/3.png").write_bytes(b"broken")
    with pytest.raises(
        DataError, match=r"1 of 3 images would not be used, more than 5%: unreadable \(dog 1; dog/3\.png: cannot decode"
    ):
        read_image_files({"a": files_of_classes(root, root)}, ("cat", "dog"), root)
