"""The documents' commands and code run, on what the recipe `tiny` made; their claims about files and names hold."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import run_cli, twice_as_fast
from zoo.data.catalogue import open_dataset

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Tutorials build on what their earlier commands made: tests/docs runs them in their order.
PAGES = ("commands.md", "guides/training.md", "guides/distributed.md")
PLACES = [ROOT / "README.md", *(ROOT / "docs" / page for page in PAGES)]
BLOCKS = [
    (path.stem, kind, text)
    for path in PLACES
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
]
COMMANDS = list(
    dict.fromkeys(
        line.partition("  #")[0].strip().removeprefix("$ ")
        for _, kind, text in BLOCKS
        if kind in ("sh", "console")
        for line in text.splitlines()
        if kind == "sh" or line.startswith("$ ")
    )
)
PYTHON = [
    pytest.param(text, id=f"{place}-{number}") for number, (place, kind, text) in enumerate(BLOCKS) if kind == "python"
]
LITE0 = "lite0-imagenet"

SHORTER = {
    "train --recipe auto": "train --recipe auto --set size=64 --epochs 1",
    "run --data": "run --set size=64 --epochs 1 --set recover.fit.epochs=1 --set quantize.images=8 --data",
    "bench race": "bench race --without timm --without fastai --image-size 64 --epochs pocketzoo=1",
    "--trials 20": "--trials 1 --set size=64 --set train.epochs=1",
    "lr-find": "lr-find --steps 16 --high 1 --set size=64",
    "advise": "advise --size 64",
    "probe": "probe --size 64",
    "import tf_efficientnet_lite0": "import tf_efficientnet_lite0 --size 64",
    "--minutes 5": "--minutes 0.001",
    "bench compare": "bench compare --peers ort,openvino --rounds 1 --seconds 0.05",
    "pocketzoo report": "pocketzoo report --rounds 1 --seconds 0.05",
    "bench training": "bench training --images 16 --batch 4 --epochs 1 --rounds 1 --image-size 32 --model test_resnet",
    "bench load": "bench load --scenario single-stream --seconds 0.3 --queries 10",
    "bench start": "bench start --rounds 1 --many 2 --megabytes 0.1",
    "bench serving": "bench serving --rounds 1 --seconds 0.2 --open-seconds 0.3 --overload-seconds 0.3",
}
"""What a long command gets besides, to be short."""


def localised(command: str, made: Path, folder: Path) -> list[str]:
    """The command's words with the quickstart's names replaced by the tiny recipe's, and paths by real ones."""
    command = command.replace("output/", f"{made}/tiny-")
    for image in ("digit.png", "photo.jpg"):
        command = command.replace(image, str(folder / image))
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    for made_file in ("shipped", "results"):
        command = command.replace(f" {made_file}", f" {folder / made_file}")
    for stand_in in ("path/to/folder", "path/to/images"):
        command = command.replace(stand_in, str(folder / "photographs"))
    return shlex.split(command)


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    """An image of one channel, with a photograph beside it."""
    path = tmp_path / "digit.png"
    path.write_bytes(open_dataset("mnist5k").splits["test"][0].read())
    noise = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    return path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Dark and bright images of noise, a folder of each."""
    folder = tmp_path / "photographs"
    for label, level in (("dark", 0), ("bright", 160)):
        (folder / label).mkdir(parents=True)
        for number in range(16):
            noise = np.random.default_rng([level, number]).integers(0, 96, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(noise + np.uint8(level)).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture
def copy(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the chain's artefacts, which commands may change."""
    folder = tmp_path / "output"
    shutil.copytree(chain, folder)
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(folder))
    monkeypatch.setattr("compress.quantize.trials.measure_speed", twice_as_fast)
    return folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `pocketzoo import` made, which other commands need."""
    folder = tmp_path_factory.mktemp("imported")
    (command,) = [line for line in COMMANDS if line.startswith("pocketzoo import")]
    assert run_cli(*localised(command, folder, folder)[1:]).exit_code == 0
    return folder / f"tiny-{LITE0}"


@pytest.fixture(scope="module")
def address(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`bentoml serve` in the repository's root, on the tiny recipe's artefacts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (tmp_path_factory.mktemp("server") / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("bentoml"), "serve", "--port", str(port)],
            cwd=ROOT,
            env=os.environ | {"POCKETZOO_OUTPUT": str(chain)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(300):
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        else:
            pytest.fail("the server was not ready in a minute")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_there_is_something_to_run() -> None:
    assert len(README.splitlines()) <= 150
    prose = re.sub(r"^```$.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL).splitlines()
    assert max(map(len, prose)) <= 120
    assert len(COMMANDS) >= 20
    assert {"make", "make test"} <= set(COMMANDS)
    assert {command.split()[0] for command in COMMANDS} == {"make", "pocketzoo", "bentoml", "curl", "pytest"}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    arguments = [word.replace("path/to/folder", "/tmp") for word in shlex.split(command)]
    done = subprocess.run([*arguments, "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pocketzoo" in done.stdout or "pytest" in done.stdout or "bentoml" in done.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("pocketzoo")])
def test_commands_run(command: str, copy: Path, digit: Path, photographs: Path, request: pytest.FixtureRequest) -> None:
    if "http://localhost:3000" in command:
        command = command.replace("http://localhost:3000", request.getfixturevalue("address"))
    if LITE0 in command:
        shutil.copytree(request.getfixturevalue("imported"), copy / f"tiny-{LITE0}")
    arguments = localised(command, copy, digit.parent)[1:]
    assert run_cli(*arguments).exit_code == 0


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("curl")])
def test_requests_are_answered(command: str, address: str, made: Path, digit: Path) -> None:
    words = localised(command, made, digit.parent)[1:]
    (url,) = [word.replace("localhost:3000", address.removeprefix("http://")) for word in words if "localhost" in word]
    if "--data-binary" in words:
        image = Path(words[words.index("--data-binary") + 1].removeprefix("@")).read_bytes()
        path = url.partition("/")[2].replace("vit-lora", "tiny-vit-lora")
        answer = httpx.post(f"{address}/{path}", content=image, headers={"Content-Type": "image/png"})
        assert answer.status_code == 200, answer.text
        return
    fields = [words[index + 1].partition("=") for index, word in enumerate(words) if word == "-F"]
    files = [(name, ("digit.png", Path(value[1:]).read_bytes())) for name, _, value in fields if value[0] == "@"]
    data = {name: f"tiny-{value}" for name, _, value in fields if value[0] != "@"}
    url = url if url.startswith("http") else f"http://{url}"
    answer = httpx.post(url, files=files, data=data) if files else httpx.get(url)
    assert answer.status_code == 200, answer.text
    assert "digest" in answer.text


@pytest.mark.parametrize("text", PYTHON)
def test_python_runs(text: str, made: Path, digit: Path, request: pytest.FixtureRequest) -> None:
    code = text.replace("output/", f"{made}/tiny-")
    if LITE0 in text:
        code = text.replace(f"output/{LITE0}", str(request.getfixturevalue("imported")))
    if "localhost:3000" in text:
        address = request.getfixturevalue("address")
        code = code.replace("http://localhost:3000", address)
        code = code.replace('"localhost:3000"', f'"{address.removeprefix("http://")}"')
    code = code.replace('model="resnet"', 'model="tiny-resnet"').replace('"vit-lora-int8"', '"tiny-vit-lora-int8"')
    subprocess.run([sys.executable, "-c", code], cwd=digit.parent, check=True)


def test_the_folders_it_names_exist() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in PLACES)
    for folder in re.findall(r"`((?:zoo|compress|serve|bench|tests|output)/[\w/.]*)`", texts):
        if "<" not in folder and not folder.startswith("output/"):
            assert (ROOT / folder).exists(), folder
