"""Data sets by name or folder."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.zoo.factories import encode, picture
from zoo.base.errors import DataError, UsageError
from zoo.data.catalogue import DATASETS, open_dataset
from zoo.data.splits import Thin

EMBEDDED = {"digits": 10, "mnist5k": 10}


def test_embedded_by_name_and_limited(output):
    dataset = open_dataset("digits", per_split=20)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == dict.fromkeys(dataset.splits, 20)
    assert open_dataset("digits", per_split=20) is dataset


@pytest.mark.parametrize("name", EMBEDDED)
def test_what_is_said_of_the_embedded_ones(output, name):
    dataset = open_dataset(name)
    assert DATASETS[name].classes == len(dataset.labels)
    assert DATASETS[name].images == sum(map(len, dataset.splits.values()))


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in EMBEDDED])
def test_without_a_network_every_other_one_says_where_its_files_go(output, tmp_path, monkeypatch, name):
    import urllib.error

    from zoo.data.sources import download

    def refuse(url, part, tag):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(download, "_transfer", refuse)
    monkeypatch.setenv("POCKETZOO_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        open_dataset(name)
    text = str(caught.value)
    assert text.startswith("cannot download http") and ": no network; download it elsewhere (" in text
    assert f"put it at {tmp_path}/" in text and ("MD5 " in text or "no checksum is published" in text)


def test_every_name_has_its_facts():
    assert len(DATASETS) == 13
    for entry in DATASETS.values():
        assert 2 <= entry.classes < entry.images
        assert entry.source.startswith(("package ", "http")) and entry.terms


def test_folder_by_path(output, tmp_path):
    for label in ("a", "b"):
        for index in range(4):
            path = tmp_path / "pets" / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(index + 10 * (label == "b"))))
    dataset = open_dataset(str(tmp_path / "pets"), seed=3)
    assert (dataset.name, dataset.labels) == ("pets", ("a", "b"))
    assert dataset.rule.endswith("seed 3")


def test_neither(output):
    with pytest.raises(
        UsageError, match=r"\(or folder or list that does not exist\) 'oxford_pets'; did you mean oxford_pet"
    ):
        open_dataset("oxford_pets")


def test_limited_then_thinned_then_with_fewer_labels(output):
    dataset = open_dataset("digits", per_split=200, thin=Thin(classes=("3", "4"), keep=0.5), labels=0.3)
    labelled, others = (Counter(s.label for s in found) for found in (dataset.splits["train"], dataset.unlabelled))
    assert [labelled[label] for label in range(10)] == [3 if label in (3, 4) else 6 for label in range(10)]
    assert [others[label] for label in range(10)] == [7 if label in (3, 4) else 14 for label in range(10)]
    assert [len(dataset.splits[split]) for split in ("validation", "test")] == [200, 200]
    assert dataset.rule.endswith(
        "; the first 200 of each split, class by class; 0.5 of the train images of 3, 4 kept, seed 0"
        "; labels of 0.3 of train kept, stratified, seed 0"
    )
    assert len({dataset.digest, open_dataset("digits", per_split=200).digest}) == 2


def test_labels_out_of_range(output):
    with pytest.raises(UsageError, match="labels: expected a share above 0 and at most 1, got 0"):
        open_dataset("digits", labels=0)
