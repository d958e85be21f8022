"""SHA-256 of the wheels that the image installs: from this project's own list, else from the index that pip uses."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from packaging.utils import canonicalize_name

from serve.shipping.requirements import PYTHON
from zoo.base.errors import ArtefactError

__all__ = ["LIST", "known_hashes", "with_hashes"]

LIST = "requirements.txt"
"""Beside this module: the packages at the pinned versions, with hashes. A shipment's file of that name renews it."""

# PEP 600: Debian 12, whose C library the smallest base image of Python has, takes all wheels up to its own version.
_PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)), "manylinux2014_x86_64", "linux_x86_64")
_SECONDS = 600


def with_hashes(pins: Sequence[str]) -> tuple[str, ...]:
    """`name==version --hash=sha256:...` of each `name==version`, as `pip install --require-hashes` wants it.

    Raises:
        ArtefactError: pip is not installed, cannot reach its index, or the index lacks a wheel for the image.
    """
    known = known_hashes()
    unknown = [pin for pin in pins if pin not in known]
    known |= _asked(unknown) if unknown else {}
    return tuple(f"{pin} --hash=sha256:{known[pin]}" for pin in pins)


def known_hashes() -> dict[str, str]:
    """`name==version` -> 64 hexadecimal digits, as this project lists them."""
    text = (files("serve.shipping") / LIST).read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {pin: option.removeprefix("--hash=sha256:") for pin, option in lines}


def _asked(pins: Sequence[str]) -> dict[str, str]:
    """What the index says of the wheels that pip would take in the image."""
    with tempfile.TemporaryDirectory(prefix="pocketzoo-ship-") as name:
        wanted, report = Path(name) / "wanted.txt", Path(name) / "report.json"
        wanted.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-input", "--ignore-installed"]
        command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "30", "--no-deps"]
        command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON]
        command += [word for platform in _PLATFORMS for word in ("--platform", platform)]
        command += ["--target", f"{name}/nothing", "--report", str(report), "--requirement", str(wanted)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise _unknown(pins, f"pip was not done after {_SECONDS} s") from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
            raise _unknown(pins, lines[-1].removeprefix("ERROR: ") if lines else "pip failed without a reason")
        found = {
            f"{canonicalize_name(entry['metadata']['name'])}=={entry['metadata']['version']}": entry["download_info"]
            for entry in json.loads(report.read_text(encoding="utf-8"))["install"]
        }
    hashes = {pin: found.get(pin, {}).get("archive_info", {}).get("hashes", {}).get("sha256") for pin in pins}
    if lacking := [pin for pin, digest in hashes.items() if not digest]:
        raise _unknown(lacking, "its index has none")
    return hashes


def _unknown(pins: Sequence[str], reason: str) -> ArtefactError:
    what = pins[0] if len(pins) == 1 else f"{pins[0]} and {len(pins) - 1} others"
    return ArtefactError(
        f"{what}: expected the hashes of their wheels from pip's index, got none: {reason}; run it where pip reaches "
        f"an index, or ship versions alone with --no-hashes"
    )
