import math
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.observe.metrics import CONTENT_TYPE, Metrics
from serve.protocols.http import Call
from serve.settings import Settings
from zoo.artefact.card import Reference

REFERENCE = Reference(mean_confidence=0.9, histogram={"cat": 50, "dog": 50})


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


async def receive():
    raise AssertionError("metrics read no bodies")


def make_call(model: str | None = "vit", **stages: float) -> Call:
    return Call(receive=receive, method="POST", path="/", headers={}, request_id="r", model=model, stages=stages)


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """(name, label values by the label's name) -> value, of the metrics of this project."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name.startswith("pocketzoo_") and not sample.name.endswith("_created")
    }


def answering(name="vit", digest="aa", reference=REFERENCE):
    use = SimpleNamespace(labels=("cat", "dog"), reference=reference)
    return SimpleNamespace(name=name, digest=digest, card=SimpleNamespace(use=use))


def answer(metrics: Metrics, model, times: int, *, confidence=0.9, classes=(0, 1)) -> None:
    for at in range(times):
        metrics.answered(model, np.eye(2, dtype=np.float32)[[classes[at % len(classes)]]] * confidence)


def test_a_request_is_counted_with_its_stages():
    metrics = Metrics(Settings())
    call = make_call(queue=0.2, decode=2.0, infer=30.0)
    metrics.record(call, route="/v1/predict", status=200, images=3)
    metrics.record(make_call(), route="/v1/predict", status=200, images=1)
    found = samples(metrics.render())
    assert found["pocketzoo_requests_total", "vit", "/v1/predict", "200"] == 2
    assert found["pocketzoo_images_total", "vit"] == 4
    assert found["pocketzoo_request_seconds_count", "vit", "/v1/predict"] == 2
    assert 0 < found["pocketzoo_request_seconds_sum", "vit", "/v1/predict"] < 60
    assert found["pocketzoo_stage_seconds_sum", "vit", "decode"] == pytest.approx(0.002)
    assert found["pocketzoo_stage_seconds_bucket", "0.00025", "vit", "queue"] == 1
    assert found["pocketzoo_stage_seconds_bucket", "0.0001", "vit", "queue"] == 0
    assert found["pocketzoo_stage_seconds_bucket", "0.025", "vit", "infer"] == 0
    assert found["pocketzoo_stage_seconds_bucket", "0.05", "vit", "infer"] == 1
    assert not any(name[0].startswith("pocketzoo_refused_total") for name in found)


@pytest.mark.parametrize(("status", "reason"), [(400, "malformed"), (413, "too_large"), (429, "rate"), (418, "other")])
def test_a_refused_request_has_a_reason_and_no_images(status, reason):
    metrics = Metrics(Settings())
    metrics.record(make_call(model=None), route="", status=status, images=2)
    found = samples(metrics.render())
    assert found["pocketzoo_requests_total", "", "", str(status)] == 1
    assert found["pocketzoo_refused_total", reason] == 1
    assert not any(name[0] == "pocketzoo_images_total" for name in found)


def test_gauges_and_what_happens_to_models():
    metrics = Metrics(Settings(batch_size=16))
    for delta in (1, 1, -1):
        metrics.in_flight.inc(delta)
    metrics.queued.set(7)
    metrics.loaded.set(3)
    for images in (1, 5, 16, 17):
        metrics.batches.observe(images)
    metrics.event("swapped", "vit")
    found = samples(metrics.render())
    assert found["pocketzoo_in_flight",] == 1
    assert found["pocketzoo_queued",] == 7
    assert found["pocketzoo_models_loaded",] == 3
    assert [found["pocketzoo_batch_size_bucket", bound] for bound in ("1.0", "8.0", "16.0", "+Inf")] == [1, 2, 3, 4]
    assert found["pocketzoo_model_events_total", "swapped", "vit"] == 1


def test_labels_are_bounded(monkeypatch):
    monkeypatch.setattr("serve.observe.metrics._MOST", 3)
    metrics = Metrics(Settings())
    for number in range(10):
        metrics.record(make_call(f"m{number}"), route="/v1/predict", status=200, images=1)
    found = samples(metrics.render())
    assert {name[1] for name in found if name[0] == "pocketzoo_images_total"} == {"m0", "m1", "m2", "other"}
    assert found["pocketzoo_images_total", "other"] == 7


def test_drift_is_shown_from_a_hundred_answers_on():
    metrics = Metrics(Settings())
    answer(metrics, answering(), 99, confidence=0.5, classes=(0,))
    assert not any("drift" in name[0] for name in samples(metrics.render()))
    answer(metrics, answering(), 1, confidence=0.5, classes=(0,))
    found = samples(metrics.render())
    assert found["pocketzoo_drift_answers", "vit"] == 100
    assert found["pocketzoo_drift_confidence", "vit"] == pytest.approx(-0.4, abs=1e-6)
    assert found["pocketzoo_drift_classes", "vit"] > 0.4


def test_no_drift_without_a_reference_and_little_where_nothing_changed():
    metrics = Metrics(Settings())
    answer(metrics, answering("plain", reference=None), 200)
    answer(metrics, answering(), 200)
    found = {name: value for name, value in samples(metrics.render()).items() if "drift" in name[0]}
    assert found == {
        ("pocketzoo_drift_answers", "vit"): 200,
        ("pocketzoo_drift_confidence", "vit"): pytest.approx(0, abs=1e-6),
        ("pocketzoo_drift_classes", "vit"): 0,
    }


def test_a_new_version_starts_anew():
    metrics = Metrics(Settings())
    answer(metrics, answering(), 100)
    answer(metrics, answering(digest="bb"), 25)
    found = samples(metrics.render())
    assert found["pocketzoo_drift_answers", "vit"] == 25
    assert math.isnan(found["pocketzoo_drift_confidence", "vit"])
    assert math.isnan(found["pocketzoo_drift_classes", "vit"])
    answer(metrics, answering(digest="bb"), 75)
    assert samples(metrics.render())["pocketzoo_drift_confidence", "vit"] == pytest.approx(0, abs=1e-6)


def test_every_metric_has_a_unit_prometheus_knows():
    metrics = Metrics(Settings())
    families = [family.name for family in text_string_to_metric_families(metrics.render().decode())]
    ours = [name for name in families if name.startswith("pocketzoo_") and not name.endswith("_created")]
    assert len(ours) == 13
    assert not [name for name in ours if name.endswith(("_ms", "_milliseconds", "_mb"))]
    assert CONTENT_TYPE.startswith("text/plain")
