"""Loading, the golden self-check, and answers."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.zoo.factories import encode, make_card, make_graph, picture, write_artefact
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Golden
from zoo.artefact.predictor import Prediction, Predictor, default_providers, draw_golden, softmax, tolerance
from zoo.artefact.preprocess import GOLDEN_RULE, batch
from zoo.base.errors import ArtefactError, CardError, CheckError, ImageError, PocketzooError
from zoo.base.files import sha256_file
from zoo.networks import checkpoint

CPU = ("CPUExecutionProvider",)


def _open(path: Path, **options: object) -> Predictor:
    return Predictor(path, threads=1, providers=CPU, **options)


def _rewrite(path: Path, *, factor: float = 1.0, **use: object) -> None:
    """Multiply the weight, or change the card, without drawing a new golden answer."""
    model, card = graph.load(path)
    weight = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight * np.float32(factor), "weight"))
    graph.write(model, dataclasses.replace(card, use=dataclasses.replace(card.use, **use)), path)


def test_an_intact_file_passes_and_answers(artefact):
    predictor = _open(artefact)
    assert predictor.digest == sha256_file(artefact)
    files = [encode(picture(seed)) for seed in range(3)]
    answers = predictor.predict(files, top=2)
    images = batch(files, predictor.card.use.input)
    weight = numpy_helper.to_array(make_graph().graph.initializer[0])
    logits = images.mean(axis=(2, 3)) @ weight
    np.testing.assert_allclose(predictor.logits(images), logits, atol=1e-5)
    for answer, row in zip(answers, softmax(logits), strict=True):
        order = np.argsort(-row)[:2]
        assert answer.labels == tuple(predictor.card.use.labels[i] for i in order)
        assert answer.probabilities == pytest.approx(row[order], abs=1e-5)
    assert predictor.predict([]) == []
    assert len(predictor.predict(files[:1])[0].labels) == 3


def test_a_tampered_weight_fails_the_golden_check(artefact):
    _rewrite(artefact, factor=1.05)
    with pytest.raises(CheckError, match=r"golden self-check failed: expected '\w+' within 0\.001, got .* off by"):
        _open(artefact)
    assert _open(artefact, check=False).card.name == "tiny"


def test_not_a_number_fails_the_golden_check(artefact):
    # The label is right, so only the probabilities can tell.
    _rewrite(artefact, factor=np.nan, golden=Golden(rule=GOLDEN_RULE, seed=0, probabilities=(1.0, 0.0, 0.0)))
    with pytest.raises(CheckError, match="off by nan"):
        _open(artefact)


def test_another_label_fails_the_golden_check_where_it_was_decided(tmp_path):
    write_artefact(tmp_path / "model.onnx", scale=0.0)
    _open(tmp_path / "model.onnx")
    golden = Golden(rule=GOLDEN_RULE, seed=0, probabilities=(0.33313, 0.33424, 0.33263))
    _rewrite(tmp_path / "model.onnx", golden=golden)
    with pytest.raises(CheckError, match=r"expected 'dog' within 0\.001, got 'cat'.*off by 0\.0009"):
        _open(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "probabilities", [(0.33333, 0.33334, 0.33333), (0.3329, 0.3338, 0.3333), (0.3331, 0.3331, 0.3338)]
)
def test_which_of_two_equally_probable_labels_is_first_does_not_matter(tmp_path, probabilities):
    write_artefact(tmp_path / "model.onnx", scale=0.0)
    _rewrite(tmp_path / "model.onnx", golden=Golden(rule=GOLDEN_RULE, seed=0, probabilities=probabilities))
    assert _open(tmp_path / "model.onnx").card.name == "tiny"


@pytest.mark.parametrize(
    ("golden", "error", "message"),
    [
        (None, ArtefactError, "no golden self-check; write it again with `pocketzoo export`"),
        (
            Golden(rule="noise/9", seed=0, probabilities=(1.0, 0.0, 0.0)),
            CheckError,
            "golden rule 'noise/9' is unknown, this version draws 'shake256-blocks/1'",
        ),
    ],
)
def test_missing_or_unknown_golden(artefact, golden, error, message):
    _rewrite(artefact, golden=golden)
    with pytest.raises(error, match=message):
        _open(artefact)


def test_golden_picture_is_the_most_decided_of_sixteen(artefact):
    golden = draw_golden(_open(artefact))
    assert golden == _open(artefact).card.use.golden
    assert 0 <= golden.seed < 16 and sum(golden.probabilities) == pytest.approx(1, abs=1e-5)


def test_int8_kernels_may_differ_more():
    card = make_card()
    assert tolerance(card) == 1e-3
    assert tolerance(dataclasses.replace(card, inform=dataclasses.replace(card.inform, precision="int8"))) == 0.03


def test_undecided_answers_are_checked_more_closely():
    card = make_card([str(label) for label in range(100)])
    card = dataclasses.replace(card, inform=dataclasses.replace(card.inform, precision="int8"))
    golden = Golden(rule="noise/9", seed=0, probabilities=(0.02, *[0.98 / 99] * 99))
    assert tolerance(dataclasses.replace(card, use=dataclasses.replace(card.use, golden=golden))) == 0.005


def test_ties_go_to_the_earlier_label(artefact):
    answers = _open(artefact).answers(np.array([[0.25, 0.5, 0.25], [1 / 3] * 3], np.float32), top=5)
    assert [answer.labels for answer in answers] == [("dog", "cat", "hen"), ("cat", "dog", "hen")]
    assert answers[0] == Prediction(labels=("dog", "cat", "hen"), probabilities=(0.5, 0.25, 0.25))


def test_many_ties_keep_the_order_of_the_labels(tmp_path):
    # Beyond a few dozen values, NumPy's default sort is not stable.
    labels = tuple(f"label {index}" for index in range(64))
    write_artefact(tmp_path / "model.onnx", make_card(labels, stages=("train", "export")), labels=64)
    probabilities = np.full((1, 64), 1 / 65, np.float32)
    probabilities[0, 40] = 2 / 65
    (answer,) = _open(tmp_path / "model.onnx").answers(probabilities, top=64)
    assert answer.labels == (labels[40], *labels[:40], *labels[41:])


def test_softmax_and_temperature():
    logits = np.array([[0.0, np.log(3)], [1000.0, -1000.0]], np.float32)
    np.testing.assert_allclose(softmax(logits), [[0.25, 0.75], [1, 0]], atol=1e-6)
    np.testing.assert_allclose(softmax(logits, 0.5)[0], [0.1, 0.9], atol=1e-6)
    assert softmax(logits).dtype == np.float32


def test_the_cards_temperature_is_applied(artefact):
    predictor = _open(artefact)
    images = batch([encode(picture())], predictor.card.use.input)
    _rewrite(artefact, temperature=3.0)
    warm = _open(artefact, check=False)
    np.testing.assert_allclose(warm.probabilities(images), softmax(predictor.logits(images), 3.0), atol=1e-6)


def test_an_unreadable_image(artefact):
    with pytest.raises(ImageError, match="not an image"):
        _open(artefact).predict([encode(picture()), b"junk"])


def test_of_a_file_that_was_checked_only_the_card_is_read(artefact):
    model = onnx.load_model(artefact)
    stored = model.graph.initializer[0]
    weights = numpy_helper.to_array(stored).copy()
    weights.flat[0] = np.nextafter(weights.flat[0], np.float32(9))
    stored.CopyFrom(numpy_helper.from_array(weights, stored.name))
    onnx.save_model(model, artefact)
    for checked in (None, "0" * 64):
        with pytest.raises(CheckError, match="not the one that its card was written with"):
            _open(artefact, checked=checked)
    predictor = _open(artefact, checked=sha256_file(artefact))
    assert predictor.card.use.golden is not None


def test_other_threads_answer_the_same_without_reading_the_file_again(artefact, monkeypatch):
    predictor = _open(artefact)
    monkeypatch.setattr("zoo.artefact.predictor.sha256_file", lambda path: pytest.fail("was read"))
    other = predictor.with_threads(2)
    images = np.ones((2, *predictor.card.use.input.shape), np.float32)
    np.testing.assert_allclose(other.logits(images), predictor.logits(images), rtol=1e-5)
    assert (other.engine, other.digest, other.engine_reason) == (
        predictor.engine,
        predictor.digest,
        predictor.engine_reason,
    )


def test_corrupt_and_missing_files(tmp_path, artefact):
    artefact.write_bytes(artefact.read_bytes()[:-50])
    with pytest.raises((ArtefactError, CardError), match=r"model\.onnx"):
        _open(artefact)
    with pytest.raises(ArtefactError, match="no ONNX file"):
        _open(tmp_path / "none.onnx")


def test_an_operator_that_the_runtime_does_not_know(tmp_path):
    model = make_graph()
    model.graph.node[0].op_type, model.graph.node[0].domain = "Teleport", "ai.elsewhere"
    model.opset_import.append(onnx.helper.make_opsetid("ai.elsewhere", 1))
    graph.write(model, make_card(), tmp_path / "model.onnx")
    with pytest.raises(ArtefactError, match=r"model\.onnx: ONNX Runtime .* cannot load it: .*Teleport"):
        _open(tmp_path / "model.onnx")


def test_providers_end_with_the_cpu():
    assert default_providers()[-1] == "CPUExecutionProvider"


def test_serving_needs_no_torch():
    code = "import sys, zoo.artefact.predictor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
def test_a_pickle_executes_nothing(tmp_path, name):
    executed = tmp_path / "executed"
    path = tmp_path / name
    path.write_bytes(pickle.dumps(_Malicious(executed)))
    read = graph.load if name.endswith("onnx") else checkpoint.load
    with pytest.raises(PocketzooError, match=name):
        read(path)
    assert not executed.exists()
    pickle.loads(path.read_bytes())
    assert executed.exists(), "the trap itself must work"
