"""Tables of comparisons, from rows whose numbers are plain."""

from __future__ import annotations

from typing import Any

from bench.runtimes import tables as peers_text
from bench.runtimes.baselines import PEERS
from bench.runtimes.measurements import with_ratios
from tests.bench.processes import MS

ENVIRONMENT = {
    "cpu": "Test CPU",
    "flags": ["avx2"],
    "cores": 2,
    "memory_gb": 8,
    "system": "Linux",
    "provider": "CPUExecutionProvider",
    "versions": {"onnxruntime": "1.0"},
    "commit": "abc",
}


def row(artefact: str, variant: str, pace: float, **changes: Any) -> dict[str, Any]:
    ms = MS[variant] * pace
    common = {"family": "cat", "run": "1", "artefact": artefact, "batch": 1, "threads": 2, "rounds": 6, "warmup": 20}
    common |= {"form": "pruned" if artefact.endswith("pruned") else "parent", "variant": variant, "macs": 4_000_000}
    common |= {"precision": PEERS[variant].precision, "bytes": 1_000_000, "n": 60, "p50_ms": ms, "p95_ms": 2 * ms}
    common |= {"low_ms": 0.9 * ms, "high_ms": 1.1 * ms, "round_ms": 3 * [ms, 2 * ms], "difference": 0.25}
    common |= {"top1": 0.9, "low": 0.85, "high": 0.95, "agreement": 0.99, "dataset": "tiny", "split": "validation"}
    common |= {
        "pictures": 12,
        "convert_seconds": 1.5,
        "setup_seconds": 0.5,
        "startup_seconds": 0.25,
        "first_ms": 2 * ms,
    }
    common |= {"engine": "openvino" if "pocketzoo" in variant else "some", "hint": "f32", "weights": "trained"}
    common |= {
        "paced_p50_ms": 3 * ms,
        "paced_low_ms": ms,
        "paced_high_ms": 4 * ms,
        "paced_p95_ms": 5 * ms,
        "paced_round_ms": [ms],
        "pace_seconds": 0.005,
        "load_average": 0.5,
    }
    common |= {"peak_mb": 123.4, "environment": ENVIRONMENT, "time": "2026-12-01T00:00:00+00:00"}
    common |= {"digest": "d" * 64, "graph": None, "file": "model.onnx", "p99_ms": 9.0, "parameters": 7}
    return common | changes


def family(*, without: tuple[str, ...] = (), **changes: Any) -> list[dict[str, Any]]:
    name = changes.get("family", "cat")
    found = [row(name, variant, 1.0, **changes) for variant in MS if variant not in without]
    found += [row(f"{name}-pruned", variant, 0.5, **changes) for variant in MS if variant not in without]
    return with_ratios(found, name)


def test_a_line_per_variant() -> None:
    heading, cells = peers_text.details(family())
    assert len(cells) == 22
    assert all(len(line) == len(heading) for line in cells)
    found = dict(zip((name.removeprefix("<") for name in heading), cells[-1], strict=True))
    assert found == {
        "network": "pruned",
        "variant": "pocketzoo-int8 (OpenVINO)",
        "hint": "f32",
        "ms (95 % CI)": "2.000 (1.800-2.200)",
        "paced ms": "6.000",
        "vs ORT (95 % CI)": "5.00x (5.00-5.00)",
        "top-1 % (95 % CI)": "90.0 (85.0-95.0)",
        "same %": "99.0",
        "MB": "1.00",
        "peak MB": "123",
        "prepare s": "2.0",
        "start s": "0.25",
    }


def test_each_of_ours_against_each_peer() -> None:
    heading, cells = peers_text.against(family())
    assert heading[2:] == [
        "torch",
        "ch-last",
        "compile",
        "ORT",
        "ORT INT8",
        "OpenVINO",
        "OpenVINO bf16",
        "OpenVINO INT8",
    ]
    assert [line[:2] for line in cells] == [
        ["FP32", "same"],
        ["pruned", "same"],
        ["pruned", "unpruned"],
        ["INT8", "same"],
        ["pruned INT8", "same"],
        ["pruned INT8", "unpruned"],
    ]
    assert cells[0][2:4] == ["4.00x (4.00-4.00)", "2.00x (2.00-2.00)"]
    # A pruned network takes half the time in every runtime.
    assert cells[1][2:4] == cells[0][2:4]
    assert cells[5][2] == "20.0x (20.0-20.0)"
    assert [line[-1] for line in cells[3:]] == ["1.25x (1.25-1.25)", "1.25x (1.25-1.25)", "2.50x (2.50-2.50)"]


def test_ours_beside_the_fastest_peers_of_its_precision() -> None:
    heading, cells = peers_text.ours(family())
    assert all(len(line) == len(heading) for line in cells)
    assert [[line[1], *line[6:8], *line[-2:]] for line in cells] == [
        ["FP32", "OpenVINO", "same", "8.000", "0.80x (0.80-0.80)"],
        ["pruned", "OpenVINO", "same", "4.000", "0.80x (0.80-0.80)"],
        ["pruned", "OpenVINO", "unpruned", "8.000", "1.60x (1.60-1.60)"],
        ["INT8", "OpenVINO INT8", "same", "5.000", "1.25x (1.25-1.25)"],
        ["pruned INT8", "OpenVINO INT8", "same", "2.500", "1.25x (1.25-1.25)"],
        ["pruned INT8", "OpenVINO INT8", "unpruned", "5.000", "2.50x (2.50-2.50)"],
    ]
    alone = family(without=("ort-defaults-int8", "openvino-int8"))
    assert peers_text.ours(alone)[1][3][-5:] == ["-", "-", "-", "-", "-"]


def test_accuracy_stands_beside_the_speed_of_both() -> None:
    rows = [found | ({"top1": 0.5} if found["variant"] == "openvino-int8" else {}) for found in family()]
    heading, cells = peers_text.ours(rows)
    places = [place for place, name in enumerate(heading) if name == "top-1 %"]
    assert [[line[place] for place in places] for line in cells[3:]] == 3 * [["90.0", "50.0"]]


def test_the_same_file_twice_says_what_a_ratio_is_worth() -> None:
    rows = family()
    rows = [
        row | ({"round_ms": [8.0, 16.0, 12.0, 24.0, 10.0, 20.0]} if row["variant"] == "ort-again" else {})
        for row in rows
    ]
    assert [(found.value, found.low, found.high) for found in peers_text.noise(rows)] == [
        (1.0, 10 / 12, 1.25),
        (0.5, 5 / 12, 0.625),
    ]
    assert "0.50 to 1.00 times as fast, intervals 0.42 to 1.25 (n = 2 networks)" in peers_text.markdown(rows, "x")
    assert "noise: not measured" in peers_text.markdown(family(without=("ort-again",)), "x")


def test_random_weights_stand_apart() -> None:
    rows = [*family(), *family(family="dog", weights="random", top1=None)]
    first, second = peers_text.summary_table(rows).split("\n\n")[:2]
    assert first.startswith("Trained networks\n")
    assert second.startswith("Random weights: speed alone")
    assert ("cat" in first, "dog" in first, "cat" in second, "dog" in second) == (True, False, False, True)
    assert [table.title for table in peers_text.tables(rows)[-2:]] == [part.splitlines()[0] for part in (first, second)]


def test_networks_of_one_form_have_their_names() -> None:
    rows = [row("cat", "ort", 1.0), row("cat-pruned", "ort", 0.5), row("cat-small-pruned", "ort", 0.25)]
    names = [line[0] for line in peers_text.details(with_ratios(rows, "cat"))[1]]
    assert names == ["parent", "cat-pruned", "cat-small-pruned"]


def test_what_is_unknown_is_a_dash() -> None:
    unknown = {"low_ms": None, "high_ms": None, "top1": None, "low": None, "high": None, "agreement": None}
    line = peers_text.details(with_ratios([row("cat", "ort", 1.0, round_ms=[10.0], **unknown)], "cat"))[1][0]
    assert line[3:8] == ["10.00", "30.00", "1.00x", "-", "-"]


def test_few_rounds_have_a_range_and_no_confidence() -> None:
    few = family(round_ms=5 * [10.0])
    for heading, _ in (peers_text.details(few), peers_text.ours(few)):
        assert "ms (range)" in heading
        assert [name for name in heading if "95 % CI" in name] == [
            name for name in heading if name == "top-1 % (95 % CI)"
        ]
    assert "vs it (range)" in peers_text.ours(few)[0]
    page = peers_text.markdown(few, "x")
    assert "range: of the rounds' medians and ratios; a 95 % interval takes at least 6 rounds" in page
    assert "vs it (range)" in peers_text.summary_table(few)
    mixed = [*few, *family(family="dog")]
    assert "ms (range)" in peers_text.ours(mixed)[0]


def test_without_the_unpruned_network_there_is_nothing_to_compare_with() -> None:
    rows = with_ratios([row("cat-pruned", variant, 0.5, family="cat-pruned") for variant in MS], "cat-pruned")
    assert {(found["reference"], found["ratio"], found["ratio_low"], found["ratio_high"]) for found in rows} == {
        (None, None, None, None)
    }
    heading, cells = peers_text.details(rows)
    assert {line[heading.index("vs ORT (95 % CI)")] for line in cells} == {"-"}
    assert {line[0] for line in cells} == {"pruned"}
    assert [[line[1], line[7]] for line in peers_text.ours(rows)[1]] == [
        ["pruned", "same"],
        ["pruned INT8", "same"],
    ]
    assert "cat-pruned" in peers_text.markdown(rows, "x")


def test_the_page() -> None:
    page = peers_text.markdown(family(), "pocketzoo bench compare x")
    for fact in (
        "`pocketzoo bench compare x`",
        "n = 12 images of tiny, split validation",
        "batch 1, threads 2, 6 processes",
        "95 % CI: of times and ratios by order statistics of the rounds",
        "onnxruntime 1.0",
        "## cat",
    ):
        assert fact in page
    assert page.count("\n| cat") == 6


SUMMARY = """\
Trained networks
family  ours         engine    top-1 %     ms  fastest peer   graph     top-1 %     ms    vs it (95 % CI)
cat     FP32         OpenVINO     90.0  10.00  OpenVINO       same         90.0  8.000  0.80x (0.80-0.80)
        pruned       OpenVINO     90.0  5.000  OpenVINO       same         90.0  4.000  0.80x (0.80-0.80)
                                               OpenVINO       unpruned     90.0  8.000  1.60x (1.60-1.60)
        INT8         OpenVINO     90.0  4.000  OpenVINO INT8  same         90.0  5.000  1.25x (1.25-1.25)
        pruned INT8  OpenVINO     90.0  2.000  OpenVINO INT8  same         90.0  2.500  1.25x (1.25-1.25)
                                               OpenVINO INT8  unpruned     90.0  5.000  2.50x (2.50-2.50)

accuracy: n = 12 images of tiny, split validation
noise: one file in ONNX Runtime twice is 1.00 to 1.00 times as fast, intervals 1.00 to 1.00 (n = 2 networks)
machine: Test CPU (avx2), 2 cores, 8 GB, Linux, CPUExecutionProvider; onnxruntime 1.0; commit abc\
"""


def test_the_summary() -> None:
    assert peers_text.summary_table(family()) == SUMMARY


def test_the_summary_takes_the_last_run_and_wraps_long_names() -> None:
    name = "hymenoptera-tf_efficientnet_lite0"
    again = family(family=name, run="2", without=("torch-compile",))
    rows = [*family(), *family(family=name, p50_ms=777.0), *again]
    text = peers_text.summary_table(rows)
    assert "777" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert [line.strip() for line in text.splitlines()].count("hymenoptera-") == 1
    assert text.count("\ntf_efficientnet_lite0  ") == 1
