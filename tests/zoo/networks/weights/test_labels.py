"""Label sets: ImageNet in the order of the networks' outputs, and text files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.data import ImageNetInfo

from zoo.base.errors import UsageError
from zoo.networks.weights.labels import imagenet_labels, imagenet_subset, read_labels

SIZES = {
    "imagenet-1k": 1000,
    "imagenet-12k": 11821,
    "imagenet-21k-goog": 21843,
    "imagenet-21k-miil": 11221,
    "imagenet-22k": 21841,
    "imagenet-22k-ms": 21842,
}


@pytest.mark.parametrize(("subset", "classes"), SIZES.items())
def test_every_edition_is_distinct_and_in_order(subset, classes):
    labels = imagenet_labels(subset)
    assert imagenet_subset(classes) == subset
    assert len(labels) == len(set(labels)) == classes
    info = ImageNetInfo(subset)
    for index in range(0, classes, 97):
        assert info.index_to_description(index).startswith(labels[index].split(" (n")[0])


def test_known_indices():
    # As in Keras' imagenet_class_index.json, but for the words that two classes share.
    labels = imagenet_labels("imagenet-1k")
    assert {index: labels[index] for index in (0, 1, 309, 310, 999)} == {
        0: "tench",
        1: "goldfish",
        309: "bee",
        310: "ant",
        999: "toilet tissue",
    }
    assert ImageNetInfo().index_to_label_name(310) == "n02219486"
    assert (labels[134], labels[517]) == ("crane (n02012849)", "crane (n03126707)")
    assert (labels[638], labels[639]) == ("maillot (n03710637)", "maillot (n03710721)")
    assert sum("(" in label for label in labels) == 4


def test_other_numbers_are_no_edition():
    assert [imagenet_subset(classes) for classes in (0, 2, 512, 1001, 19168)] == [None] * 5


@given(st.lists(st.text("ab -", min_size=1).map(str.strip).filter(bool), min_size=2, max_size=6, unique=True))
def test_files(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("labels") / "l.txt"
    path.write_text("\ufeff" + "\r\n".join(labels) + "\n\n", encoding="utf-8", newline="")
    assert read_labels(path) == tuple(labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected at least two labels, one per line, got 0"),
        (b"ant\n", "expected at least two labels, one per line, got 1"),
        (b"ant\n\nbee\n", "line 2 is empty"),
        (b"ant\nbee\nant\n", r"'ant' is on the lines 1 and 3; labels must differ"),
        (b"\xff\xfeant", r"expected a text file with one label per line \(.*utf-8"),
    ],
)
def test_files_that_are_refused(tmp_path, content, message):
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(UsageError, match=r"--labels .*l\.txt: .*" + message):
        read_labels(tmp_path / "l.txt")


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match=r"--labels .*gone\.txt: expected a text file .*No such file"):
        read_labels(tmp_path / "gone.txt")
