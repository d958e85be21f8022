"""The commands of each tutorial run in their order, in one working directory; long ones get flags for short ones."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import run_cli, twice_as_fast
from tests.docs.conftest import PAGES, blocks
from zoo.base.files import PROJECT
from zoo.networks.own.table import OWN

SMALL = "--set size=64 --set train.epochs=1"
SHORTER = {
    "--minutes 10": f"{SMALL} --set recover.fit.epochs=1 --set quantize.keep=any --set quantize.max_drop=100",
    "train --data photos": f"train --data photos {SMALL}",
    "compress --data photos": f"compress --data photos {SMALL} --set recover.fit.epochs=1",
    "vit_tiny_patch16_224 --weights pretrained": "vit_tiny_patch16_224 --weights none --set arguments.img_size=64",
    "train --recipe few-labels": "train --recipe few-labels --set train.epochs=1 --set images_per_split=300",
    "import tf_efficientnet_lite0": "import tf_efficientnet_lite0 --size 64",
    "probe photos": "probe photos --size 64",
    "--minutes 5": "--minutes 0.001",
    "quantize output/lite0": "quantize output/lite0 --keep any",
}
"""What a command of a tutorial gets besides, or instead, to take seconds. Weights of a hub need a network."""

TUTORIALS = ("folder", "compress", "lora", "few-labels", "ship", "score", "add-a-network")


def _lines(page: str) -> list[str]:
    return [line.partition("  #")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]


def _run(command: str) -> None:
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    if command.startswith("tar "):
        subprocess.run(shlex.split(command), check=True)
        return
    done = run_cli(*shlex.split(command)[1:])
    assert done.exit_code == 0, f"{command}\n{done.output}"


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """`bentoml serve`, of what lies below the folder's output/."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("bentoml"), "serve", "--port", str(port)],
            cwd=PROJECT,
            env=os.environ | {"POCKETZOO_OUTPUT": str(folder / "output"), "PYTHONPATH": str(PROJECT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(300):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        else:
            pytest.fail(f"the server was not ready in a minute\n{(folder / 'server.log').read_text()}")
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_the_commands_run_in_their_order(tutorial: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.quantize.trials.measure_speed", twice_as_fast)
    lines = _lines(f"tutorials/{tutorial}.md")
    if tutorial == "add-a-network":
        (module,) = blocks("tutorials/add-a-network.md", "python")
        exec(compile(module, "add-a-network.md", "exec"), {"__name__": "pyramid"})
    commands = [line for line in lines if line.startswith(("pocketzoo ", "tar "))]
    asked = [line for line in lines if line.startswith("curl ")]
    assert len(commands) + len(asked) + lines.count("bentoml serve") == len(lines)
    try:
        for command in commands:
            _run(command)
    finally:
        OWN.pop("pyramid", None)
    if not asked:
        return
    assert shutil.which("curl"), "the tutorial asks the server with curl; install it"
    with _served(desk) as address:
        for line in asked:
            words = shlex.split(line.replace("localhost:3000", address))
            answer = subprocess.run([*words, "--fail-with-body", "-sS"], capture_output=True, text=True, check=False)
            assert answer.returncode == 0, f"{line}\n{answer.stdout}{answer.stderr}"


def test_the_results_are_read_as_the_tutorial_says(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in _lines("tutorials/score.md")[:3]:
        _run(command)
    (reader,) = blocks("tutorials/score.md", "python")
    exec(compile(reader, "score.md", "exec"), {})
    said = capsys.readouterr().out
    assert " 32\n" in said
    assert "probabilit" in said


def test_the_notebook_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(PAGES / "tutorials" / "chain.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(desk)}}).execute()
    said = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("output/tiny-resnet-pruned/model.int8.onnx: " in text for text in said), said
    assert any("recover" in text and "quantize" in text for text in said)
