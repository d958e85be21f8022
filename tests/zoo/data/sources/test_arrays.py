"""MNIST, Fashion-MNIST and CIFAR-10 from files in the official formats."""

from __future__ import annotations

import gzip
import os
import pickle
from collections import Counter

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

from tests.zoo.data.web import idx, md5, tgz
from zoo.artefact.preprocess import decode
from zoo.base.errors import DataError
from zoo.data.dataset import SPLITS
from zoo.data.sources.arrays import cifar10, fashion_mnist, mnist

RANDOM = np.random.default_rng(0)
TRAIN, TEST = (RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8) for count in (100, 20))
TRAIN[7] = TEST[3]
NAMES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz")
DIGITS = {count: np.arange(count, dtype=np.uint8) % 10 for count in (100, 20)}


def _publish(site, monkeypatch, official, contents):
    names = (*NAMES, "t10k-labels-idx1-ubyte.gz")
    site.files.update(zip(names, contents, strict=True))
    monkeypatch.setattr(official, "mirrors", [site.url("")])
    pairs = [(name, md5(content)) for name, content in zip(names, contents, strict=True)]
    monkeypatch.setattr(official, "resources", pairs)


@pytest.fixture
def published(site, data_home, monkeypatch):
    contents = [idx(TRAIN), idx(DIGITS[100]), idx(TEST), idx(DIGITS[20])]
    for official in (MNIST, FashionMNIST):
        _publish(site, monkeypatch, official, contents)
    return contents


@pytest.mark.parametrize(
    ("open_it", "name", "label"), [(mnist, "mnist", "2"), (fashion_mnist, "fashion_mnist", "Pullover")]
)
def test_mnist_and_fashion_mnist(published, open_it, name, label):
    dataset = open_it(seed=2)
    assert (dataset.name, dataset.labels[2], dataset.colour, dataset.photographs) == (name, label, "L", False)
    assert [len(dataset.splits[split]) for split in SPLITS][1:] == [20, 20]
    assert sum(len(dataset.splits[split]) for split in SPLITS) == 119
    assert "1 image(s) dropped from" in dataset.rule
    assert Counter(sample.label for sample in dataset.splits["validation"]) == dict.fromkeys(range(10), 2)
    sample = dataset.splits["test"][3]
    assert (sample.name, sample.label) == ("test:3", 3)
    for sample in (*dataset.splits["train"], *dataset.splits["test"]):
        source = {"train": TRAIN, "test": TEST}[sample.name.split(":")[0]]
        assert np.array_equal(np.asarray(decode(sample.read(), colour="L")), source[int(sample.name.split(":")[1])])


@pytest.mark.parametrize(
    "broken",
    [
        gzip.compress(b"\0\0\x08"),
        gzip.compress(b"\0\0\x08\x03" + bytes(12) + b"too much"),
        idx(TRAIN[0]),
        idx(TRAIN)[:-200],
        b"not gzip",
    ],
    ids=["no header", "too long", "two axes", "cut off", "not gzip"],
)
def test_broken_idx_files(published, site, monkeypatch, broken):
    _publish(site, monkeypatch, MNIST, [broken, *published[1:]])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: (expected an IDX file|cannot be unpacked)"):
        mnist()


def test_labels_out_of_range(published, site, monkeypatch):
    _publish(site, monkeypatch, MNIST, [published[0], idx(DIGITS[100] + 1), *published[2:]])
    with pytest.raises(DataError, match="train:9: expected a label below 10, got 10"):
        mnist()


KINDS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ROWS = RANDOM.integers(0, 256, (120, 3072), dtype=np.uint8)


def _batch(rows: slice) -> bytes:
    """What Python 2 and its NumPy wrote: protocol 2, byte strings, `numpy.core`, whole numbers for truth values."""
    data, labels = ROWS[rows], [number % 10 for number in range(120)[rows]]
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR(K\x01(K"
        + bytes([len(data)])
        + b"M\x00\x0ctcnumpy\ndtype\n(U\x02u1K\0K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T"
        + data.size.to_bytes(4, "little")
        + data.tobytes()
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


def _cifar_files() -> dict[str, bytes]:
    files = {f"data_batch_{number + 1}": _batch(slice(20 * number, 20 * number + 20)) for number in range(5)}
    files |= {"test_batch": _batch(slice(100, 120)), "batches.meta": pickle.dumps({"label_names": KINDS}, protocol=2)}
    return {f"cifar-10-batches-py/{name}": content for name, content in files.items()}


def _publish_cifar(site, monkeypatch, files):
    content = tgz(files)
    site.files["cifar-10-python.tar.gz"] = content
    monkeypatch.setattr(CIFAR10, "url", site.url("cifar-10-python.tar.gz"))
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))


def test_cifar10(site, data_home, monkeypatch):
    _publish_cifar(site, monkeypatch, _cifar_files())
    dataset = cifar10(seed=1)
    assert (dataset.name, dataset.labels, dataset.colour) == ("cifar10", tuple(KINDS), "RGB")
    assert [len(dataset.splits[split]) for split in SPLITS] == [80, 20, 20]
    for sample in (*dataset.splits["train"], *dataset.splits["test"]):
        split, number = sample.name.split(":")
        row = ROWS[int(number) + (100 if split == "test" else 0)]
        assert sample.label == int(number) % 10
        assert np.array_equal(np.asarray(decode(sample.read())), np.moveaxis(row.reshape(3, 32, 32), 0, -1))


class _Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/pocketzoo-was-here",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_2", pickle.dumps(_Evil()), r"unexpected content, nothing was run: (posix|nt)\.system is not"),
        ("data_batch_2", pickle.dumps(np.load), r"unexpected content, nothing was run: numpy\.load is not"),
        ("data_batch_2", pickle.dumps({"data": ROWS[:2]}), "not as published: KeyError"),
        ("test_batch", pickle.dumps({"data": ROWS[:2, :5], "labels": [1, 2]}), "not as published: ValueError"),
        ("batches.meta", b"\x80", "unexpected content, nothing was run"),
        ("batches.meta", b"(K", "unexpected content, nothing was run"),
        ("batches.meta", None, r"batches\.meta is missing; is it the right archive"),
    ],
)
def test_cifar10_with_other_content(site, data_home, monkeypatch, name, content, message):
    files = _cifar_files() | {f"cifar-10-batches-py/{name}": content}
    _publish_cifar(site, monkeypatch, {key: value for key, value in files.items() if value is not None})
    with pytest.raises(DataError, match=message):
        cifar10()


def test_addresses_and_checksums_are_torchvisions():
    assert MNIST.mirrors[0].startswith("https://ossci-datasets.s3.amazonaws.com/mnist/")
    assert [name for name, _ in MNIST.resources] == [name for name, _ in FashionMNIST.resources]
    assert [name for name, _ in MNIST.resources[:3]] == list(NAMES)
    assert CIFAR10.url.startswith("https://www.cs.toronto.edu/~kriz/") and len(CIFAR10.tgz_md5) == 32
