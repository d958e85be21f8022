from pathlib import Path

from serve.protocols.schema import ModelsResponse
from tests.serve.models.repositories import serving
from zoo.base.files import sha256_file


def test_every_model_is_described(output):
    with serving(output) as (repository, _):
        answer = repository.describe()
    assert ModelsResponse.model_validate(answer).model_dump() == answer
    assert answer["default"] == "good"
    good, liar, other, int8, torn = answer["models"]
    assert good == {
        "name": "good",
        "file": "good/model.onnx",
        "version": good["digest"][:12],
        "digest": sha256_file(output / "good" / "model.onnx"),
        "bytes": (output / "good" / "model.onnx").stat().st_size,
        "precision": "float32",
        "classes": 3,
        "labels": ["cat", "dog", "fox"],
        "input": {"colour": "RGB", "size": [8, 8]},
        "accuracy": {"dataset": "d", "split": "validation", "n": 9, "top1": 0.9},
        "loaded": True,
        "engine": "onnxruntime",
        "engine_reason": good["engine_reason"],
        "error": None,
    }
    assert good["engine_reason"].startswith("onnxruntime: openvino ")
    assert (other["engine"], other["engine_reason"]) == (None, None)
    assert (liar["loaded"], liar["error"][:51]) == (False, "liar/model.onnx: golden self-check failed: expected")
    assert (other["loaded"], other["error"], other["accuracy"]["top1"]) == (False, None, 0.5)
    assert (int8["file"], int8["accuracy"]) == ("other/model.int8.onnx", None)
    assert (torn["input"], torn["labels"]) == (None, None)
    assert (torn["classes"], torn["error"].partition(":")[0]) == (None, "torn/model.onnx")
    assert str(Path(output)) not in str(answer)
