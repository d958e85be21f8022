"""The short form of every fault, against one real server; and that the harness notices what goes wrong."""

import contextlib
import http.server
import threading
import types
from collections import Counter

import pytest

from bench.rows import SOAK, read
from bench.serving.server import Memory
from tests.soak import run as soak
from tests.soak.artefacts import picture, write_tiny
from tests.soak.bodies import fault_malformed, fault_truncated
from tests.soak.files import claims, floods, png, scans
from tests.soak.harness import Case, Probe, Result, exchange, expect_memory, head, probing, until
from tests.soak.malformed import ALLOWED, KINDS, malformed
from tests.soak.run import FAULTS, main, prepared, render, run
from zoo.artefact.predictor import Predictor
from zoo.artefact.preprocess import decode, preprocess
from zoo.base.errors import CheckError, ImageSizeError, UsageError


@pytest.fixture(scope="module")
def case():
    with prepared(short=True) as case:
        yield case


@pytest.mark.parametrize("name", FAULTS)
def test_the_server_survives(case, name):
    result = FAULTS[name](case)
    assert result.ok, result
    assert result.requests > 5


class _AlwaysFails(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def failing():
    """A case whose server answers 500 to everything."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _AlwaysFails) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        port = server.server_address[1]
        fake = types.SimpleNamespace(port=port, workers=lambda: [], resident_mb=lambda: 1.0)
        yield Case(server=fake, picture=picture(), short=True)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("fault", [fault_malformed, fault_truncated])
def test_a_server_that_fails_is_noticed(failing, fault):
    result = fault(failing)
    assert not result.ok
    assert "NOT OK" in result.detail[0]
    assert any("500" in sentence for sentence in result.detail)


def test_a_worker_that_was_replaced_is_noticed(failing):
    pids = iter([[1], [2]])
    failing.server.workers = lambda: [types.SimpleNamespace(pid=pid) for pid in next(pids)]
    result = Result(name="x")
    with failing.same_workers(result):
        pass
    assert result.detail[0] == "NOT OK: worker processes [1] became [2]"
    assert "a good request gets no answer" in result.detail[1]


def test_malformed_requests_are_the_same_for_a_seed_and_of_every_kind():
    first = list(malformed(3, 70, "tiny"))
    assert first == list(malformed(3, 70, "tiny"))
    assert first != list(malformed(4, 70, "tiny"))
    assert {name for name, _ in first} == set(KINDS) == set(ALLOWED)
    assert not any(status.startswith("50") and status != "501" for found in ALLOWED.values() for status in found)
    assert all(b"\r\n\r\n" in data for _, data in first)


def test_memory_that_was_taken_or_kept_is_noticed():
    result = Result(name="x")
    expect_memory(result, Memory(before=100.0, highest=260.0, after=160.0), more=100.0)
    assert result.ok
    expect_memory(result, Memory(before=100.0, highest=265.0, after=100.0), more=100.0)
    assert result.detail[-1] == "NOT OK: memory grew by 165 MB, expected 164 at most"
    expect_memory(result, Memory(before=100.0, highest=165.0, after=165.0), more=100.0)
    assert result.detail[-1] == "NOT OK: 65 MB of memory were kept, expected 64 at most"


@pytest.mark.parametrize(("after", "ok"), [(200.0, True), (201.0, False)])
def test_what_all_faults_together_leave_is_a_line_of_its_own(monkeypatch, after, ok):
    server = types.SimpleNamespace(resident_mb=iter([100.0, 150.0, after, 100.0]).__next__)
    case = types.SimpleNamespace(server=server, serves=lambda: True, pids=lambda: [1])
    monkeypatch.setattr(soak, "prepared", lambda **_: contextlib.nullcontext(case))
    monkeypatch.setattr(soak, "FAULTS", dict.fromkeys(("bomb", "malformed", "kill"), lambda case: Result(name="y")))
    results = run(["bomb", "malformed", "kill"], short=True)
    assert [result.name for result in results[:-1]] == ["y"] * 3
    assert results[-1].ok is ok
    assert f"100 MB before the first, {after:.0f} MB after" in results[-1].detail[0]
    assert len(run(["kill"], short=True)) == 1


def test_others_that_wait_or_fail_are_noticed(failing):
    with probing(failing, every=0.001) as probe:
        assert until(lambda: probe.seconds, 5.0) is not None
    result = Result(name="x")
    probe.expect(result, worst=3.0)
    assert "NOT OK: others got {'500'" in result.detail[-1]
    result = Result(name="x")
    Probe(seconds=[0.1, 3.5], counts=Counter({"200": 2})).expect(result, worst=3.0)
    assert result.detail[-1] == "NOT OK: another request took 3.5 s, expected 3 at most"


def test_files_of_the_soak_are_what_they_claim():
    for data in claims(50_000).values():
        with pytest.raises(ImageSizeError, match="pixels"):
            decode(data)
    for bits, channels in ((8, 3), (16, 3), (16, 1)):
        assert decode(png(30, 20, bits=bits, channels=channels)).size == (30, 20)
    for kind, data in floods(2000).items():
        assert decode(data).size == (8, 8), kind
    assert scans(16, 16, 7).count(b"\xff\xda") == scans(16, 16, 1).count(b"\xff\xda") + 6
    assert decode(scans(16, 16, 1)).size == (16, 16)


def test_artefacts_of_the_soak_pass_their_check_unless_they_lie(tmp_path):
    path = write_tiny(tmp_path / "tiny" / "model.onnx", seed=0)
    spec = Predictor(path, threads=1).card.use.input
    assert preprocess(picture(), spec).shape == (3, 8, 8)
    with pytest.raises(CheckError, match="golden self-check failed"):
        Predictor(write_tiny(tmp_path / "liar" / "model.onnx", seed=0, liar=True), threads=1)


def test_the_command_says_what_was_not_survived(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(soak, "output_root", lambda: tmp_path)
    results = [Result(name="good"), Result(name="bad")]
    results[0].counts["200"] = 3
    results[1].expect(False, "it fell over")
    monkeypatch.setattr(soak, "run", lambda names, **_: results)
    assert main(["--short"]) == 1
    assert "NOT OK: it fell over" in capsys.readouterr().out
    assert main(["--short", "--only", "kill"]) == 1
    assert read(tmp_path / "bench" / SOAK) == []
    results.pop()
    assert main([]) == 0
    assert [(row["fault"], row["n"], row["ok"]) for row in read(tmp_path / "bench" / SOAK)] == [("good", 3, True)]
    assert render(results).row_count == 1


def test_an_unknown_fault_is_refused(capsys):
    with pytest.raises(UsageError, match="unknown fault 'bom'; did you mean bomb"):
        run(["bom"], short=True)
    assert main(["--only", "bom"]) == 2


def test_waiting_ends():
    assert until(lambda: False, 0.05) is None
    assert until(lambda: True, 1.0) < 0.5


def test_exchanges_tell_how_they_ended(failing):
    assert exchange(failing.server.port, head("/", 0)) == "500"
    assert exchange(failing.server.port, b"", then="half") == "closed"
    assert exchange(failing.server.port, head("/", 5)[:20], then="reset") == "reset by us"
    assert exchange(failing.server.port, head("/", 5)[:20], timeout=0.05) == "timeout"
