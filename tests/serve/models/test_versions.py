import shutil

import pytest

import serve.models.versions
from serve.models.model import load_model
from serve.models.versions import VersionStore
from tests.serve.conftest import write_artefact
from zoo.base.errors import ArtefactError


@pytest.fixture
def deploy(tmp_path):
    """deploy(seed): the model of that seed, written to the models' folder and loaded."""
    path = tmp_path / "models" / "a" / "model.onnx"
    return lambda seed, name="a": load_model(name, write_artefact(path, seed=seed), threads=1)


def test_versions_are_kept_in_the_order_of_their_deployment(tmp_path, deploy):
    store = VersionStore(tmp_path, keep=3)
    assert store.versions("a") == []
    one = deploy(1)
    store.add(one)
    two = deploy(2)
    store.add(two)
    assert store.versions("a") == [two.version, one.version]
    assert store.previous("a", two.version) == one.version
    assert store.previous("a", one.version) is None
    store.add(deploy(1))
    assert store.versions("a") == [one.version, two.version]
    assert store.previous("a", one.version) == two.version


def test_a_kept_version_survives_the_file_being_overwritten_in_place(tmp_path, deploy):
    store = VersionStore(tmp_path, keep=3)
    model = deploy(1)
    store.add(model)
    with model.path.open("r+b") as file:
        file.truncate()
        file.write(b"something else")
    assert store.load("a", model.version).digest == model.digest


def test_the_oldest_are_dropped_unless_they_are_needed(tmp_path, deploy):
    store = VersionStore(tmp_path, keep=1)
    models = []
    for seed in range(3):
        models.append(deploy(seed))
        store.add(models[-1], needed={models[0].version})
    # The latest, one older than it, and what is needed.
    store.add(deploy(3), needed={models[0].version})
    assert store.versions("a")[1:] == [models[2].version, models[0].version]


def test_a_damaged_copy_is_not_loaded(tmp_path, deploy):
    store = VersionStore(tmp_path, keep=3)
    one = deploy(1)
    store.add(one)
    shutil.copyfile(deploy(2).path, store.path("a", one.version))
    with pytest.raises(ArtefactError, match=f"damaged: expected the version {one.version}, found "):
        store.load("a", one.version)


def test_what_is_not_kept_says_what_is(tmp_path, deploy):
    store = VersionStore(tmp_path, keep=3)
    with pytest.raises(ArtefactError, match="version 0123456789ab of 'a' is not kept; no version of it is"):
        store.load("a", "0123456789ab")
    model = deploy(1)
    store.add(model)
    with pytest.raises(ArtefactError, match=f"kept: {model.version}"):
        store.load("a", "0123456789ab")
    assert "POCKETZOO_KEEP_VERSIONS is 0" in VersionStore(tmp_path / "none", keep=0).explain("a")


@pytest.mark.parametrize("version", ["../../a", "..", "", "0123456789AB", "0123456789abc", "0" * 11 + "\n"])
def test_only_versions_name_files(tmp_path, deploy, version):
    store = VersionStore(tmp_path, keep=3)
    store.add(deploy(1))
    assert store.path("a", version) is None


def test_names_with_a_slash_stay_in_the_folder(tmp_path, deploy):
    store = VersionStore(tmp_path, keep=3)
    model = deploy(1, name="../a/model.int8.onnx")
    store.add(model)
    assert store.path(model.name, model.version).parent.parent == tmp_path / "versions"


def test_a_folder_that_cannot_be_written_is_warned_of_once(tmp_path, deploy, caplog):
    (tmp_path / "file").write_text("in the way")
    store = VersionStore(tmp_path / "file", keep=3)
    store.add(deploy(1))
    store.add(deploy(2))
    assert len(caplog.records) == 1
    assert "none are: " in store.explain("a")
    assert store.versions("a") == []


def test_a_full_disk_leaves_nothing_behind(tmp_path, deploy, monkeypatch):
    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serve.models.versions.shutil, "copyfile", full)
    store = VersionStore(tmp_path, keep=3)
    store.add(deploy(1))
    assert "No space left on device" in store.problem
    assert [path for path in (tmp_path / "versions").rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    store.add(deploy(2))
    assert store.problem is None


def test_a_file_that_changed_before_it_was_copied_is_not_kept(tmp_path, deploy):
    store = VersionStore(tmp_path, keep=3)
    model = deploy(1)
    deploy(2)
    store.add(model)
    assert store.versions("a") == []
    assert "was changed while it was copied" in store.problem
