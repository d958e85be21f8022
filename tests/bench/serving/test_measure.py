"""The measurement of the server: one small real run, and the arithmetic of its rows."""

import json

import pytest

from bench.load.images import default_image
from bench.rows import SERVING, append, read
from bench.serving.endpoints import ENDPOINTS
from bench.serving.measure import Load, ServingConfig, _plan, _unanswered, measure
from bench.serving.reference import Turn
from bench.serving.reference import measure as measure_reference
from bench.serving.reference_processes import REFERENCES
from bench.serving.tables import facts, markdown, render
from tests.conftest import run_cli
from tests.soak.artefacts import write_tiny
from zoo.artefact.predictor import Predictor
from zoo.base.commandline import console
from zoo.base.errors import ImageError, UsageError


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of a real run, too short to say anything about speed."""
    path = write_tiny(tmp_path_factory.mktemp("serving") / "tiny" / "model.onnx", seed=0)
    config = ServingConfig(rounds=1, seconds=0.05, warmup=0.02, connections=2, open_seconds=0.2, overload_seconds=0.2)
    return measure(path, config)


def test_every_load_has_a_complete_row(rows, tmp_path):
    append(tmp_path / SERVING, rows)
    assert read(tmp_path / SERVING) == json.loads(json.dumps(rows))
    assert len(rows) == 2 * (len(REFERENCES) + 1) + 2 * len(ENDPOINTS) + 3
    assert len({(row["way"], row["load"], row["connections"]) for row in rows}) == len(rows)
    assert {row["artefact"] for row in rows} == {"tiny"}


def test_ways_in_are_related_to_the_fastest_reference(rows):
    for what in ("image", "tensor"):
        references = {
            row["way"]: row for row in rows if row["way"].endswith(f", {what}") and "single" not in row["way"]
        }
        fastest = max(row["images_per_s"] for row in references.values())
        assert max(row["ratio"] for row in references.values()) == 1
        for row in rows:
            endpoint = next((one for one in ENDPOINTS.values() if one.title == row["way"]), None)
            if row["load"] == "closed loop" and endpoint and endpoint.reference == what:
                assert row["ratio"] == pytest.approx(row["images_per_s"] / fastest, abs=1e-3)
                assert set(row["status"]) == {"200"}
                assert row["n"] > 0


def test_open_loops_tell_their_rate_and_the_overload_its_recovery(rows):
    capacity = next(row for row in rows if row["way"] == ENDPOINTS["v1"].title and row["connections"] == 2)
    opened = {row["load"]: row for row in rows if row["load"].startswith("Poisson")}
    assert list(opened) == ["Poisson, 30%", "Poisson, 70%", "Poisson, 300%"]
    for part, row in zip((0.3, 0.7, 3.0), opened.values(), strict=True):
        assert row["detail"]["offered_rate"] == pytest.approx(part * capacity["images_per_s"], rel=1e-3)
        if part < 1:
            assert row["detail"]["unanswered"] == row["n"] - row["status"]["200"] == 0
        assert row["detail"]["p99_of_service"] > 0
    over = opened["Poisson, 300%"]["detail"]
    assert over["recovery_seconds"] is None or over["recovery_seconds"] > 0
    assert 0 < over["rss_mb"]["before"] <= over["rss_mb"]["highest"]
    assert capacity["detail"]["ready_seconds"] > 0


def test_tables_have_a_line_per_row(rows):
    assert render(rows).row_count == len(rows)
    text = markdown(rows)
    assert sum(line.startswith("| ") for line in text.splitlines()) == len(rows) + 2
    assert any("start to ready" in fact for fact in facts(rows))
    assert sum("in process" in fact for fact in facts(rows)) == len(ENDPOINTS)
    with console().capture():
        console().print(render(rows))


def test_an_overload_with_refusals_is_told_in_a_sentence():
    detail = {
        "of_peak": 0.912,
        "p99_of_service": 5.0,
        "recovery_seconds": 0.4,
        "refused_ms": {"p50": 0.51, "p99": 2.25},
        "retry_after": 7,
        "rss_mb": {"before": 100.0, "highest": 120.0, "after": 101.0},
    }
    row = {"way": "w", "load": "Poisson, 300%", "detail": detail, "status": {"200": 3, "503": 7}, "errors": {}}
    first, second = facts([row])
    assert first == "w, Poisson, 300%: p99 is 5.00 x the service time, 3 x 200, 7 x 503"
    assert second == (
        "Poisson, 300%: 91.2 % of the peak; refusals within 0.51 ms (p50) and 2.25 ms (p99), 7 with Retry-After; "
        "resident 100 MB before, 120 at most, 101 after; recovered after 0.40 s"
    )


def test_an_overload_without_refusals_that_is_not_over_is_told_too():
    detail = {
        "of_peak": 1.0,
        "recovery_seconds": None,
        "refused_ms": None,
        "retry_after": 0,
        "rss_mb": {"before": 1.0, "highest": 2.0, "after": 1.0},
    }
    (fact,) = facts([{"way": "w", "load": "Poisson, 300%", "detail": detail, "status": {}, "errors": {}}])
    assert fact.startswith("Poisson, 300%: 100.0 % of the peak; no refusals; ")
    assert fact.endswith("; not recovered")


def test_a_part_of_the_capacity_that_was_not_answered_is_not_valid():
    load = Load(way="w", load="Poisson, 70%", connections=0, seconds=1)
    load.add({"rate": 1.0, "samples_ms": [1.0], "status": {"200": 5, "503": 2}, "errors": {"reset": 1}})
    row = {"way": "w", "load": load.load, "detail": {"unanswered": _unanswered(load)}}
    (fact,) = facts([row | {"status": load.status, "errors": load.errors}])
    assert fact == ("w, Poisson, 70%: NOT VALID, 3 requests had no answer with status 200: 5 x 200, 2 x 503, 1 x reset")


def test_what_is_compared_stands_side_by_side():
    assert _plan(8) == [
        *("threads image", "v1 8", "wide image", "form 8", "processes image", "bytes 8"),
        *("single image", "v1 1", "form 1", "bytes 1"),
        *("threads tensor", "tensor 8", "wide tensor", "processes tensor"),
        *("single tensor", "tensor 1"),
    ]
    assert len(_plan(1)) == len(_plan(8)) - len(ENDPOINTS)


def test_turns_of_a_load_are_summed_and_its_rate_is_their_median():
    load = Load(way="w", load="closed loop", connections=1, seconds=1)
    for rate in (1.0, 9.0, 4.0):
        load.add({"rate": rate, "samples_ms": [rate], "status": {"200": 2}, "errors": {"reset": 1}})
    assert (load.rate, load.samples_ms) == (4.0, [1.0, 9.0, 4.0])
    assert (load.status, load.errors) == ({"200": 6}, {"reset": 3})


def test_the_reference_counts_what_its_threads_finish(tmp_path):
    path = write_tiny(tmp_path / "tiny" / "model.onnx", seed=0)
    predictors = [Predictor(path, threads=1) for _ in range(2)]
    for what in ("image", "tensor"):
        found = measure_reference(predictors, default_image().read_bytes(), Turn(what=what, seconds=0.1, warmup=0.02))
        assert found["rate"] * 0.1 == pytest.approx(len(found["samples_ms"]), abs=4)
        assert len(found["samples_ms"]) > 4
        assert min(found["samples_ms"]) > 0


def test_bad_settings_and_pictures_are_refused(tmp_path):
    for wrong in ({"rounds": 0}, {"connections": 0}, {"seconds": 0.0}, {"overload_seconds": -1.0}):
        with pytest.raises(UsageError, match=next(iter(wrong)).split("_")[-1]):
            ServingConfig(**wrong)
    path = write_tiny(tmp_path / "tiny" / "model.onnx", seed=0)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ImageError):
        measure(path, ServingConfig(image=tmp_path / "text.jpg"))


def test_the_command_appends_its_rows_and_prints_them(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))
    path = write_tiny(tmp_path / "tiny" / "model.onnx", seed=0)
    asked = []

    def fake(artefact, config):
        asked.append((artefact, config.rounds))
        return rows

    monkeypatch.setattr("bench.serving.measure.measure", fake)
    assert len(run_cli("bench", "serving", path.parent, "--rounds", "2", "--json").stdout.splitlines()) == len(rows)
    assert "| way in | load |" in run_cli("bench", "serving", path, "--markdown").stdout
    assert "POST /predict (multipart)" in run_cli("bench", "serving", path).stdout
    assert asked == [(path, 2), (path, 5), (path, 5)]
    assert len(read(tmp_path / "output" / "bench" / SERVING)) == 3 * len(rows)
