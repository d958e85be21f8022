import gc
import shutil
import threading
import time
import weakref

import numpy as np
import pytest

import serve.models.loader
from serve.models.model import load_model
from serve.models.repository import Repository
from serve.protocols.http import Refused
from serve.settings import Settings
from tests.serve.conftest import write_artefact
from tests.serve.models.repositories import eventually, serving
from zoo.base.errors import ArtefactError, UsageError


@pytest.fixture
def models(tmp_path):
    """`a` is the default, `b` is another."""
    write_artefact(tmp_path / "a" / "model.onnx", seed=1, top1=0.9)
    write_artefact(tmp_path / "b" / "model.onnx", seed=2, top1=0.5)
    return tmp_path


def deploy(models, seed, name="a"):
    """Replace a model's file the way exporters do, and return the version."""
    return load_model(name, write_artefact(models / name / "model.onnx", seed=seed, top1=0.1), threads=1).version


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_nothing_to_serve_names_the_command(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=r"no artefact to serve: .*`make train compress export` writes them"):
        Repository(Settings(models=tmp_path / folder)).start()


def test_the_default_is_the_most_accurate_model_that_passes_its_check(output):
    with serving(output, keep_versions=0) as (repository, events):
        assert repository.default == "good"
        assert repository.names() == ("good", "liar", "other", "other-int8", "torn")
        assert repository.get(None).name == "good"
        # liar claims 0.99, so it was tried first.
        assert [event[:2] for event in events] == [("refused", "liar"), ("loaded", "good")]


def test_of_equally_accurate_models_the_smaller_file_is_the_default(tmp_path):
    for path in ("a/model.onnx", "b/model.int8.onnx", "c/model.onnx"):
        write_artefact(tmp_path / path, top1=0.5)
    # The folder's name is in the card.
    shutil.move(tmp_path / "a", tmp_path / "longer")
    write_artefact(tmp_path / "longest-of-all" / "model.onnx", top1=0.5)
    with serving(tmp_path) as (repository, _):
        assert repository.default == "b-int8"


def test_a_default_that_is_set_must_exist_and_work(output):
    with serving(output, default_model="other", keep_versions=0) as (repository, _):
        assert repository.default == "other"
    with pytest.raises(UsageError, match="POCKETZOO_DEFAULT_MODEL 'othre'; did you mean other"):
        Repository(Settings(models=output, default_model="othre")).start()
    with pytest.raises(ArtefactError, match=r"'liar' cannot be served: liar/model\.onnx: golden self-check failed"):
        Repository(Settings(models=output, default_model="liar")).start()


def test_no_model_works(output, tmp_path):
    for name in ("liar", "torn"):
        shutil.copytree(output / name, tmp_path / name)
    with pytest.raises(ArtefactError, match=r"none of the 2 artefacts can be served: liar: .*; torn: "):
        Repository(Settings(models=tmp_path)).start()


def test_what_is_not_in_memory_is_loaded_when_it_is_asked_for(models):
    with serving(models) as (repository, _):
        assert repository.get("b") is None
        model = repository.load("b")
        assert repository.get("b") is model is repository.get("b", model.version)


def test_unknown_names_and_versions_are_404(models, output):
    with serving(models) as (repository, _):
        for call in (repository.get, repository.load, repository.route, repository.rollback, repository.unpin):
            with pytest.raises(Refused, match="unknown model 'bb'; did you mean b") as caught:
                call("bb")
            assert caught.value.status == 404
        assert repository.get("b", "0123456789ab") is None
        with pytest.raises(Refused, match="unknown version '0123456789ab' of 'b'") as caught:
            repository.load("b", "0123456789ab")
        assert caught.value.status == 404


def test_a_broken_model_is_503_with_its_reason(output):
    with serving(output, keep_versions=0) as (repository, _):
        for _ in range(2):
            with pytest.raises(Refused, match=r"'torn' cannot be served: torn/model\.onnx: not a") as caught:
                repository.load("torn")
            assert caught.value.status == 503
            assert str(output) not in str(caught.value)
        with pytest.raises(Refused, match="'torn' cannot be served"):
            repository.get("torn")


def test_threads_that_ask_at_once_load_a_model_once(models, monkeypatch):
    loads = []

    def load(name, path, **options):
        loads.append(name)
        return load_model(name, path, **options)

    monkeypatch.setattr(serve.models.loader, "load_model", load)
    with serving(models) as (repository, _):
        found = []
        threads = [threading.Thread(target=lambda: found.append(repository.load("b"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert loads == ["a", "b"]
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_the_least_recently_used_model_makes_room(tmp_path):
    for index, name in enumerate("abcd"):
        write_artefact(tmp_path / name / "model.onnx", seed=index, top1=0.9 - index / 10)
    with serving(tmp_path, max_loaded=3) as (repository, events):
        gone = weakref.ref(repository.load("c"))
        repository.load("b")
        # The default is the oldest by now, but stays.
        repository.load("d")
        assert [repository.get(name) is not None for name in "abcd"] == [True, True, False, True]
        gc.collect()
        assert gone() is None
        assert events[-1][:2] == ("unloaded", "c")
        assert repository.load("c").name == "c"
        assert repository.get("b") is None


def test_a_swap_fails_no_request_and_mixes_no_versions(models):
    stop, failures, seen = threading.Event(), [], {}
    picture = np.ones((1, 3, 8, 8), np.float32)

    def hammer(repository):
        while not stop.is_set():
            try:
                model = repository.get("a") or repository.load("a")
                answers = [model.predictor(alone=alone).logits(picture) for alone in (True, False)]
                seen.setdefault((model.version, model.digest), []).append(np.concatenate(answers))
            except Exception as error:
                failures.append(error)

    with serving(models, poll_seconds=0.01, threads=2) as (repository, _):
        threads = [threading.Thread(target=hammer, args=(repository,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        versions = [repository.get("a").version]
        for seed in range(10, 16):
            versions.append(deploy(models, seed))
            assert eventually(lambda: repository.get("a").version == versions[-1])
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    # A version may be replaced before any of the threads has got the processor.
    assert {version for version, _ in seen} <= set(versions)
    assert len(seen) > 1
    for answers in seen.values():
        np.testing.assert_allclose(np.concatenate(answers), answers[0][:1].repeat(2 * len(answers), axis=0), rtol=1e-4)


def test_roll_back_after_the_file_was_overwritten_and_over_a_restart(models):
    with serving(models) as (repository, events):
        first = repository.get("a").version
        # In place, as `cp` does.
        newer = write_artefact(models / "new" / "model.onnx", seed=7, top1=0.1)
        shutil.copyfile(newer, models / "a" / "model.onnx")
        shutil.rmtree(models / "new")
        assert repository.reload().changed == ["a"]
        second = repository.get("a").version
        assert second != first
        assert repository.rollback("a").version == first
        assert repository.get("a").version == first
        assert events[-1] == ("rolled_back", "a", f"from {second} to {first}")
    with serving(models) as (repository, _):
        assert repository.get("a").version == first
        third = deploy(models, 8)
        assert repository.reload().changed == ["a"]
        # It is pinned.
        assert repository.get("a").version == first
        assert repository.unpin("a").version == third
        # Back to a version by its name, and by default to what was deployed before it.
        assert repository.rollback("a", second).version == second
        assert repository.rollback("a").version == first
        with pytest.raises(Refused, match="no older version of 'a' is kept; kept: ") as caught:
            repository.rollback("a")
        assert caught.value.status == 404


def test_roll_back_of_what_is_damaged_or_was_never_kept(models):
    with serving(models) as (repository, _):
        first = repository.get("a").version
        second = deploy(models, 7)
        repository.reload()
        (models / ".serve" / "versions" / "a" / f"{first}.onnx").write_bytes(b"damaged")
        with pytest.raises(Refused, match=f"version {first} of 'a' cannot be served") as caught:
            repository.rollback("a", first)
        assert caught.value.status == 503
        assert repository.get("a").version == second
        with pytest.raises(Refused, match="unknown version '000000000000' of 'a'; kept: "):
            repository.rollback("a", "000000000000")
    with (
        serving(models, keep_versions=0, state=models / ".other") as (repository, _),
        pytest.raises(Refused, match="no older version of 'a' is kept; none are, POCKETZOO_KEEP_VERSIONS is 0"),
    ):
        repository.rollback("a")


def test_where_nothing_can_be_written_serving_goes_on(models, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with serving(models, state=tmp_path / "file" / "state") as (repository, _):
        version = deploy(models, 7)
        repository.reload()
        assert repository.get("a").version == version
        with pytest.raises(Refused, match=r"no older version of 'a' is kept; none are: .*Not a directory") as caught:
            repository.rollback("a")
        assert caught.value.status == 404
        with pytest.raises(Refused, match="cannot be written") as caught:
            repository.set_split("a", to="b", percent=10)
        assert caught.value.status == 503
        assert all(repository.route("a", unit=unit).name == "a" for unit in (0.0, 0.05, 0.5))
    assert len(caplog.records) == 1


def test_a_split_sends_its_share_to_the_canary(models):
    with serving(models) as (repository, _):
        repository.set_split("a", to="b", percent=30)
        found = [repository.route(None, unit=unit / 1000).name for unit in range(1000)]
        assert found == ["b"] * 300 + ["a"] * 700
        assert repository.route("a", unit=0.99, force="canary").name == "b"
        assert repository.route("a", unit=0.0, force="stable").name == "a"
        # A request that names a version, or the canary, gets it.
        assert repository.route("a", repository.get("a").version, unit=0.0).name == "a"
        assert repository.route("b", unit=0.9).name == "b"
        with pytest.raises(Refused, match="unknown side of a traffic split 'cannary'; did you mean canary") as caught:
            repository.route("a", force="cannary")
        assert caught.value.status == 400
        repository.clear_split("a")
        assert repository.route("a", unit=0.0, force="canary").name == "a"


def test_a_split_between_versions(models):
    with serving(models) as (repository, _):
        old = repository.get("a").version
        new = deploy(models, 7)
        repository.reload()
        repository.set_split("a", to=old, percent=50)
        assert [repository.route("a", unit=unit).version for unit in (0.1, 0.9)] == [old, new]


def test_a_forced_canary_is_loaded_a_drawn_one_is_not_waited_for(models):
    with serving(models) as (repository, _):
        repository.set_split("a", to="b", percent=100)
    with serving(models, state=models / ".two") as (repository, _):
        repository.stop()  # the thread that would load the target
        (models / ".two").mkdir(exist_ok=True)
        shutil.copyfile(models / ".serve" / "state.json", models / ".two" / "state.json")
        repository.reload()
        assert repository.route("a", unit=0.0).name == "a"
        assert repository.route("a", unit=0.0, force="canary") is None
        assert repository.load("a", unit=0.0, force="canary").name == "b"
        assert repository.route("a", unit=0.0).name == "b"


def test_targets_are_loaded_after_a_restart_and_stay(models):
    with serving(models) as (repository, _):
        repository.set_split("a", to="b", percent=100)
    write_artefact(models / "c" / "model.onnx", seed=3)
    with serving(models, max_loaded=1) as (repository, _):
        assert eventually(lambda: repository.route("a", unit=0.0).name == "b")
        repository.load("c")
        assert repository.get("b") is not None


def test_models_with_other_labels_cannot_stand_in(models, monkeypatch):
    with serving(models) as (repository, _):
        repository.set_split("a", to="b", percent=100)
        repository.set_shadow("a", to="b")
        monkeypatch.setattr("tests.serve.conftest.LABELS", ("one", "two", "three", "four"))
        write_artefact(models / "c" / "model.onnx", seed=3)
        deploy(models, 4, "b")
        # What has got other labels since gets no traffic any more.
        repository.reload()
        assert repository.route("a", unit=0.0).name == "a"
        assert repository.shadow(repository.get("a")) is None
        for change in (
            lambda: repository.set_split("a", to="c", percent=1),
            lambda: repository.set_shadow("a", to="c"),
        ):
            with pytest.raises(
                Refused, match=r"same labels .* 3 \(cat, dog, fox\) and 4 \(one, two, three, \.\.\.\)"
            ) as it:
                change()
            assert it.value.status == 422


@pytest.mark.parametrize(("to", "status"), [("a", 422), ("bb", 404), ("0123456789ab", 404), ("torn", 503)])
def test_a_target_must_be_another_working_model(models, output, to, status):
    shutil.copytree(output / "torn", models / "torn")
    with serving(models) as (repository, _):
        for change in (repository.set_shadow, lambda *a, **k: repository.set_split(*a, percent=5, **k)):
            with pytest.raises(Refused) as caught:
                change("a", to=to)
            assert caught.value.status == status


def test_a_shadow_sees_the_requests_of_its_model(models):
    with serving(models) as (repository, _):
        model = repository.get("a")
        assert repository.shadow(model) is None
        repository.set_shadow("a", to="b")
        assert repository.shadow(model) is repository.get("b")
        assert repository.shadow(repository.get("b")) is None
        repository.clear_shadow("a")
        assert repository.shadow(model) is None


def test_workers_share_their_decisions(models):
    with serving(models, poll_seconds=0.02) as (one, _), serving(models, poll_seconds=0.02) as (two, _):
        first = one.get("a").version
        second = deploy(models, 7)
        assert eventually(lambda: {one.get("a").version, two.get("a").version} == {second})
        one.rollback("a")
        two.set_split("a", to="b", percent=100)
        assert eventually(lambda: two.get("a").version == first)
        assert eventually(lambda: one.route("a", unit=0.0).name == "b")
        two.unpin("a")
        assert eventually(lambda: one.get("a").version == second)


def test_without_polling_a_reload_reaches_every_worker(models):
    with serving(models, workers=2) as (one, _), serving(models, workers=2) as (two, _):
        version = deploy(models, 7)
        time.sleep(0.05)
        assert two.get("a").version != version
        assert one.reload().changed == ["a"]
        assert eventually(lambda: two.get("a").version == version, seconds=5)
