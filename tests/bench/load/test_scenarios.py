"""The scenarios against a server whose behaviour is known, and once against a real one."""

import asyncio
import json

import pytest

from bench.load.client import run
from bench.load.histogram import Latencies
from bench.load.images import default_image
from bench.load.load_spec import Job, arrivals, lasting
from bench.load.plot import draw_load
from bench.load.scenarios import SCENARIOS, LoadConfig, measure
from bench.load.server_under_test import parse_url, requests_of
from bench.load.tables import facts, render
from bench.rows import LOAD, append, read
from bench.serving.server import serving
from tests.bench.scripted import ANSWER, Script, scripted
from tests.conftest import run_cli
from tests.soak.artefacts import write_tiny
from zoo.base.commandline import console
from zoo.base.errors import ArtefactError, UsageError

IMAGES = [("china.jpg", default_image().read_bytes())]


def here(job):
    """Do a job in this process."""
    return asyncio.run(run(job))


def measured(script, *, do=here, **settings):
    config = LoadConfig(**{"seconds": 0.2, "queries": 5, "warmup": 0.02, "timeout": 2.0} | settings)
    return list(measure(parse_url(f"http://127.0.0.1:{script.port}"), IMAGES, config, do=do))


def row_of(scenario, script, **settings):
    with scripted(script):
        (row,) = measured(script, scenarios=(scenario,), **settings)
    return row


def job_of(script, **settings):
    target = parse_url(f"http://127.0.0.1:{script.port}")
    requests = requests_of(target, [IMAGES[0][1]])
    return Job(port=script.port, requests=requests, histogram=True, **settings)


def test_a_single_stream_sends_one_query_at_a_time():
    row = row_of("single-stream", Script(seconds=0.01))
    assert (row["metric"], row["unit"], row["valid"]) == ("p90 latency", "ms", True)
    assert row["value"] == row["p90_ms"] >= 10
    assert row["n"] == row["status"]["200"] <= 20
    assert row["detail"]["connections"] == 1
    assert (row["model"], row["version"], row["digest"]) == tuple(ANSWER.values())


def test_a_query_of_a_multi_stream_lasts_until_its_last_image():
    row = row_of("multi-stream", Script(seconds=0.005), streams=4)
    assert row["p50_ms"] >= 20
    assert row["status"]["200"] >= 4 * row["n"] >= 4 * 5
    assert row["detail"]["connections"] == 4
    assert row["value"] == row["p99_ms"]


def test_a_run_goes_on_until_there_are_enough_queries():
    row = row_of("single-stream", Script(seconds=0.01), seconds=0.01, warmup=0.0, queries=20)
    assert row["n"] == 20
    assert row["seconds"] >= 0.2


def test_all_at_once_is_the_throughput():
    row = row_of("offline", Script(seconds=0.005), connections=4, queries=40)
    assert row["unit"] == "images/s"
    # One at a time, of 5 ms each.
    assert 0 < row["value"] <= 200
    assert row["n"] == row["status"]["200"] >= 40
    assert row["value"] == pytest.approx(row["n"] / row["seconds"], rel=1e-2)
    assert row["p50_ms"] <= 1e3 * row["seconds"] / 2


def test_the_server_scenario_finds_a_rate_and_tells_every_run():
    row = row_of("server", Script(seconds=0.004), p99_ms=500.0, seconds=0.4)
    steps = row["detail"]["steps"]
    assert 0 < row["value"] <= row["detail"]["highest_tried"]
    assert row["p99_ms"] <= 500  # what the search promises, however fast the machine is
    assert row["value"] == steps[-1]["rate"]
    assert steps[-1]["confirming"]
    assert steps[-1]["holds"]
    assert all(step["n"] >= 5 for step in steps)


@pytest.mark.parametrize(("count", "known"), [(999, False), (1000, True)])
def test_a_percentile_that_would_be_the_maximum_is_not_told(count, known):
    kept = Latencies()
    for number in range(count):
        kept.append(1.0 + number)
    with scripted(Script()) as script:
        (row,) = measured(
            script, do=lambda job: here(job) | {"histogram": kept.encode()}, scenarios=("single-stream",), seconds=0.02
        )
    assert (row["p99_9_ms"] is not None) == known
    screen = console()
    with screen.capture() as shown:
        screen.print(render([row]))
    assert (" - " in shown.get()) != known


def test_a_bound_below_the_service_time_is_a_sentence():
    with pytest.raises(ArtefactError, match=r"no rate keeps the p99 within 5 ms: .*--p99"):
        row_of("server", Script(seconds=0.02), p99_ms=5.0, seconds=0.05, queries=2)


def test_a_stall_is_charged_to_everything_that_had_to_wait():
    with scripted(Script(stall_at=30, stall_seconds=0.3)) as script:
        opened = here(job_of(script, rate=100.0, seconds=0.8, connections=100))
    with scripted(Script(stall_at=30, stall_seconds=0.3)) as script:
        closed = here(job_of(script, connections=1, seconds=0.8))
    count = sum(moment < 0.8 for _, moment in zip(range(200), arrivals(100.0, 0), strict=False))
    assert opened["status"] == {"200": count}
    late, blind = Latencies(opened["histogram"]), Latencies(closed["histogram"])
    # About thirty of eighty arrivals fall into the stall, and wait for what is left of it.
    assert late.percentile(75) > 50
    assert late.percentile(95) > 200
    assert late.highest > 250
    # A client that waits for its answer before it sends the next request sees the same stall once.
    assert blind.highest > 290
    assert sum(closed["status"].values()) >= 30
    assert blind.percentile(50) < late.percentile(75)


def test_enough_arrivals_are_waited_for():
    job = Job(port=1, requests=(), rate=50.0, seconds=0.1, warmup=0.5, queries=40, seed=3)
    moments = [moment for _, moment in zip(range(200), arrivals(50.0, 3), strict=False)]
    counted = [moment for moment in moments if 0.5 <= moment < 0.5 + lasting(job)]
    assert len(counted) == 40
    assert lasting(Job(port=1, requests=(), rate=50.0, seconds=9.0, queries=1)) == 9.0
    with pytest.raises(ValueError, match="of one kind"):
        Job(port=1, requests=(), rate=1.0, burst=1)


def test_refusals_are_counted_and_make_a_row_invalid():
    with scripted(Script()) as script:

        def do(job):
            script.busy_every = 3
            found = here(job)
            script.busy_every = None
            return found

        (row,) = measured(script, do=do, scenarios=("offline",))
    assert not row["valid"]
    assert row["status"]["503"] > 0
    assert any("NOT VALID" in fact and "x 503" in fact for fact in facts([row]))


def test_a_server_that_goes_away_ends_the_run_and_keeps_what_was_measured():
    with scripted(Script(seconds=0.001)) as script:
        config = LoadConfig(scenarios=("single-stream", "multi-stream"), seconds=2.0, queries=5, warmup=0.0, streams=2)
        rows = measure(parse_url(f"http://127.0.0.1:{script.port}"), IMAGES, config, do=here)
        first = next(rows)
        script.end_at = len(script.heads) + 20
        with pytest.raises(ArtefactError, match=r"stopped answering in the scenario multi-stream, after .* x connect"):
            next(rows)
    assert first["scenario"] == "single-stream"


def test_a_model_that_changes_has_no_row():
    with scripted(Script()) as script:
        rows = measure(
            parse_url(f"http://127.0.0.1:{script.port}"),
            IMAGES,
            LoadConfig(scenarios=("single-stream",), seconds=0.05, queries=1, warmup=0.0),
            do=lambda job: (here(job), script.answer.update(version="new"))[0],
        )
        with pytest.raises(ArtefactError, match=r"was version 0123456789ab .* version new when it ended"):
            next(rows)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"scenarios": ("singel-stream",)}, "unknown scenario 'singel-stream'.*single-stream"),
        ({"p99_ms": 0.0}, "p99_ms must be positive"),
        ({"seconds": float("nan")}, "seconds must be positive"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"streams": 0}, "streams must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_settings_are_refused(wrong, sentence):
    with pytest.raises(UsageError, match=sentence):
        LoadConfig(**wrong)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The command against a real server; too short to say anything about speed."""
    folder = tmp_path_factory.mktemp("load")
    write_tiny(folder / "models" / "tiny" / "model.onnx", seed=0)
    with serving(folder / "models") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETZOO_OUTPUT", str(folder / "output"))
        patch.delenv("POCKETZOO_KEY", raising=False)
        url = f"http://127.0.0.1:{server.port}"
        short = ("--seconds", "0.2", "--queries", "3", "--p99", "2000")
        done = run_cli("bench", "load", url, "--model", "tiny", *short, "--json")
        with pytest.raises(ArtefactError) as unknown:
            run_cli("bench", "load", url, "--model", "tina", *short)
    return folder / "output" / "bench", done, str(unknown.value)


def test_the_command_writes_rows_and_a_picture(real):
    folder, done, _ = real
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["scenario"] for row in rows] == list(SCENARIOS)
    assert read(folder / LOAD) == rows
    assert len({row["run"] for row in rows}) == 1
    assert all(row["valid"] and row["model"] == "tiny" and len(row["digest"]) == 64 for row in rows)
    assert (folder / "load.png").read_bytes().startswith(b"\x89PNG")
    assert len(Latencies(rows[0]["histogram"])) == rows[0]["n"]


def test_an_unknown_model_is_the_servers_sentence(real):
    _, _, unknown = real
    assert "/v1/models/tina:predict: 404: unknown model 'tina'; did you mean tiny?" in unknown


def test_a_table_a_picture_and_sentences_come_from_rows(real, tmp_path):
    rows = read(real[0] / LOAD)
    assert render(rows).row_count == len(rows)
    screen = console()
    with screen.capture() as shown:
        screen.print(render(rows))
    assert "p90 latency" in shown.get()
    text = "\n".join(facts(rows))
    assert "within the bound of 2000 ms" in text
    assert "270,336" in text
    draw_load(rows[:1], tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 5_000
    append(tmp_path / LOAD, rows)
    with pytest.raises(ArtefactError, match="histogram: expected a value, got nothing"):
        append(tmp_path / LOAD, [{name: value for name, value in rows[0].items() if name != "histogram"}])


def test_rows_that_a_dying_server_left_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    with scripted(Script(seconds=0.001)) as script:

        def do(job):
            if job.burst == 2:
                script.end_at = 0
            return here(job)

        monkeypatch.setattr(measure, "__kwdefaults__", {"do": do})
        arguments = ("--seconds", "1.5", "--queries", "3", "--streams", "2")
        with pytest.raises(ArtefactError, match="stopped answering in the scenario multi-stream"):
            run_cli("bench", "load", f"http://127.0.0.1:{script.port}", *arguments)
    assert [row["scenario"] for row in read(tmp_path / "bench" / LOAD)] == ["single-stream"]
    assert (tmp_path / "bench" / "load.png").is_file()
