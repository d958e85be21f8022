"""`pocketzoo explain attention`."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from tests.zoo.explain.inside.test_attention_view import PHOTO, make_vit
from zoo.base.errors import ArtefactError, ImageError, UsageError
from zoo.commands.explain.attention import attention

APP = typer.Typer()
APP.command()(attention)


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments], catch_exceptions=False)


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(PHOTO)
    return path


def test_pictures_side_by_side(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = make_vit(tmp_path, "one"), make_vit(tmp_path, "two", seed=1)
    result = _run(one, two, "--image", photo, "--label", "dog")
    assert result.exit_code == 0 and result.stdout == "one/explain/attention.png\n"
    both = _size(one / "explain" / "attention.png")
    assert _run(one, "--image", photo, "--out", tmp_path / "alone.png").exit_code == 0
    alone = _size(tmp_path / "alone.png")
    assert both[1] > 1.5 * alone[1] and abs(both[0] - alone[0]) < 0.2 * alone[0]


@pytest.mark.parametrize("method", ["heads", "rollout", "gradient"])
def test_every_method(tmp_path: Path, photo: Path, method: str) -> None:
    folder = make_vit(tmp_path, "one")
    result = _run(folder, "--image", photo, "--method", method, "--block", "0", "--fusion", "max")
    assert result.exit_code == 0
    assert (folder / "explain" / f"attention-{method}.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--method", "head"), UsageError, "unknown method 'head'; did you mean heads"),
        (("--fusion", "sum"), UsageError, "unknown fusion of heads 'sum'"),
        (("--label", "dok"), UsageError, "unknown label 'dok'; did you mean dog"),
        (("--block", "7"), UsageError, "--block 7: one has the blocks 0 to 1"),
        (("--out", "x.jpg"), UsageError, "expected a name ending in .png, found .jpg"),
    ],
)
def test_wrong_options(
    tmp_path: Path, photo: Path, arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _run(make_vit(tmp_path, "one"), "--image", photo, *arguments)


def test_wrong_files(tmp_path: Path, photo: Path) -> None:
    folder = make_vit(tmp_path, "one")
    with pytest.raises(ArtefactError, match=r"missing\.png: cannot be read"):
        _run(folder, "--image", tmp_path / "missing.png")
    with pytest.raises(ImageError, match=r"model\.safetensors: "):
        _run(folder, "--image", folder / "model.safetensors")
    with pytest.raises(ArtefactError, match="no checkpoint at"):
        _run(tmp_path / "nothing", "--image", photo)
    assert not (folder / "explain").exists()
