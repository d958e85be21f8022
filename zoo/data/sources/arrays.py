"""Data sets that are published as arrays of small images: MNIST, Fashion-MNIST, CIFAR-10.

`N` is the number of images, `H` and `W` their size.

Each image becomes a PGM or PPM file in memory (a header and its pixels), which takes no time to make and is decoded
like any other file: 70,000 MNIST images took 0.02 s and 58 MB this way, 3.1 s and 22 MB as PNG; 60,000 of CIFAR-10
0.04 s and 187 MB against 7.7 s and 149 MB (measured on the developers' machine).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import pickle
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.base.errors import DataError
from zoo.data.dataset import Dataset, Sample
from zoo.data.sources.download import Remote, data_root, fetch
from zoo.data.sources.official import official_dataset

__all__ = ["cifar10", "fashion_mnist", "mnist"]


def mnist(seed: int = 0) -> Dataset:
    """60,000 handwritten digits to train on and 10,000 for the test, 28 x 28 greyscale.

    LeCun, Cortes & Burges 1998, The MNIST database of handwritten digits.

    Args:
        seed: of the validation images, which are carved out of the training images.

    Raises:
        DataError: it cannot be downloaded, or the files are not as published.
    """
    return _idx("mnist", "MNIST", tuple("0123456789"), seed)


def fashion_mnist(seed: int = 0) -> Dataset:
    """60,000 images of clothes to train on and 10,000 for the test, 28 x 28 greyscale, 10 kinds.

    Xiao, Rasul & Vollgraf 2017, Fashion-MNIST; https://github.com/zalandoresearch/fashion-mnist
    Arguments and errors of :func:`mnist`. The publisher's address is plain http; the checksum is what vouches for it.
    """
    return _idx("fashion_mnist", "FashionMNIST", None, seed)


def cifar10(seed: int = 0) -> Dataset:
    """50,000 photographs to train on and 10,000 for the test, 32 x 32 RGB, 10 kinds of objects.

    Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images; https://www.cs.toronto.edu/~kriz/cifar.html
    Arguments and errors of :func:`mnist`. The publisher's format is a pickle; it is read by an unpickler that can
    make NumPy arrays and nothing else.
    """
    from torchvision.datasets import CIFAR10

    path = fetch(Remote(url=CIFAR10.url, md5=CIFAR10.tgz_md5), data_root())
    names = {
        "train": [name for name, _ in CIFAR10.train_list],
        "test": [name for name, _ in CIFAR10.test_list],
        "meta": [CIFAR10.meta["filename"]],
    }
    content = _unpickle_members(path, CIFAR10.base_folder, [name for group in names.values() for name in group])
    samples: dict[str, list[Sample]] = {}
    try:
        labels = tuple(str(label) for label in content[names["meta"][0]][CIFAR10.meta["key"]])
        for split in ("train", "test"):
            images = np.concatenate([np.asarray(content[name]["data"], np.uint8) for name in names[split]])
            kinds = [label for name in names[split] for label in content[name]["labels"]]
            # Each row is the red, then the green, then the blue plane.
            pixels = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # [N, 32, 32, 3]
            samples[split] = _samples(split, pixels, kinds, len(labels))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not as published: {error!r}") from error
    return official_dataset("cifar10", labels, samples, seed=seed, photographs=False)


def _idx(name: str, class_name: str, labels: tuple[str, ...] | None, seed: int) -> Dataset:
    from torchvision import datasets

    official = getattr(datasets, class_name)
    folder = data_root() / class_name / "raw"
    # The first address alone: the others serve the same files, and an error names one place to get them from.
    paths = [fetch(Remote(url=f"{official.mirrors[0]}{file}", md5=md5), folder) for file, md5 in official.resources]
    labels = labels or tuple(official.classes)
    samples = {}
    for split, (images, kinds) in {"train": paths[:2], "test": paths[2:]}.items():
        samples[split] = _samples(split, _read_idx(images, 3), _read_idx(kinds, 1).tolist(), len(labels))
    return official_dataset(name, labels, samples, seed=seed, colour="L", photographs=False)


def _read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """An IDX file of bytes: two zeros, 8, the number of dimensions, big-endian sizes, the values."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}") from error
    header = 4 + 4 * dimensions
    shape = np.frombuffer(raw, ">u4", dimensions, 4).tolist() if len(raw) >= header else [-1]
    if raw[:4] != bytes([0, 0, 8, dimensions]) or len(raw) != header + math.prod(shape):
        raise DataError(f"{path}: expected an IDX file of bytes with {dimensions} dimension(s), got something else")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _samples(split: str, images: npt.NDArray[np.uint8], labels: Iterable[int], classes: int) -> list[Sample]:
    """Images uint8 [N, H, W] or [N, H, W, 3] as PGM or PPM files."""
    kind = "P5" if images.ndim == 3 else "P6"
    header = f"{kind} {images.shape[2]} {images.shape[1]} 255\n".encode()
    found = []
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        if not 0 <= label < classes:
            raise DataError(f"{split}:{index}: expected a label below {classes}, got {label}")
        pixels = image.tobytes()
        digest = hashlib.sha256(pixels).hexdigest()
        found.append(Sample(name=f"{split}:{index}", label=int(label), digest=digest, source=header + pixels))
    return found


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries, lists, strings, numbers and NumPy arrays; refuses any other class or function."""

    _ALLOWED = frozenset(
        {("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module.rpartition(".")[2], name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not what an array needs")
        if name == "_reconstruct":
            # The public way to the same function, whose module has moved between versions of NumPy.
            return np.empty(0).__reduce__()[0]
        return super().find_class(module, name)


def _unpickle_members(path: Path, folder: str, names: Iterable[str]) -> dict[str, Any]:
    try:
        with tarfile.open(path, "r:gz") as tar:
            wanted = {f"{folder}/{name}": name for name in names}
            content = {}
            for member in tar:
                if member.name in wanted and (stream := tar.extractfile(member)):
                    unpickler = _ArraysOnly(io.BytesIO(stream.read()), encoding="latin1")
                    content[wanted[member.name]] = unpickler.load()
    except (pickle.UnpicklingError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: unexpected content, nothing was run: {error}") from error
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}; delete it and try again") from error
    if missing := sorted(set(wanted.values()) - set(content)):
        raise DataError(f"{path}: {missing[0]} is missing; is it the right archive?")
    return content
