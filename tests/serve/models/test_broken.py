from serve.models.broken import Screen
from serve.models.folder import scan
from tests.serve.conftest import write_artefact


def test_every_state_of_a_file_is_read_once(tmp_path):
    path = write_artefact(tmp_path / "a" / "model.onnx")
    write_artefact(tmp_path / "loaded" / "model.onnx")
    screen = Screen()
    screen.pass_over(scan(tmp_path)["loaded"])
    assert [(artefact.name, error) for artefact, error in screen.unread(scan(tmp_path).values())] == [("a", None)]
    assert list(screen.unread(scan(tmp_path).values())) == []
    path.write_bytes(b"broken")
    ((artefact, error),) = screen.unread(scan(tmp_path).values())
    assert artefact.name == "a"
    assert "a/model.onnx: not a" in str(error)


def test_what_is_left_out_is_news_once_and_again_when_it_comes_back():
    screen = Screen()
    assert list(screen.news({"a": "why"})) == [("a", "why")]
    assert list(screen.news({"a": "why", "b": "why"})) == [("b", "why")]
    assert list(screen.news({"a": "another reason"})) == [("a", "another reason")]
    assert list(screen.news({})) == []
    assert list(screen.news({"a": "why"})) == [("a", "why")]
