"""The page at `/`: its headers and files, and what a reader gets in a real browser."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve.page.route import files, unless_known
from serve.protocols.http import Call
from tests.serve.axe import SCREENS, complaints, needs_axe
from tests.serve.chromium import Chromium, Page, find_chromium
from tests.serve.conftest import BENTOML_WARNINGS
from tests.serve.page_server import DIGEST, KEY, LABELS, Received, run_server, stand_in

pytestmark = BENTOML_WARNINGS
needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason="no chromium on this machine: apt-get install chromium"
)
SCRIPTS = sorted(path for path in files() if path.endswith(".js"))
DONE = "document.querySelectorAll('.outcome:not([hidden]), .failed').length === %d"


def _text(path: str) -> str:
    return files()[path].body.decode()


def _call(**headers: str) -> Call:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return Call(receive=None, method="GET", path="/", headers=named, request_id="1")


def test_the_page_is_these_files_with_types_and_tags():
    page = files()
    assert {path: reply.media_type.decode().partition(";")[0] for path, reply in page.items()} == {
        "/": "text/html",
        "/page/answers.js": "text/javascript",
        "/page/app.js": "text/javascript",
        "/page/errors.js": "text/javascript",
        "/page/icon.svg": "image/svg+xml",
        "/page/known.js": "text/javascript",
        "/page/sample.js": "text/javascript",
        "/page/server.js": "text/javascript",
        "/page/style.css": "text/css",
    }
    tags = {dict(reply.headers)[b"etag"] for reply in page.values()}
    assert len(tags) == len(page)
    assert all(re.fullmatch(rb'"[0-9a-f]{32}"', tag) for tag in tags)


def test_every_file_has_the_strict_headers():
    for reply in files().values():
        headers = dict(reply.headers)
        policy = dict(part.split(b" ", 1) for part in headers[b"content-security-policy"].split(b"; "))
        assert policy[b"default-src"] == policy[b"form-action"] == policy[b"base-uri"] == b"'none'"
        assert policy[b"script-src"] == policy[b"style-src"] == policy[b"connect-src"] == b"'self'"
        assert policy[b"img-src"] == b"'self' blob:"
        assert policy[b"frame-ancestors"] == b"'none'"
        assert headers[b"x-content-type-options"] == b"nosniff"
        assert headers[b"referrer-policy"] == b"no-referrer"
        assert headers[b"cross-origin-opener-policy"] == headers[b"cross-origin-resource-policy"] == b"same-origin"
        assert headers[b"cache-control"] == b"no-cache"


def test_a_browser_that_has_the_file_gets_304():
    reply = files()["/"]
    tag = dict(reply.headers)[b"etag"].decode()
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = unless_known(reply, _call(if_none_match=known))
        assert (again.status, again.body, again.headers) == (304, b"", reply.headers)
    assert unless_known(reply, _call()) is reply
    assert unless_known(reply, _call(if_none_match='"other"')) is reply


def test_nothing_is_external_or_inline():
    for path in files():
        addresses = re.findall(r"\b(?:https?:)?//[\w.-]+\.[a-z]{2,}[^\s\"']*", _text(path))
        assert addresses == (["http://www.w3.org/2000/svg"] if path.endswith(".svg") else []), path
    page = _text("/")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|data:", page)
    assert re.findall(r"<script[^>]*>(.*?)</script>", page, re.S) == [""]
    sources = "".join(map(_text, SCRIPTS))
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|setAttribute", sources
    )
    linked = set(re.findall(r'(?:src|href)="([^"]+)"', page))
    assert {f"/{name}" for name in linked} - set(files()) == {"/docs", "/models"}


def test_what_the_scripts_look_for_is_in_the_page():
    page, app, parts = _text("/"), _text("/page/app.js"), _text("/page/answers.js") + _text("/page/known.js")
    ids = re.findall(r'\bid="([\w-]+)"', page)
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'\$\("([\w-]+)"\)', app))
    assert len(wanted) > 9
    assert wanted <= set(ids)
    classes = set(re.findall(r'querySelector\("\.([\w-]+)"\)', app)) | set(re.findall(r'part\("([\w-]+)"\)', parts))
    assert len(classes) > 24
    assert classes <= {name for group in re.findall(r'class="([^"]+)"', page) for name in group.split()}
    assert max(len(_text(path).splitlines()) for path in SCRIPTS) < 300


class _Tree(HTMLParser):
    """Elements of a page: name, attributes, the elements around it, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[SimpleNamespace] = []
        self._open: list[SimpleNamespace] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        node = SimpleNamespace(tag=tag, given=dict(attrs), around=[n.tag for n in self._open], text="")
        self.found.append(node)
        if tag not in ("meta", "link", "img", "input"):
            self._open.append(node)

    def handle_endtag(self, tag):
        assert self._open.pop().tag == tag

    def handle_data(self, data):
        for node in self._open:
            node.text += data.strip()

    def named(self, *tags: str) -> list[SimpleNamespace]:
        return [node for node in self.found if node.tag in tags]


def test_every_control_has_a_name_and_every_reference_an_end():
    tree = _Tree(_text("/"))
    ids = {node.given["id"] for node in tree.found if "id" in node.given}
    labelled = [node.given["for"] for node in tree.named("label") if "for" in node.given]
    controls = tree.named("input", "select", "textarea")
    assert len(controls) == 6
    for control in controls:
        assert "label" in control.around or labelled.count(control.given.get("id")) == 1, control
    assert len(tree.named("label")) == len(controls)
    assert all(node.text for node in tree.named("button", "label", "a", "h1", "h2"))
    assert all("alt" in node.given for node in tree.named("img"))
    references = labelled + [
        name
        for node in tree.found
        for kind in ("aria-labelledby", "aria-describedby")
        for name in node.given.get(kind, "").split()
    ]
    links = re.findall(r'\.href = "#([\w-]+)"', "".join(map(_text, SCRIPTS)))
    assert links == ["known"]
    assert set(references + links) <= ids
    assert len(tree.named("h1")) == len(tree.named("main")) == 1
    assert tree.named("html")[0].given["lang"] == "en"
    assert {node.given.get("tabindex", "0") for node in tree.found} <= {"0", "-1"}


def _luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_is_at_least_wcag_aa(theme):
    pairs = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", _text("/page/style.css"))
    colour = {name: themes[theme] for name, *themes in pairs}

    def contrast(one: str, other: str) -> float:
        low, high = sorted((_luminance(colour[one]), _luminance(colour[other])))
        return (high + 0.05) / (low + 0.05)

    for ink in ("ink", "soft", "accent"):
        for ground in ("paper", "sheet"):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
    for ink, ground in (("on-accent", "accent"), ("warn", "warn-wash"), ("bad", "bad-wash"), ("soft", "wash")):
        assert contrast(ink, ground) >= 4.5, (ink, ground)
    for edge in ("edge", "accent"):  # borders of controls, rings of the focus, the bar that counts
        assert contrast(edge, "sheet") >= 3, edge


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Chromium(find_chromium(), tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def received():
    return Received()


@pytest.fixture(scope="module")
def address(received):
    with run_server(stand_in(received)) as address:
        yield address


@pytest.fixture
def open_page(chromium, address, received):
    received.clear()

    def opened(**settings):
        page = chromium.open(f"{address}/", **settings)
        page.wait("!document.getElementById('model').disabled")
        return page

    return opened


@pytest.fixture
def picture(tmp_path, draw):
    path = tmp_path / "<b>bee.png"
    path.write_bytes(draw(0))
    return path


def _select(page, name: str, value: str) -> None:
    page.run(
        f"{{const s = document.getElementById('{name}'); s.value = '{value}'; s.dispatchEvent(new Event('change'))}}"
    )


@needs_axe
@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_nothing(open_page, chromium, picture, tmp_path, screen):
    page = open_page(prefers_reduced_motion="reduce", **screen)
    assert complaints(page) == []
    (tmp_path / "torn.jpg").write_bytes(b"no image")
    _select(page, "second", "ants-and-bees-int8")
    page.choose_files("#file", picture, tmp_path / "torn.jpg")
    page.wait(DONE % 4)
    page.run("document.querySelectorAll('details').forEach((node) => (node.open = true))")
    assert complaints(page) == []
    _select(page, "second", "plants")
    page.run("document.querySelectorAll('.known-many').forEach((node) => (node.open = true))")
    page.wait("document.querySelectorAll('.labels li').length === 1000")
    assert complaints(page) == []
    with run_server(stand_in(Received(), locked=True)) as address:
        page = chromium.open(f"{address}/", **screen)
        page.wait("!document.getElementById('key-form').hidden")
        assert complaints(page) == []


@needs_chromium
def test_a_chosen_picture_is_sent_as_it_is_and_answered(open_page, picture, received, address):
    page = open_page()
    assert page.run("document.getElementById('model').value") == "ants-and-bees"
    assert "broken" not in page.text("#model")
    page.choose_files("#file", picture)
    page.wait(DONE % 1)
    ((path, headers, size),) = received
    assert (path, size) == ("/v1/models/ants-and-bees:predict", picture.stat().st_size)
    assert headers[b"content-type"] == b"image/png"
    assert b"x-api-key" not in headers
    assert page.text(".best-label") == "ant"
    assert page.text(".best-share") == "98.0\u202f%"
    assert page.texts(".bars .label") == ["bee", "<i>wasp</i>", "hornet, a large one of the genus Vespa", "hoverfly"]
    assert page.texts(".bars .share") == [f"{n}\u202f%" for n in ("1.3", "0.4", "0.3", "< 0.1")]
    shares = page.run("[...document.querySelectorAll('.fill')].map((n) => n.offsetWidth / n.parentNode.offsetWidth)")
    assert shares[0] == pytest.approx(0.98, abs=0.01)
    page.wait("document.querySelector('.one-of').innerText === 'One of its 3 labels, whatever the image shows.'")
    assert not page.run("document.querySelector('.spent').open")
    page.run("document.querySelector('.spent summary').click()")
    assert page.texts(".times dt") == ["read", "queue", "decode", "preprocess", "infer", "rest"]
    assert [t.partition("\u202f")[0] for t in page.texts(".times dd")] == ["0.1", "0.0", "1.8", "2.0", "2.1", "0.2"]
    assert page.text(".spent-total") == "6.2\u202fms"
    assert re.fullmatch(r"[\d.]+\u202fms", page.text(".spent-trip"))
    assert page.text(".identity") == f"version {DIGEST['ants-and-bees'][:12]}"
    assert page.text(".name") == "<b>bee.png"
    page.wait("document.querySelector('.facts').innerText.startsWith('20 × 16 pixels')")
    assert "ant 98.0" in page.text("#spoken")
    assert page.run("document.querySelector('.badge').hidden")
    assert page.complaints() == []
    assert all(url.startswith((address, "blob:")) for url in page.requests())


@needs_chromium
def test_what_a_model_is_and_knows_is_told_before_and_looked_up_again_once_it_is_loaded(chromium, picture):
    with run_server(stand_in(Received())) as address:
        page = chromium.open(f"{address}/")
        page.wait("!document.getElementById('model').disabled")
        _check_what_is_known(page, picture)


def _check_what_is_known(page: Page, picture: Path) -> None:
    assert page.text("#known-title") == "What it knows"
    assert "always names one of its labels, whatever the image shows" in page.text("#known .caution")
    facts = (
        "83.7\u202f% right (hymenoptera validation, n\u00a0=\u00a049) · sees 320 × 224 pixels · float32 · 13.4\u202fMB"
    )
    assert page.texts(".known-model .facts:not(.engine)") == [facts]
    assert page.text(".engine") == ""
    assert page.texts(".known-few li") == list(LABELS)
    assert page.text("#unusable") == "Cannot be used: broken (broken/model.onnx: not a readable ONNX file)"
    page.choose_files("#file", picture)
    page.wait("document.querySelector('.engine').innerText !== ''")
    assert page.text(".engine") == "openvino: 1.3 times as fast as onnxruntime"
    asked = len(page.requests())
    page.choose_files("#file", picture)
    page.wait(DONE % 2)
    assert [url for url in page.requests()[asked:] if url.endswith("/models")] == []
    _select(page, "second", "digits")
    assert page.text("#known-title") == "What they know"
    assert page.texts(".known-name") == ["ants-and-bees", "digits"]
    assert "accuracy not known · sees 32 × 28 pixels, greyscale" in page.texts(".known-model .facts")[2]
    assert page.complaints() == []


@needs_chromium
def test_many_labels_are_searched_with_the_keyboard(open_page):
    page = open_page()
    _select(page, "model", "plants")
    assert page.text(".known-many summary") == "Show its 1,000 labels"
    assert page.texts(".labels li") == []
    page.run("document.querySelector('.known-many summary').focus()")
    page.press("Enter")
    page.wait("document.querySelectorAll('.labels li').length === 1000")
    page.press("Tab")
    page.type("genus 099")
    page.wait("document.querySelectorAll('.labels li').length === 10")
    assert page.texts(".labels li")[9] == "Genus_0999 species"
    assert page.text(".found") == "10 labels of 1,000"
    page.type(" no such")
    page.wait("document.querySelector('.found').innerText === '0 labels of 1,000'")
    assert page.run("document.activeElement.className") == "search"
    assert page.complaints() == []


@needs_chromium
@pytest.mark.parametrize(("width", "height"), [(390, 844), (360, 740)])
def test_on_a_phone_the_answer_is_on_the_first_screen_above_a_small_image(open_page, picture, width, height):
    page = open_page(width=width, height=height, phone=True)
    page.choose_files("#file", picture)
    page.wait(DONE % 1)
    page.wait("document.querySelector('.one-of').innerText !== ''")
    best, bars, frame = page.run("""[".best", ".bars", ".frame"].map((name) => {
        const box = document.querySelector(name).getBoundingClientRect();
        return [box.top, box.bottom, box.width];
    })""")
    assert 0 < best[0] < bars[0] < bars[1] < frame[0]
    assert frame[1] < height
    assert frame[2] <= 160
    assert page.run("[scrollY, document.documentElement.scrollWidth]") == [0, width]


@needs_chromium
def test_two_models_stand_beside_each_other_and_below_on_a_phone(open_page, picture):
    page = open_page(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    page.choose_files("#file", picture)
    page.wait(DONE % 1)
    _select(page, "second", "ants-and-bees-int8")
    page.wait("!document.querySelector('.verdict').hidden")
    assert page.texts(".best-label") == ["ant", "bee"]
    assert page.run("[...document.querySelectorAll('.badge')].map((badge) => badge.hidden)") == [True, False]
    assert page.text(".verdict") == "They disagree: ant or bee."
    where = """[...document.querySelectorAll('.answer')].map((node) => {
        const box = node.getBoundingClientRect();
        return [box.x, box.y];
    })"""
    (left, top), (right, level) = page.run(where)
    assert left < right
    assert top == level
    assert page.run("getComputedStyle(document.querySelector('.fill')).animationName") == "none"
    page.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    (left, top), (right, level) = page.run(where)
    assert left == right
    assert top < level
    assert page.run("document.documentElement.scrollWidth") == 360
    small = """[...document.querySelectorAll('button, select, .drop, footer a')]
        .filter((node) => node.offsetHeight && node.offsetHeight < 44).length"""
    assert page.run(small) == 0
    assert page.complaints() == []


@needs_chromium
def test_dropped_pasted_and_drawn_pictures_each_get_an_answer(open_page, picture, tmp_path, received):
    page = open_page()
    second = tmp_path / "second.png"
    second.write_bytes(picture.read_bytes())
    page.drop_files(picture, second)
    page.wait(DONE % 2)
    assert page.texts(".name") == ["<b>bee.png", "second.png"]
    page.run("""{
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(200)], "pasted.webp", {type: "image/webp"}));
        document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
    }""")
    page.wait(DONE % 3)
    assert received[-1][1][b"content-type"] == b"image/webp"
    assert page.run("document.getElementById('sample').hidden")
    _select(page, "model", "digits")
    page.run("document.getElementById('sample').click()")
    page.wait(DONE % 4)
    assert page.texts(".name")[0] == "sample digit 3.png"
    page.run("document.getElementById('clear').click()")
    assert page.run("document.getElementById('results').hidden && !document.querySelector('.card')")
    assert page.complaints() == []


@needs_chromium
def test_the_keyboard_reaches_everything_in_order_and_works_it(open_page):
    page = open_page()
    _select(page, "model", "digits")
    visited = []
    for _ in range(6):
        page.press("Tab")
        visited.append(page.run("document.activeElement.id || document.activeElement.getAttribute('href')"))
        if visited[-1] == "file":
            assert page.run("getComputedStyle(document.querySelector('.drop')).outlineStyle") == "solid"
        else:
            assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert visited == ["model", "second", "file", "sample", "docs", "as-json"]
    for _ in range(2):
        page.press("Tab", shift=True)
    page.press("Enter")
    page.wait(DONE % 1)
    page.press("Tab")
    assert page.run("document.activeElement.id") == "clear"
    page.press(" ")
    page.wait("document.getElementById('results').hidden")
    assert page.run("document.activeElement.id") == "file"
    assert page.complaints() == []


@needs_chromium
def test_refusals_are_told_in_words_for_whoever_sent_the_image(open_page, picture, tmp_path, received):
    page = open_page()
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(b"no image")
    page.choose_files("#file", torn)
    page.wait(DONE % 1)
    sentence = (
        "The image cannot be read: the file is damaged, or of a rare kind. Save it as JPEG or PNG, and send that."
    )
    assert page.text(".failed .state") == sentence
    assert page.text("#spoken") == f"torn.jpg: {sentence}"
    assert (
        page.run("document.querySelector('.said p').textContent") == "cannot decode the image: image file is truncated"
    )
    assert page.run("[document.querySelector('.said').open, document.querySelector('.again').hidden]") == [False, True]
    page.wait("document.querySelector('.frame').innerText === 'no preview'")
    _select(page, "model", "busy")
    page.wait(
        "document.querySelector('.failed .state')?.innerText === "
        "'That was more than this key may ask in so short a time. Try again in 2\u202fs.'"
    )
    asked = len(received)
    page.run("document.querySelector('.again').click()")
    page.wait("document.querySelector('.failed') && document.activeElement.className === 'card'")
    assert len(received) == asked + 1


@needs_chromium
def test_a_server_that_is_gone_is_told(chromium, picture):
    with run_server(stand_in(Received())) as address:
        page = chromium.open(f"{address}/")
        page.wait("!document.getElementById('model').disabled")
    page.choose_files("#file", picture)
    page.wait(DONE % 1)
    assert page.text(".failed .state") == "The server cannot be reached. Check the connection, and try again."
    assert page.run("document.querySelector('.said').hidden")


@needs_chromium
def test_models_that_do_not_come_can_be_asked_for_again(chromium):
    with run_server(stand_in(Received())) as address:
        page = chromium.open(f"{address}/page/icon.svg")
        page.call("Fetch.enable", patterns=[{"urlPattern": "*/models"}])
        page.call("Page.navigate", url=f"{address}/")
        request = page.event("Fetch.requestPaused")["requestId"]
        page.call("Fetch.failRequest", requestId=request, errorReason="ConnectionRefused")
        page.wait("document.querySelector('#message button') !== null")
        assert page.text("#message p") == "The server cannot be reached. Check the connection, and try again."
        page.call("Fetch.disable")
        page.run("document.querySelector('#message button').click()")
        page.wait("!document.getElementById('model').disabled")
        assert page.run("[document.getElementById('message').hidden, document.activeElement.id]") == [True, "file"]


@needs_chromium
def test_each_status_has_a_sentence_without_the_words_of_programmers(open_page):
    page = open_page()

    def refused(status: int, text: str = "", **given: object) -> list:
        call = f"refused({status}, {json.dumps({'text': text, **given})})"
        return page.run(
            f"import('/page/errors.js').then(({{refused}}) => {{const e = {call}; "
            "return [e.message, e.said, e.passes]})"
        )

    again = {408, 429, 500, 502, 503, 504, 599}
    for status in (400, 401, 404, 408, 413, 415, 422, 429, 500, 502, 503, 504, 599):
        message, said, passes = refused(status, '{"error": "send one with: curl -F"}')
        assert re.fullmatch(r"[A-Z][^{}<>]{15,120}\.", message), message
        assert not re.search(r"curl|HTTP|POCKETZOO|header|body|JSON", message)
        assert said == "send one with: curl -F"
        assert passes == (status in again)
    assert refused(401)[0] == "Enter a key first."
    assert refused(401, keySent=True)[0] == "The server does not know this key. Enter it again."
    assert refused(503, "<h1>nginx</h1>", wait=7) == [
        "The server is busy, or this model is not ready. Try again in 7\u202fs.",
        "",
        True,
    ]
    assert refused(429, wait=3600)[0].endswith(" Try again in 60\u202fmin.")
    assert refused(418)[0] == "The server refused (status 418)."


@needs_chromium
def test_the_header_retry_after_is_seconds_or_a_date(open_page):
    page = open_page()

    def seconds(header: str | None) -> object:
        now = 1_700_000_000_000  # Tue, 14 Nov 2023 22:13:20 GMT
        call = f"waitSeconds({json.dumps(header)}, {now})"
        return page.run(f"import('/page/errors.js').then(({{waitSeconds}}) => String({call}))")

    assert [seconds(header) for header in ("3", " 12 ", "Tue, 14 Nov 2023 22:14:00 GMT")] == ["3", "12", "40"]
    assert [seconds(header) for header in ("Tue, 14 Nov 2023 22:00:00 GMT", "soon", "-1", "", None)] == [
        "0",
        "NaN",
        "0",
        "NaN",
        "NaN",
    ]


@needs_chromium
def test_two_models_disagree_only_where_they_know_the_same_labels(open_page):
    page = open_page()

    def verdict(labels: list[str], known: list[list[str] | None]) -> object:
        call = f"verdict({json.dumps(labels)}, {json.dumps(known)})"
        return page.run(f"import('/page/answers.js').then(({{verdict}}) => {call})")

    assert verdict(["ant", "ant"], [["ant", "bee"], ["ant", "fly"]]) == "Both say ant."
    assert verdict(["bee", "ant"], [["ant", "bee"], ["bee", "ant"]]) == "They disagree: bee or ant."
    assert (
        verdict(["bee", "8"], [["ant", "bee"], ["8", "3"]])
        == "They know different labels, so the answers do not compare."
    )
    assert verdict(["a,b", "b"], [["a,b", "b"], ["a", "b,b"]]).startswith("They know different labels")


@needs_chromium
def test_a_digit_is_drawn_only_for_models_of_small_greyscale_digits(open_page):
    page = open_page()
    digits = {"input": {"colour": "L", "size": [28, 28]}, "labels": list("0123456789")}
    unfit = (
        {},
        {"input": None, "labels": None},
        {**digits, "input": {"colour": "RGB", "size": [28, 28]}},
        {**digits, "input": {"colour": "L", "size": [28, 224]}},
        {**digits, "labels": ["shirt", "coat"]},
        {**digits, "labels": ["13", "33"]},
    )
    fit = (digits, {**digits, "labels": ["two", "Three"]}, {**digits, "labels": ["digit_3"]})
    takes = "import('/page/sample.js').then(({takesDigits}) => %s.map(takesDigits))"
    assert page.run(takes % json.dumps(unfit)) == [False] * 6
    assert page.run(takes % json.dumps(fit)) == [True] * 3


@needs_chromium
def test_a_key_is_asked_for_sent_and_kept_for_the_tab(chromium, picture):
    received = Received()
    with run_server(stand_in(received, locked=True)) as address:
        page = chromium.open(f"{address}/")
        page.wait("!document.getElementById('key-form').hidden")
        assert page.text("#key-form h2") == "This server asks for a key"
        assert page.run("document.activeElement.id") == "key"
        shown = "['message', 'choices', 'as-json'].map((id) => document.getElementById(id).offsetHeight > 0)"
        assert page.run(shown) == [False, False, False]
        colours = page.run("""["#key-form button", ".drop"].map(
            (name) => getComputedStyle(document.querySelector(name)).backgroundColor)""")
        assert colours == ["rgb(11, 107, 93)", "rgba(0, 0, 0, 0)"]
        page.choose_files("#file", picture)
        for key in ("wrong", KEY):
            page.wait("document.activeElement.id === 'key'")
            page.type(key)
            page.press("Enter")
            if key == "wrong":
                page.wait("!document.getElementById('message').hidden")
                assert page.text("#message") == "The server does not know this key. Enter it again."
        page.wait(DONE % 1)
        assert page.text(".best-label") == "ant"
        assert [headers[b"x-api-key"] for _, headers, _ in received] == [KEY.encode()]
        assert page.run("document.getElementById('key-form').hidden && document.getElementById('key').value === ''")
        assert page.run("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]


@needs_chromium
def test_the_real_server_answers_the_page(chromium, picture, output, monkeypatch):
    from serve.service import Classifier

    monkeypatch.setenv("POCKETZOO_MODELS", str(output))
    monkeypatch.setenv("POCKETZOO_LOG", "off")
    with run_server(Classifier.to_asgi(), lifespan="on") as address:
        page = chromium.open(f"{address}/")
        page.wait("!document.getElementById('model').disabled")
        assert page.run("document.getElementById('model').value") == "good"
        _select(page, "second", "other")
        page.choose_files("#file", picture)
        page.wait(DONE % 2)
        assert page.texts(".failed .state") == []
        assert page.texts(".answer .model") == ["good", "other"]
        assert set(page.texts(".best-label")) <= {"cat", "dog", "fox"}
        assert len(page.texts(".best-share")) == 2
        assert len(page.texts(".bars .share")) == 4
        page.wait("[...document.querySelectorAll('.one-of')].every((node) => node.innerText.includes('3 labels'))")
        assert page.text(".known-model .facts").startswith(
            "90.0\u202f% right (d validation, n\u00a0=\u00a09) · sees 8 × 8"
        )
        assert page.texts(".known-few li") == ["cat", "dog", "fox"] * 2
        assert "torn (torn/model.onnx: " in page.text("#unusable")
        page.run("document.querySelectorAll('.spent').forEach((node) => (node.open = true))")
        assert {"read", "decode", "infer"} <= set(page.texts(".times dt"))
        assert page.complaints() == []
