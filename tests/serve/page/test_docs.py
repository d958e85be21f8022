"""The page at /docs says what the document says, also to those who hear it, and loads nothing from elsewhere."""

import re
from html import escape

import pytest

from serve.page.docs import docs_page, docs_reply
from serve.page.route import ICON, POLICY, STYLE, files
from serve.protocols.openapi.document import document
from tests.serve.axe import SCREENS, complaints, needs_axe
from tests.serve.chromium import Chromium, find_chromium
from tests.serve.conftest import BENTOML_WARNINGS
from tests.serve.page_server import run_server

pytestmark = BENTOML_WARNINGS
needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")
DOCUMENT = document(["vit"])
OPERATIONS = [
    (method, path, operation) for path, entry in DOCUMENT["paths"].items() for method, operation in entry.items()
]


async def _application(scope, receive, send):
    replies = {"/docs": docs_reply(DOCUMENT), ICON: files()[ICON], STYLE: files()[STYLE]}
    reply = replies[scope["path"]]
    headers = [(b"content-type", reply.media_type), *reply.headers]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Chromium(find_chromium(), tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def address():
    with run_server(_application) as address:
        yield address


def test_every_operation_status_and_schema_stands_there():
    text = docs_page(DOCUMENT)
    assert len(OPERATIONS) > 20
    for method, path, operation in OPERATIONS:
        (shown,) = re.findall(rf'<details id="{operation["operationId"]}">(.*?)</details>', text, re.DOTALL)
        assert f">{method.upper()}</span> <code>{path}</code> <span>{escape(operation['summary'])}</span>" in shown
        assert re.findall(r"<tr><td>(\d+)</td>", shown) == sorted(operation["responses"])
        assert f"http://localhost:3000{path}</pre>" in shown
    linked = set(re.findall(r'href="#(schema-\w+)"', text))
    assert (
        linked
        <= set(re.findall(r'<pre id="([\w-]+)"', text))
        == {f"schema-{name}" for name in DOCUMENT["components"]["schemas"]}
    )


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("/predict", "curl -F images=@photo.jpg http://localhost:3000/predict"),
        ("/v1/predict", "curl --data-binary @photo.jpg http://localhost:3000/v1/predict"),
        ("/models", "curl http://localhost:3000/models"),
    ],
)
def test_there_is_a_command_to_copy(path, command):
    assert f"<pre>{command}</pre>" in docs_page(DOCUMENT)


def test_what_a_document_says_is_text_and_never_markup():
    paths = {"/<b>": {"get": OPERATIONS[0][2] | {"summary": "<script>1</script>", "tags": ["<i>"]}}}
    text = docs_page(DOCUMENT | {"paths": paths})
    assert not re.search(r"<script|<b>|<i>", text)


def test_it_loads_nothing_from_elsewhere_under_the_policy_of_all_pages():
    text = docs_page(DOCUMENT)
    assert re.findall(r'(?:src|href)="([^#"][^"]*)"', text) == ["page/icon.svg", "page/style.css", "./", "docs.json"]
    assert 'href="./"' not in docs_page(DOCUMENT, back=False)
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=", text)
    headers = {name.decode(): value.decode() for name, value in docs_reply(DOCUMENT).headers}
    assert POLICY.items() <= headers.items()


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_and_opens_a_schema_by_its_link(chromium, address, width):
    page = chromium.open(f"{address}/docs", width=width, phone=width < 500)
    assert page.text("footer a") == "Back to the page"
    page.run("document.querySelectorAll('details').forEach((node) => (node.open = true))")
    assert page.run("document.documentElement.scrollWidth") == width
    page.run("document.querySelectorAll('details').forEach((node) => (node.open = false))")
    page.run("document.querySelector('#predict').open = true")
    page.run("document.querySelector('#predict a[href=\"#schema-PredictResponse\"]').click()")
    page.wait("document.querySelector('#schema-PredictResponse').parentNode.open")
    assert page.complaints() == []
    assert all(request.startswith(address) for request in page.requests())


@needs_axe
@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_nothing(chromium, address, screen):
    page = chromium.open(f"{address}/docs", **screen)
    opened = "#predict, #modelInfer, #readyz, details:has(#schema-Accuracy)"
    page.run(f"document.querySelectorAll('{opened}').forEach((node) => (node.open = true))")
    assert page.run("document.querySelectorAll('details[open]').length") == 4
    assert complaints(page) == []
