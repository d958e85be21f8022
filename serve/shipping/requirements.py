"""The packages that the server needs in the image, at the versions that are installed here, and what they take."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from zoo.base.errors import ArtefactError

__all__ = ["IMAGE", "PYTHON", "installed_bytes", "pinned_requirements"]

PYTHON = "3.11"

IMAGE: Mapping[str, str] = {
    "extra": "",
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": f"{PYTHON}.0",
    "python_version": PYTHON,
    "sys_platform": "linux",
}
"""What the markers of requirements see in the image (PEP 508, environment markers)."""

_PROJECT = "pocketzoo"
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_ONLY_GPU = "libonnxruntime_providers_"
"""How the files begin that `onnxruntime-gpu` has and `onnxruntime` has not."""


def pinned_requirements(also: Iterable[str] = ()) -> tuple[str, ...]:
    """`name==version` of this project's dependencies and theirs, without extras, in alphabetical order.

    `onnxruntime` takes the place of `onnxruntime-gpu`: both come out of one release with one API, but the image has no
    CUDA, and the GPU package is many times as large.

    Args:
        also: packages that are needed besides.

    Raises:
        ArtefactError: this project or a package is not installed, so that there is no version to pin.
    """
    versions: dict[tuple[str, str], str] = {}
    _collect(Requirement(_PROJECT), versions, why="the server")
    for name in also:
        _collect(Requirement(name), versions, why="the server")
    return tuple(sorted({f"{name}=={version}" for (name, _), version in versions.items() if name != _PROJECT}))


def installed_bytes(pins: Iterable[str]) -> int:
    """What the files of these packages take on the disk, in bytes, without what only a GPU needs."""
    total = 0
    for pin in pins:
        installed = _installed(pin.partition("==")[0], "the server")
        files = [file for file in installed.files or () if not file.name.startswith(_ONLY_GPU)]
        paths = [Path(str(installed.locate_file(file))) for file in files]
        total += sum(path.stat().st_size for path in paths if path.is_file())
    return total


def _collect(wanted: Requirement, versions: dict[tuple[str, str], str], *, why: str) -> None:
    name = canonicalize_name(wanted.name)
    name = canonicalize_name(_RUNTIMES[0]) if name in _RUNTIMES else name
    for extra in wanted.extras or {""}:
        if (name, extra) in versions:
            continue
        installed = _installed(name, why)
        versions[name, extra] = installed.version
        for text in installed.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({**IMAGE, "extra": extra}):
                _collect(needed, versions, why=name)


def _installed(name: str, why: str) -> importlib.metadata.Distribution:
    for candidate in _RUNTIMES if name in _RUNTIMES else (name,):
        try:
            return importlib.metadata.distribution(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ArtefactError(
        f"{name}: {why} needs it in the image, but it is not installed here, so that its version is unknown; "
        f"run `pocketzoo ship` where the server runs, on Linux, after `make setup`"
    )
