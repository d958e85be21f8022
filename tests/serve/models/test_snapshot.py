from dataclasses import replace

import pytest

from serve.models import snapshot
from serve.models.folder import scan
from serve.models.model import load_model
from serve.models.snapshot import View
from serve.protocols.http import Refused


@pytest.fixture(scope="module")
def view(output):
    """`good` and `other` are in memory, `good` is the default."""
    full = View(default="good", artefacts=scan(output))
    for name in ("good", "other"):
        full = full.with_model(load_model(name, output / name / "model.onnx", threads=1))
    return full


def test_asking_for_a_model_makes_it_the_most_recently_used(view):
    for name, other in (("good", "other"), ("other", "good")):
        model = view.get(name)
        assert model.used >= view.loaded[other].used
        assert view.idle(view.loaded["good"]).name == "other"


def test_nothing_idle_is_the_default_kept_or_broken(view):
    good, other = view.loaded["good"], view.loaded["other"]
    assert view.idle(good) is other
    assert view.idle(other) is None
    assert replace(view, problems={"other": "torn"}).idle(good) is None


def test_what_is_broken_is_503_unless_an_older_version_is_in_memory(view):
    broken = replace(view, problems={"other-int8": "torn", "good": "torn"})
    with pytest.raises(Refused, match="'other-int8' cannot be served: torn") as caught:
        broken.get("other-int8")
    assert caught.value.status == 503
    assert broken.get("good") is view.loaded["good"]


def test_another_version_than_the_one_that_answers_is_unknown(view):
    good = view.loaded["good"]
    assert view.get("good", good.version) is good
    for version in ("0" * 12, view.loaded["other"].version, ""):
        with pytest.raises(Refused, match=f"unknown version {version!r} of 'good'; it serves {good.version}") as caught:
            view.get("good", version)
        assert caught.value.status == 404


def test_a_new_version_takes_the_place_of_the_old_one(view, output):
    old = view.loaded["good"]
    new = load_model("good", output / "other" / "model.onnx", threads=1)
    swapped = replace(view, problems={"good": "torn"}).with_model(new)
    assert (swapped.loaded["good"], dict(swapped.problems)) == (new, {})
    # The view that a request has taken is not touched.
    assert view.loaded["good"] is old


def test_what_is_dropped_is_gone_from_everywhere(view):
    assert view.without_model("good").get("good") is None
    gone = replace(view, problems={"good": "x"}).without_name("good")
    assert "good" not in gone.artefacts
    assert gone.problems == {}
    with pytest.raises(Refused, match="unknown model 'good'"):
        gone.get("good")


def test_an_unknown_name_is_compared_with_few(view, monkeypatch):
    compared = []
    matches = snapshot.difflib.get_close_matches

    def counted(name, names, **options):
        compared.extend(names)
        return matches(name, names, **options)

    monkeypatch.setattr(snapshot.difflib, "get_close_matches", counted)
    many = replace(view, artefacts={f"model-{number:03}": None for number in range(200)})
    with pytest.raises(Refused, match=r"unknown model 'model-0077'; did you mean .*model-007") as caught:
        many.get("model-0077")
    assert caught.value.status == 404
    assert len(compared) == 4
    with pytest.raises(Refused, match="unknown model 'zzz'; GET /models lists"):
        many.get("zzz")
