"""The page at /docs, in a real browser: it shows the document, under its strict policy, from this server only."""

import mimetypes

import pytest

from serve.protocols.http import Reply, json_reply
from serve.protocols.openapi.docs_page import pages, static_files
from serve.protocols.openapi.document import document
from tests.serve.chromium import Chromium, find_chromium
from tests.serve.conftest import BENTOML_WARNINGS
from tests.serve.page_server import run_server

pytestmark = BENTOML_WARNINGS


def _application():
    files = {
        f"/static_content/{path.name}": Reply(body=path.read_bytes(), media_type=mimetypes.guess_type(path)[0].encode())
        for path in static_files()
    }
    replies = {**pages(), **files, "/docs.json": json_reply(document(["vit"]))}

    async def application(scope, receive, send):
        assert scope["type"] == "http"
        reply = replies.get(scope["path"], Reply(status=404))
        headers = [(b"content-type", reply.media_type), *reply.headers]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    return application


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_document_and_finds_nothing_to_complain_about(tmp_path):
    with run_server(_application()) as address, Chromium(find_chromium(), tmp_path) as browser:
        page = browser.open(f"{address}/docs")
        page.wait("document.querySelectorAll('.opblock').length > 0")
        shown = page.texts(".opblock-summary-path")
        assert page.text("nav a") == "Back to the page"
        assert page.run("document.querySelector('nav a').href") == f"{address}/"
        assert len(shown) == sum(len(set(entry) - {"parameters"}) for entry in document()["paths"].values())
        for button in ("button", ".try-out button"):
            selector = f"document.querySelector('#operations-Predicting-predict {button}')"
            page.wait(f"{selector} !== null")
            page.run(f"{selector}.click()")
        page.wait("document.querySelector('#operations-Predicting-predict .execute') !== null")
        page.shot(tmp_path / "docs.png")
        # Swagger UI 5.12 says so of every file field, and shows it all the same.
        ours = [complaint for complaint in page.complaints() if "JsonSchema_string_binary" not in complaint]
        assert ours == []
        assert all(request.startswith((address, "data:")) for request in page.requests())
        page.run("document.body.append(Object.assign(document.createElement('script'), {textContent: '1'}))")
        assert any("Content Security Policy" in complaint for complaint in page.complaints())
