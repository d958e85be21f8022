"""The page at `/`: its headers and files, and what a reader gets in a real browser."""

import re

import pytest

from serve.page.route import files, unless_known
from serve.protocols.http import Call
from tests.serve.chromium import Chromium, find_chromium
from tests.serve.conftest import BENTOML_WARNINGS
from tests.serve.page_server import DIGEST, KEY, Received, run_server, stand_in

pytestmark = BENTOML_WARNINGS
needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason="no chromium on this machine: apt-get install chromium"
)
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
        "/page/icon.svg": "image/svg+xml",
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
    sources = _text("/page/app.js") + _text("/page/answers.js")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|setAttribute", sources
    )
    linked = set(re.findall(r'(?:src|href)="([^"]+)"', page))
    assert {f"/{name}" for name in linked} - set(files()) == {"/docs", "/models"}


def test_what_the_scripts_look_for_is_in_the_page():
    page, app, answers = _text("/"), _text("/page/app.js"), _text("/page/answers.js")
    ids = re.findall(r'\bid="([\w-]+)"', page)
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'\$\("([\w-]+)"\)', app))
    assert len(wanted) > 9
    assert wanted <= set(ids)
    classes = set(re.findall(r'querySelector\("\.([\w-]+)"\)', app)) | set(re.findall(r'part\("([\w-]+)"\)', answers))
    assert len(classes) > 12
    assert classes <= {name for group in re.findall(r'class="([^"]+)"', page) for name in group.split()}
    assert max(len(text.splitlines()) for text in (app, answers)) < 300


def _luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_is_at_least_wcag_aa(theme):
    block = re.findall(r":root \{(.*?)\}", _text("/page/style.css"), re.S)[theme]
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))

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
    labels = ["ant", "bee", "<i>wasp</i>", "hornet, a large one of the genus Vespa", "hoverfly"]
    assert page.texts(".bars .label") == labels
    assert page.texts(".bars .share") == [f"{n}\u202f%" for n in ("98.0", "1.3", "0.4", "0.3", "< 0.1")]
    shares = page.run("[...document.querySelectorAll('.fill')].map((n) => n.offsetWidth / n.parentNode.offsetWidth)")
    assert shares[0] == pytest.approx(0.98, abs=0.01)
    assert page.texts(".times dt") == ["read", "queue", "decode", "preprocess", "infer", "rest"]
    assert [t.partition("\u202f")[0] for t in page.texts(".times dd")] == ["0.1", "0.0", "1.8", "2.0", "2.1", "0.2"]
    assert page.text(".spent-total") == "6.2\u202fms"
    assert re.fullmatch(r"[\d.]+\u202fms", page.text(".spent-trip"))
    assert page.text(".identity") == f"version {DIGEST['ants-and-bees'][:12]}"
    assert "83.7\u202f%" in page.text(".about")
    assert "n\u00a0=\u00a049" in page.text(".about")
    assert page.text(".name") == "<b>bee.png"
    page.wait("document.querySelector('.facts').innerText.startsWith('20 × 16 pixels')")
    assert "ant 98.0" in page.text("#spoken")
    assert page.run("document.querySelector('.badge').hidden")
    assert page.complaints() == []
    assert all(url.startswith((address, "blob:")) for url in page.requests())


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
    page.run("document.getElementById('sample').click()")
    page.wait(DONE % 4)
    assert page.texts(".name")[0] == "sample digit 3.png"
    page.run("document.getElementById('clear').click()")
    assert page.run("document.getElementById('results').hidden && !document.querySelector('.card')")
    assert page.complaints() == []


@needs_chromium
def test_the_keyboard_reaches_everything_in_order_and_works_it(open_page):
    page = open_page()
    visited = []
    for _ in range(6):
        page.press("Tab")
        visited.append(page.run("document.activeElement.id || document.activeElement.getAttribute('href')"))
        if visited[-1] == "file":
            assert page.run("getComputedStyle(document.querySelector('.drop')).outlineStyle") == "solid"
        else:
            assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert visited == ["model", "second", "file", "sample", "docs", "models"]
    for _ in range(2):
        page.press("Tab", shift=True)
    page.press("Enter")
    page.wait(DONE % 1)
    page.press("Tab")
    assert page.run("document.activeElement.id") == "clear"
    page.press(" ")
    page.wait("document.getElementById('results').hidden")
    assert page.run("document.activeElement.id") == "file"
    assert page.run(
        "[...document.querySelectorAll('main select, main input')].every((node) => node.labels.length === 1)"
    )
    assert page.complaints() == []


@needs_chromium
def test_refusals_are_told_in_the_words_of_the_server(open_page, picture, tmp_path, received):
    page = open_page()
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(b"no image")
    page.choose_files("#file", torn)
    page.wait(DONE % 1)
    assert page.text(".failed .state") == "Cannot decode the image: image file is truncated."
    assert page.text("#spoken") == "torn.jpg: Cannot decode the image: image file is truncated."
    page.wait("document.querySelector('.frame').innerText === 'no preview'")
    _select(page, "model", "busy")
    page.wait(
        "document.querySelector('.failed')?.innerText.includes('Too many requests of this key. Try again in 2 s.')"
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
    assert page.text(".failed .state").startswith("No answer: the server cannot be reached")


@needs_chromium
def test_a_key_is_asked_for_sent_and_kept_for_the_tab(chromium, picture):
    received = Received()
    with run_server(stand_in(received, locked=True)) as address:
        page = chromium.open(f"{address}/")
        page.wait("!document.getElementById('key-form').hidden")
        assert page.text("#message").startswith("Expected an API key")
        page.choose_files("#file", picture)
        for key in ("wrong", KEY):
            page.wait("document.activeElement.id === 'key'")
            page.type(key)
            page.press("Enter")
            if key == "wrong":
                page.wait("!document.getElementById('message').hidden")
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
        assert len(page.texts(".bars .share")) == 6
        assert "90.0" in page.text(".about")
        assert {"read", "decode", "infer"} <= set(page.texts(".times dt"))
        assert page.complaints() == []
