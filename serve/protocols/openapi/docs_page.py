"""The page at /docs, which shows the OpenAPI document with the Swagger UI that BentoML has."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from serve.protocols.http import Reply

__all__ = ["DOCS_POLICY", "docs_page", "pages", "static_files"]

_STYLE, _BUNDLE = "swagger-ui.css", "swagger-ui-bundle.js"
_START = """\
SwaggerUIBundle({url: "docs.json", dom_id: "#docs", deepLinking: true, validatorUrl: null, docExpansion: "list"})"""

DOCS_POLICY = (
    "default-src 'none'; "
    f"script-src 'self' 'sha256-{base64.b64encode(hashlib.sha256(_START.encode()).digest()).decode()}'; "
    "style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page: nothing from elsewhere, and no script but Swagger UI and its start, by hash."""


# Swagger UI's own classes, so that its style sheet is the only one.
_BACK = """\
<nav class="swagger-ui" aria-label="Back">
<div class="wrapper"><a class="link" href="./">Back to the page</a></div>
</nav>
"""


def docs_page(*, back: bool = True) -> bytes:
    """HTML that shows /docs.json with the Swagger UI that BentoML serves at /static_content; `back`: links to /."""
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pocketzoo: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="static_content/{_STYLE}">
</head>
<body>
{_BACK if back else ""}\
<div id="docs">This page needs JavaScript; <a href="docs.json">docs.json</a> has the same as JSON.</div>
<script src="static_content/{_BUNDLE}"></script>
<script>{_START}</script>
</body>
</html>
""".encode()


def pages(*, back: bool = True) -> dict[str, Reply]:
    """Path -> the page at /docs, with its policy; `back`: there is a page at / to go back to."""
    body = docs_page(back=back)
    always = {
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "cache-control": "no-cache",
        "content-security-policy": DOCS_POLICY,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
    given = tuple((name.encode(), value.encode()) for name, value in always.items())
    return {"/docs": Reply(body=body, media_type=b"text/html; charset=utf-8", headers=given)}


def static_files() -> tuple[Path, ...]:
    """The files of BentoML's package that the page needs."""
    import bentoml

    folder = Path(bentoml.__file__).parent / "_internal" / "server" / "static_content"
    return tuple(folder / name for name in (_STYLE, _BUNDLE))
