"""Tests of compress.quantize.targets."""

from __future__ import annotations

import pytest

from compress.quantize import targets
from compress.quantize.targets import detect_target


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("aarch64", [], "arm"),
        ("x86_64", ["avx2"], "portable"),
        ("x86_64", ["avx2", "avx512_vnni"], "vnni"),
        ("x86_64", ["avx2", "avx_vnni"], "vnni"),
    ],
)
def test_detect_target(monkeypatch: pytest.MonkeyPatch, machine: str, flags: list[str], expected: str) -> None:
    import cpuinfo

    monkeypatch.setattr(targets.platform, "machine", lambda: machine)
    monkeypatch.setattr(cpuinfo, "get_cpu_info", lambda: {"flags": flags})
    assert detect_target() == expected
