import pytest

from serve.models.folder import scan
from serve.models.model import load_model
from serve.models.snapshot import View
from serve.models.state import Split, State, Target
from serve.protocols.http import Refused


@pytest.fixture(scope="module")
def view(output):
    """`good` and `other` are in memory, `good` is the default."""
    full = View(default="good", artefacts=scan(output))
    for name in ("good", "other"):
        full = full.with_model(load_model(name, output / name / "model.onnx", threads=1), current=True)
    return full


def _with(view, **changes):
    fields = ("default", "artefacts", "current", "versions", "failed", "problems", "state")
    return View(**{field: getattr(view, field) for field in fields} | changes)


def test_asking_for_a_model_makes_it_the_most_recently_used(view):
    for name, other in (("good", "other"), ("other", "good")):
        model = view.get(name, None)
        assert model.used >= view.current[other].used
        assert view.idle(view.current["good"]).name == "other"


def test_nothing_idle_is_the_default_a_target_or_kept(view):
    good, other = view.current["good"], view.current["other"]
    assert view.idle(good) is other
    assert view.idle(other) is None
    for target in (Target(to="other"), Target(to="other", version=other.version)):
        assert _with(view, state=State(shadows={"good": target})).idle(good) is None


def test_a_failed_version_is_503_a_failed_canary_is_passed_over(view):
    split = State(splits={"good": Split(to="other-int8", percent=100)})
    failed = _with(view, failed={("other-int8", None): "torn"}, state=split)
    with pytest.raises(Refused, match="'other-int8' cannot be served: torn") as caught:
        failed.get("other-int8", None)
    assert caught.value.status == 503
    assert failed.route("good", None, 0.0, None).name == "good"
    assert failed.route("good", None, 0.0, "canary").name == "good"


def test_an_old_version_leaves_unless_it_is_a_target(view, output):
    old = view.current["good"]
    new = load_model("good", output / "other" / "model.onnx", threads=1)
    swapped = view.with_model(new, current=True)
    assert swapped.current["good"] is new
    assert ("good", old.version) not in swapped.versions
    state = State(splits={"good": Split(to="good", version=old.version, percent=5)}, pins={"good": "0" * 12})
    kept = _with(view, state=state).with_model(new, current=True)
    assert kept.versions["good", old.version] is old
    assert kept.needed("good") == {old.version, new.version, "0" * 12}
    # The view that a request has taken is not touched.
    assert view.current["good"] is old


def test_what_is_dropped_is_gone_from_everywhere(view):
    good = view.current["good"]
    assert view.without_model(good).get("good", None) is None
    assert view.without_model(good).get("good", good.version) is None
    gone = _with(view, failed={("good", None): "x"}, problems={"good": "x"}).without_name("good")
    assert "good" not in gone.artefacts
    assert (gone.failed, gone.problems) == ({}, {})
    with pytest.raises(Refused, match="unknown model 'good'"):
        gone.get("good", None)
