"""Addresses of servers, and what answers there."""

import socket

import pytest

from bench.load.images import default_image, images_of
from bench.load.server_under_test import ask, parse_url, requests_of
from tests.bench.scripted import ANSWER, Script, scripted
from zoo.base.errors import ArtefactError, DataError, UsageError

PHOTOGRAPH = default_image().read_bytes()


def test_an_address_has_its_parts():
    target = parse_url("https://user:secret@Example.org/zoo/", model="a b/c", key="k")
    assert (target.host, target.port, target.tls) == ("example.org", 443, True)
    assert target.url == "https://example.org:443/zoo"
    assert target.path == "/zoo/v1/models/a%20b%2Fc:predict"
    assert "secret" not in repr(target)
    assert "'k'" not in repr(target)
    assert parse_url("http://[::1]:3000").url == "http://[::1]:3000"
    assert parse_url("http://localhost").path == "/v1/predict"


@pytest.mark.parametrize(
    "url", ["", "localhost:3000", "ftp://a", "http://", "http://a:port", "http://a:99999", "http://a?b", "http://[::1"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UsageError, match="expected the address of a server"):
        parse_url(url)


def test_a_key_that_would_break_the_header_is_refused():
    with pytest.raises(UsageError, match="--key"):
        parse_url("http://a", key="a\r\nb: c")


def test_what_answers_is_in_its_answer_and_the_key_in_the_request():
    with scripted(Script()) as script:
        target = parse_url(f"http://127.0.0.1:{script.port}", model="tiny", key="k1")
        answer = ask(target, PHOTOGRAPH)
    assert (answer.model, answer.version, answer.digest) == tuple(ANSWER.values())
    (head,) = script.heads
    assert head.startswith("POST /v1/models/tiny:predict HTTP/1.1\r\n")
    assert "X-API-Key: k1\r\n" in head
    assert "Content-Type: image/jpeg\r\n" in head
    assert len(requests_of(target, [PHOTOGRAPH] * 3)) == 3


@pytest.mark.parametrize(
    ("status", "answer", "sentence"),
    [
        (404, {"error": "unknown model 'x'; known: tiny"}, "404: unknown model 'x'; known: tiny$"),
        (401, {"error": "this needs an API key"}, "401: this needs an API key; .*--key KEY"),
        (503, {"weird": 1}, "503: .*weird"),
        (200, {"label": "cat"}, "expected an answer with model, version and digest, got .*cat.*bentoml serve"),
    ],
)
def test_other_answers_are_sentences(status, answer, sentence):
    with scripted(Script(status=status, answer=answer)) as script, pytest.raises(ArtefactError, match=sentence):
        ask(parse_url(f"http://127.0.0.1:{script.port}"), PHOTOGRAPH)


def test_no_server_is_a_sentence_with_its_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ArtefactError, match=f"{url}: no server answers there .*bentoml serve"):
            ask(parse_url(url), PHOTOGRAPH)


def test_a_server_without_tls_is_a_sentence():
    with (
        scripted(Script()) as script,
        pytest.raises(ArtefactError, match=r"no TLS with it: .*is it an http:// address"),
    ):
        ask(parse_url(f"https://127.0.0.1:{script.port}"), PHOTOGRAPH)


def test_images_are_files_and_folders_or_the_photograph(tmp_path):
    assert images_of(()) == [("china.jpg", PHOTOGRAPH)]
    (tmp_path / "a.jpg").write_bytes(PHOTOGRAPH)
    assert images_of([tmp_path / "a.jpg", tmp_path]) == [("a.jpg", PHOTOGRAPH)] * 2
    with pytest.raises(DataError, match=r"no\.jpg"):
        images_of([tmp_path / "no.jpg"])
