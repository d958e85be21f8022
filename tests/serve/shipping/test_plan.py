"""What `pocketzoo ship` writes: complete, valid, and enough to build an image from."""

import ast
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from packaging.utils import canonicalize_name

from serve.shipping.plan import MANIFEST, plan_shipment, write_shipment
from serve.shipping.requirements import pinned_requirements
from serve.shipping.sources import server_sources
from tests.serve.conftest import BENTOML_WARNINGS, write_artefact
from tests.serve.shipping.container_steps import Container
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError, PocketzooError, UsageError
from zoo.base.files import sha256_file

pytestmark = BENTOML_WARNINGS


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_what_can_be_served_and_says_so(shipment, folder, output):
    models = {"output/good/model.onnx", "output/other/model.onnx", "output/other/model.int8.onnx"}
    assert {path for path in _files(folder) if path.startswith("output/")} == models
    for path in models:
        assert (folder / path).read_bytes() == (output / path.removeprefix("output/")).read_bytes()
    assert len(shipment.left_out) == 2
    assert "liar/model.onnx" in shipment.left_out[0]
    assert "torn/model.onnx" in shipment.left_out[1]
    manifest = json.loads((folder / MANIFEST).read_text())
    assert {entry["target"]: entry["digest"] for entry in manifest["models"]} == {
        path: sha256_file(folder / path) for path in models
    }


def test_the_sources_are_enough_and_no_more(folder):
    found = _files(folder)
    assert {"serve/service.py", "serve/page/assets/index.html", "zoo/__init__.py", "zoo/artefact/predictor.py"} <= found
    assert not [
        path
        for path in found
        if path.startswith(
            ("serve/shipping", "serve/bulk", "serve/commands", "zoo/training", "zoo/networks", "compress")
        )
    ]
    distributions = importlib.metadata.packages_distributions()
    pinned = {line.partition("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()}
    assert len(pinned) > 50
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            # Two are asked for only where they are installed; scipy for intervals of six rounds, which it never has.
            ours = {"serve", "zoo", "openvino", "pillow_heif", "scipy"}
            for name in {name.partition(".")[0] for name in names} - ours - sys.stdlib_module_names:
                providers = {canonicalize_name(provider) for provider in distributions[name]}
                providers |= {"onnxruntime"} if name == "onnxruntime" else set()
                assert providers & pinned, f"{path} imports {name}, which is not in requirements.txt"


def test_the_server_is_imported_from_the_folder_alone(folder):
    code = (
        "import pathlib, sys, serve.service, zoo\n"
        "from serve.settings import read_settings\n"
        "here = pathlib.Path.cwd()\n"
        "assert pathlib.Path(serve.service.__file__).is_relative_to(here), serve.service.__file__\n"
        "assert pathlib.Path(zoo.__file__).is_relative_to(here), zoo.__file__\n"
        "assert read_settings().models == here / 'output', read_settings().models\n"
        "heavy = {'torch', 'timm', 'pandas', 'matplotlib', 'compress', 'bench'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("POCKETZOO_", "PYTHONPATH"))}
    subprocess.run([sys.executable, "-B", "-c", code], cwd=folder, env=kept, check=True, timeout=60)


@pytest.mark.parametrize(
    ("variables", "models"),
    [
        ({}, "bento/src/output"),
        ({"POCKETZOO_MODELS": "elsewhere"}, "elsewhere"),
        ({"POCKETZOO_OUTPUT": "made"}, "made"),
        ({"POCKETZOO_OUTPUT": ""}, "bento/src/output"),
    ],
)
def test_a_bento_serves_its_own_models_wherever_it_is_called(folder, tmp_path, variables, models):
    source = tmp_path / "bento" / "src"
    shutil.copytree(folder, source)
    (tmp_path / "bento" / "bento.yaml").write_text("")
    code = "import serve.service; from serve.settings import read_settings; print(read_settings().models.absolute())"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("POCKETZOO_", "PYTHONPATH"))}
    run = [sys.executable, "-B", "-c", f"import sys; sys.path.insert(0, {str(source)!r}); {code}"]
    done = subprocess.run(
        run, cwd=tmp_path, env=kept | variables, check=True, timeout=60, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()) == tmp_path / models


def test_a_module_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "a.py").write_text("def torn(")
    with pytest.raises(ArtefactError, match=r"serve/a\.py: expected a module"):
        server_sources(tmp_path)


def test_imports_are_followed_through_packages_and_functions(tmp_path):
    for name, text in {
        "serve/__init__.py": "",
        "serve/a.py": "def f():\n    from zoo.deep import one\n",
        "serve/page/x.css": "",
        "serve/shipping/b.py": "import zoo.unused",
        "serve/__pycache__/a.pyc": "",
        "zoo/__init__.py": "",
        "zoo/deep/__init__.py": "import zoo.other",
        "zoo/deep/one.py": "import numpy",
        "zoo/deep/two.py": "",
        "zoo/other.py": "from . import nothing",
        "zoo/unused.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(server_sources(tmp_path)) == [
        "serve/__init__.py",
        "serve/a.py",
        "serve/page/x.css",
        "zoo/__init__.py",
        "zoo/deep/__init__.py",
        "zoo/deep/one.py",
        "zoo/other.py",
    ]


def test_requirements_are_the_installed_versions_without_torch_and_cuda():
    pins = dict(line.split("==") for line in pinned_requirements())
    assert {"bentoml", "httptools", "numpy", "onnx", "onnxruntime", "pillow", "uvicorn", "uvloop"} <= pins.keys()
    assert not {"onnxruntime-gpu", "pocketzoo", "torch", "timm", "pandas", "matplotlib", "pytest"} & pins.keys()
    for name, version in pins.items():
        installed = "onnxruntime-gpu" if name == "onnxruntime" and _has("onnxruntime-gpu") else name
        assert importlib.metadata.version(installed) == version


def _has(name: str) -> bool:
    return any(canonicalize_name(found.name) == name for found in importlib.metadata.distributions())


def test_a_package_that_is_not_installed_is_an_error(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ArtefactError, match=r"pocketzoo: the server needs it in the image.*`make setup`"):
        pinned_requirements()


def test_a_folder_of_something_else_is_left_alone_and_a_shipment_replaced(shipment, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    with pytest.raises(UsageError, match="photos: expected a new folder"):
        write_shipment(shipment, tmp_path / "photos")
    assert _files(tmp_path) == {"photos/cat.jpg"}
    out = tmp_path / "deep" / "out"
    write_shipment(shipment, out)
    first = _files(out)
    (out / "output" / "stale").mkdir()
    (out / "output" / "stale" / "model.onnx").write_text("stale")
    write_shipment(shipment, out)
    assert _files(out) == first
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_file_in_the_way_is_an_error(shipment, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a new folder"):
        write_shipment(shipment, tmp_path / "file")
    with pytest.raises(ArtefactError, match="cannot be written"):
        write_shipment(shipment, tmp_path / "file" / "below")


def test_a_model_that_changes_while_it_is_copied_is_noticed(tmp_path):
    path = write_artefact(tmp_path / "output" / "a" / "model.onnx", seed=1)
    shipment = plan_shipment((), root=tmp_path / "output")
    write_artefact(path, seed=2)
    with pytest.raises(ArtefactError, match="changed while it was copied"):
        write_shipment(shipment, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_artefacts_are_chosen_by_folder_or_file(output):
    chosen = plan_shipment([output / "good", output / "other" / "model.int8.onnx"], root=output)
    assert [model.target for model in chosen.models] == ["output/good/model.onnx", "output/other/model.int8.onnx"]
    assert chosen.left_out == ()


def test_every_file_that_the_server_serves_is_shipped(tmp_path):
    files = ["model.onnx", "model.int8.onnx", "model.fp16.onnx"]
    root = tmp_path / "output"
    for file in files:
        write_artefact(root / "a" / file)
    write_artefact(root / "bad:name" / "model.onnx")
    (root / "linked").symlink_to(write_artefact(tmp_path / "v3" / "model.onnx").parent)
    targets = [model.target for model in plan_shipment((), root=root).models]
    assert targets == [*(f"output/a/{file}" for file in files), "output/linked/model.onnx"]


def test_what_cannot_be_served_is_not_shipped(output, tmp_path):
    with pytest.raises(PocketzooError, match="golden self-check failed"):
        plan_shipment([output / "good", output / "liar"], root=output)
    with pytest.raises(ArtefactError, match="no ONNX file at"):
        plan_shipment([output / "checkpoint-only"], root=output)
    other = write_artefact(tmp_path / "a" / "model.int4.onnx")
    with pytest.raises(UsageError, match=r"expected a file called model\.onnx, model\.int8\.onnx or model\.fp16\.onnx"):
        plan_shipment([other], root=output)
    with pytest.raises(ArtefactError, match=r"no artefact to ship.*found none"):
        plan_shipment((), root=tmp_path / "nowhere")
    clash = write_artefact(tmp_path / "good" / "model.onnx")
    with pytest.raises(UsageError, match=r"would both be output/good/model\.onnx"):
        plan_shipment([output / "good", clash], root=output)


def test_the_tag_names_the_contents(output, tmp_path):
    first, again = (plan_shipment([output / "good"], root=output).image for _ in range(2))
    assert first == again
    assert re.fullmatch(r"pocketzoo:[0-9a-f]{12}", first)
    assert plan_shipment([output / "other"], root=output).image != first


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("name", value) for value in ("", "Zoo", "1zoo", "zoo-", "z" * 59, "a_b", "zoo\n")),
        *(("image", value) for value in ("", "Zoo", "zoo:", "zoo:a b", "ghcr.io//zoo", "http://zoo", "zoo\nRUN x")),
        *(("replicas", value) for value in (0, -1, 1001)),
        *(("cores", value) for value in (0, -2, 257)),
    ],
)
def test_a_value_that_does_not_fit_is_refused(output, option, value):
    with pytest.raises(UsageError, match=f"--{option} .*expected"):
        plan_shipment([output / "good"], root=output, **{option: value})


def test_the_command_writes_the_folder(output, tmp_path, monkeypatch, capsys):
    from serve.commands.ship import ship

    monkeypatch.setenv("POCKETZOO_OUTPUT", str(output))
    ship(tmp_path / "out", [output / "good"], name="zoo", as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["models"] == ["output/good/model.onnx"]
    assert answer["image"].startswith("zoo:")
    assert answer["engine"] == "onnxruntime"
    assert answer["bytes"]["models"] == (output / "good" / "model.onnx").stat().st_size
    assert answer["bytes"]["models"] + answer["bytes"]["packages"] < answer["bytes"]["image"] < 600e6
    memory = answer["memory_bytes"]
    assert 60e6 < memory["worker"] < memory["request"] < memory["limit"]
    assert (tmp_path / "out" / "Containerfile").is_file()
    ship(tmp_path / "out", None)
    printed = capsys.readouterr()
    assert "3 models" in printed.out
    read_me = (tmp_path / "out" / "README.md").read_text()
    for beginning in ("image: ", "engine: ONNX Runtime; --engine openvino would add ", "memory: ", "limit: "):
        (line,) = [line for line in printed.out.splitlines() if line.startswith(beginning)]
        assert f"- {line}" in read_me
    assert "left out: " in printed.err


# What follows does what an image is built of, without a container: pip needs the network, and half a minute.
soak = pytest.mark.skipif(os.environ.get("POCKETZOO_SOAK") != "1", reason="needs the network; POCKETZOO_SOAK=1 runs it")


@pytest.fixture(scope="module")
def container(folder, tmp_path_factory):
    """The container file's steps, done in a folder."""
    built = Container(context=folder, root=tmp_path_factory.mktemp("container"))
    built.build()
    yield built
    shutil.rmtree(built.root)


@contextlib.contextmanager
def _running(command: list[str], **options):
    """A server that is ready: its process and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([str(port) if word == "3000" else word for word in command], **options)
    try:
        for _ in range(600):
            assert process.poll() is None
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            time.sleep(0.1)
        else:
            pytest.fail("not ready in a minute")
        yield process, port
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _command(container: Container) -> list[str]:
    program, *arguments = container.command
    return [str(container.python.with_name(program)), *arguments]


def _label(port: int, image: bytes) -> str:
    response = httpx.post(f"http://127.0.0.1:{port}/predict", files={"images": ("a.png", image)}, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()["predictions"][0]["label"]


def _healthy(container: Container, port: int) -> bool:
    code = container.healthcheck[-1].replace(":3000/", f":{port}/")
    return subprocess.run([container.python, "-c", code], capture_output=True, timeout=30).returncode == 0


def _written(container: Container) -> dict[str, float]:
    """Everything that is not below /tmp, with its time of change."""
    paths = [path for path in container.root.rglob("*") if path.is_file() and not path.is_symlink()]
    return {
        path.as_posix(): path.stat().st_mtime for path in paths if path.relative_to(container.root).parts[0] != "tmp"
    }


@soak
def test_the_steps_of_the_container_file_install_no_torch_and_all_that_is_needed(container):
    run = [container.python, "-m", "pip", "check", "--disable-pip-version-check"]
    assert subprocess.run(run, env=container.environment, capture_output=True).returncode == 0
    for package in ("torch", "pandas", "matplotlib", "pocketzoo"):
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is not None)"
        assert subprocess.run([container.python, "-c", code], cwd=container.root).returncode == 0, package
    # What the base image has besides the C library: nothing else may be looked for outside of the wheels.
    libraries = [path for path in container.root.rglob("*.so*") if path.is_file()]
    assert len(libraries) > 50
    done = subprocess.run(["ldd", *libraries], capture_output=True, text=True)
    assert "not found" not in done.stdout
    outside = {Path(found).name for found in re.findall(r"=> (/(?:usr/)?lib\S+)", done.stdout)}
    assert {name.partition(".so")[0] for name in outside} <= {
        "libc",
        "libdl",
        "libgcc_s",
        "libm",
        "libpthread",
        "librt",
        "libstdc++",
        "libutil",
        "libz",
    }


@soak
def test_the_server_of_the_container_answers_writes_only_to_tmp_and_ends_in_order(container, output, draw):
    before = _written(container)
    options = {"cwd": container.cwd, "env": container.environment}
    with _running(_command(container), **options) as (process, port):
        assert _label(port, draw(0)) == Predictor(output / "good" / "model.onnx").predict([draw(0)])[0].labels[0]
        assert _healthy(container, port)
        processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
        (worker,) = [found for found in processes if "--worker-id" in found.cmdline()]
        assert worker.memory_info().rss < 300e6
        assert not [region.path for region in worker.memory_maps() if "/torch/" in region.path]

        form = b'--q\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + draw(0)
        form += b"\r\n--q--\r\n"
        head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=q"
        head += b"\r\nContent-Length: %d\r\n\r\n" % len(form)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(head + form[:100])
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            time.sleep(3)
            assert process.poll() is None
            client.sendall(form[100:])
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert process.wait(30) == 0
        assert not worker.is_running()
        assert not _healthy(container, port)
    assert _written(container) == before


@soak
def test_a_bento_of_the_folder_is_built_and_answers(container, folder, output, draw):
    home = container.root / "tmp" / "bentos"
    environment = {**container.environment, "BENTOML_HOME": str(home)}
    environment.pop("POCKETZOO_MODELS")
    bentoml = container.python.with_name("bentoml")
    done = subprocess.run([bentoml, "build"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (bento,) = (home / "bentos" / "pocketzoo").glob("*/bento.yaml")
    models = {path.relative_to(folder) for path in folder.glob("output/*/*.onnx")}
    assert {path.relative_to(bento.parent / "src") for path in (bento.parent / "src").glob("output/*/*")} == models
    packages = (bento.parent / "env" / "python" / "requirements.txt").read_text()
    for line in (folder / "requirements.txt").read_text().splitlines():
        assert all(word in packages for word in line.split()), line
    assert "torch" not in packages
    command = [str(bentoml), "serve", "pocketzoo:latest", "--port", "3000"]
    with _running(command, cwd=container.root / "tmp", env=environment) as (process, port):
        assert _label(port, draw(0)) == Predictor(output / "good" / "model.onnx").predict([draw(0)])[0].labels[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
