from serve.models.folder import best_first, scan
from tests.serve.conftest import write_artefact


def test_accuracy_then_size_then_name(output, tmp_path):
    # What cannot be read or was not measured is last; a torn file is smaller.
    assert best_first(scan(output)) == ["liar", "good", "other", "torn", "other-int8"]
    for name in ("one", "two", "a-long-name"):
        write_artefact(tmp_path / name / "model.onnx", top1=0.5)
    assert best_first(scan(tmp_path)) == ["one", "two", "a-long-name"]
