"""The attacks in their shortest form: that they are what they say, and that the table says what was not survived."""

import threading

import pytest

from bench.rows import ATTACKS as KEPT
from bench.rows import read
from bench.serving import soak_tables
from bench.serving.server import serving
from tests.soak import attacks
from tests.soak.artefacts import photograph, write_tiny, write_working
from tests.soak.attackers import Attack, bomb_files
from tests.soak.attacks import ATTACKS, main, run
from tests.soak.harness import exchange, head, until
from zoo.artefact.decode import FORMATS, decode, sniff
from zoo.artefact.predictor import Predictor
from zoo.base.errors import UsageError

_QUIET = {"stalled uploads", "slow readers", "idle connections"}
"""Attacks whose connections stay open."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_tiny(folder / "working" / "model.onnx", seed=0)
    with serving(folder, POCKETZOO_POLL_SECONDS="0.2") as server:
        yield server


@pytest.mark.parametrize("name", ATTACKS)
def test_an_honest_request_is_answered_during_an_attack(server, name, monkeypatch):
    monkeypatch.setattr("tests.soak.attackers.EDGES", (700, 600))
    attack, picture = Attack(server=server, over=threading.Event()), photograph()
    thread = threading.Thread(target=ATTACKS[name], args=(attack,))
    thread.start()
    honest = [exchange(server.port, head("/v1/predict", len(picture)) + picture) for _ in range(20)]
    if name not in _QUIET:
        assert until(lambda: attack.counts.total() > 3, 30.0) is not None
    attack.over.set()
    thread.join()
    assert honest == ["200"] * 20
    assert attack.counts.total() > 0
    assert set(attack.counts) <= {"200", "400", "404", "408", "413", "503", "still open", "closed", "timeout"}


def test_bombs_are_of_every_format_and_can_be_decoded():
    found = bomb_files((60, 40))
    assert {sniff(data) for data in found.values()} == set(FORMATS) - {"HEIF", "BMP", "PPM"}
    assert {decode(data).size for data in found.values()} == {(60, 40)}
    assert len(found) >= 20


def test_the_working_network_answers(tmp_path):
    predictor = Predictor(write_working(tmp_path / "working" / "model.onnx"), threads=1)
    assert predictor.card.use.input.shape == (3, 112, 112)
    assert len(predictor.predict([photograph()])[0].labels) == 3


def _row(name, **changed):
    row = {"attack": name, "n": 9, "failed": 0, "p99_alone_ms": 2.0, "p99_ms": 6.0, "times": 3.0, "grew_mb": 1.0}
    row |= {"seconds": 1.0, "honest_per_second": 9.0, "status": {"200": 9}, "errors": {}, "same_worker": True}
    row |= {"p50_alone_ms": 1.0, "p50_ms": 2.0}
    return {**row, "attackers": {"408": 2}, "ok": True, **changed}


@pytest.mark.parametrize("ok", [True, False])
def test_the_command_writes_rows_and_says_what_was_not_survived(monkeypatch, capsys, tmp_path, ok):
    rows = [_row("idle connections"), _row("slow readers", failed=1, p99_ms=None, ok=ok)]
    monkeypatch.setattr(attacks, "run", lambda names, **_: iter(rows))
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    assert main([]) == (0 if ok else 1)
    kept = read(tmp_path / "bench" / KEPT)
    assert [{key: row[key] for key in rows[0]} for row in kept] == rows
    assert len({row["run"] for row in kept}) == 1
    said = capsys.readouterr().out
    assert said.strip() == soak_tables.attacks(rows).strip()
    assert ("NO" in said) is not ok


def test_an_unknown_attack_is_refused():
    with pytest.raises(UsageError, match="unknown attack 'idel connections'; did you mean idle connections"):
        list(run(["idel connections"], seconds=1))
    assert main(["--only", "idel connections"]) == 2
