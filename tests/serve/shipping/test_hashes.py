"""Hashes of wheels: from the project's list, from an index, or an error."""

import base64
import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from serve.shipping import hashes
from serve.shipping.hashes import known_hashes, with_hashes
from serve.shipping.requirements import pinned_requirements
from zoo.base.errors import ArtefactError

ROOT = Path(__file__).resolve().parents[3]


def _wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any") -> str:
    """Write a wheel that holds nothing but its metadata (PEP 427); its SHA-256."""
    inside = f"{name}-{version}.dist-info"
    files = {
        f"{inside}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{inside}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    files[f"{inside}/RECORD"] = f"{record}{inside}/RECORD,,\n"
    wheel = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """pip finds packages in this folder, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_what_the_project_lists_is_not_asked_for(index):
    listed = known_hashes()
    pins = list(listed)[:3]
    assert with_hashes(pins) == tuple(f"{pin} --hash=sha256:{listed[pin]}" for pin in pins)


def test_the_list_has_every_pinned_package_of_the_server_and_no_other():
    pins = known_hashes()
    assert len(pins) > 70
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in pins.values())
    constraints = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    constraints = constraints.replace("onnxruntime-gpu", "onnxruntime")
    lines = {line.partition(";")[0].strip() for line in constraints.splitlines()}
    assert pins.keys() <= lines
    # `name==version` where the tests run may differ from what is pinned; which packages there are may not.
    assert {pin.partition("==")[0] for pin in pins} == {pin.partition("==")[0] for pin in pinned_requirements()}


def test_no_address_of_an_index_is_in_the_list():
    lines = Path(hashes.__file__).with_name(hashes.LIST).read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[a-z0-9-]+==[0-9a-z.]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)


def test_others_have_the_hash_of_the_wheel_that_the_image_takes(index):
    mine = _wheel(index, "pocketzoo_test_one", "1.2")
    _wheel(index, "pocketzoo_test_one", "1.3")
    _wheel(index, "pocketzoo_test_two", "0.1", "cp312-cp312-manylinux_2_28_x86_64")
    linux = _wheel(index, "pocketzoo_test_two", "0.1", "cp311-cp311-manylinux_2_28_x86_64")
    _wheel(index, "pocketzoo_test_two", "0.1", "cp311-cp311-macosx_11_0_arm64")
    assert with_hashes(["pocketzoo-test-one==1.2", "pocketzoo-test-two==0.1"]) == (
        f"pocketzoo-test-one==1.2 --hash=sha256:{mine}",
        f"pocketzoo-test-two==0.1 --hash=sha256:{linux}",
    )


def test_a_wheel_that_was_changed_is_not_installed(index, tmp_path):
    _wheel(index, "pocketzoo_test_one", "1.2")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("".join(f"{line}\n" for line in with_hashes(["pocketzoo-test-one==1.2"])))
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--quiet"]
    command += ["--target", str(tmp_path / "there"), "-r", str(requirements)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    (wheel,) = index.iterdir()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("pocketzoo_test_one.py", "")
    done = subprocess.run([*command, "--upgrade"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr


@pytest.mark.parametrize(
    ("wheels", "pins", "message"),
    [
        ((), ["pocketzoo-test-one==1.2"], r"pocketzoo-test-one==1\.2: expected the hashes .*No matching.*--no-hashes"),
        (
            (("pocketzoo_test_one", "1.2", "cp311-cp311-win_amd64"),),
            ["pocketzoo-test-one==1.2", "b==2", "c==3"],
            r"pocketzoo-test-one==1\.2 and 2 others: expected the hashes .*--no-hashes",
        ),
    ],
)
def test_without_an_index_or_a_wheel_for_linux_it_is_an_error(index, wheels, pins, message):
    for wheel in wheels:
        _wheel(index, *wheel)
    with pytest.raises(ArtefactError, match=message):
        with_hashes(pins)


def test_without_pip_it_is_an_error(index, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(hashes.sys, "executable", str(python))
    with pytest.raises(ArtefactError, match=r"No module named pip.*--no-hashes"):
        with_hashes(["pocketzoo-test-one==1.2"])


def test_a_plain_bento_installs_the_list_and_takes_every_model():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["bentoml"]["build"]
    assert (ROOT / build["python"]["requirements_txt"]).samefile(Path(hashes.__file__).with_name(hashes.LIST))
    assert {f"/output/*/{file}" for file in ("model.onnx", "model.int8.onnx", "model.fp16.onnx")} < set(
        build["include"]
    )
