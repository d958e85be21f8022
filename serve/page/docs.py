"""The page at /docs: the OpenAPI document to read, in the style of the page at `/`, without a script."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from html import escape
from typing import Any

from serve.page.route import ICON, STYLE, page_reply
from serve.protocols.http import Reply

__all__ = ["docs_page", "docs_reply"]

JsonObject = Mapping[str, Any]

_SERVER = "http://localhost:3000"


def docs_reply(document: JsonObject, *, back: bool = True) -> Reply:
    """:func:`docs_page` as a complete reply."""
    return page_reply(docs_page(document, back=back).encode(), b"text/html; charset=utf-8")


def docs_page(document: JsonObject, *, back: bool = True) -> str:
    """HTML that shows an OpenAPI document.

    Args:
        document: of :func:`serve.protocols.openapi.document.document`.
        back: whether there is a page at `/` to go back to.
    """
    components = document["components"]
    sections: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            shown = _operation(method.upper(), path, operation, components)
            sections.setdefault(operation["tags"][0], []).append(shown)
    operations = "".join(f"<section><h2>{escape(tag)}</h2>{''.join(each)}</section>" for tag, each in sections.items())
    schemas = "".join(
        f"<details><summary><code>{name}</code></summary>{_json(schema, f'schema-{name}')}</details>"
        for name, schema in sorted(components["schemas"].items())
    )
    home = '<a href="./">Back to the page</a>' if back else ""
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>pocketzoo: API</title>
<link rel="icon" href="{ICON.removeprefix("/")}" type="image/svg+xml">
<link rel="stylesheet" href="{STYLE.removeprefix("/")}">
</head>
<body class="docs">
<main>
<h1>{escape(document["info"]["title"])}: API</h1>
{_paragraph(document["info"]["description"])}
{operations}
<section><h2>Schemas</h2>{schemas}</section>
</main>
<footer><nav aria-label="More of this server">{home}<a href="docs.json">The same as JSON (OpenAPI)</a></nav></footer>
</body>
</html>
"""


def _operation(method: str, path: str, operation: JsonObject, components: JsonObject) -> str:
    parts = [_paragraph(operation.get("description", ""))]
    if operation.get("security"):
        parts.append("<p>With an API key, if the server has any.</p>")
    if parameters := [_resolved(one, components) for one in operation["parameters"]]:
        rows = [(f"<code>{one['name']}</code>", one["in"], _inline(one["description"])) for one in parameters]
        parts.append(_table(("Parameter", "Where", "Meaning"), rows))
    if body := operation.get("requestBody"):
        kinds = [_content(kind, entry) for kind, entry in body["content"].items()]
        parts.append(_table(("Body" if body["required"] else "Body (may be left out)", "Schema"), kinds))
    parts.append(f"<pre>{escape(_curl(method, path, body))}</pre>")
    answers = [(status, _resolved(one, components)) for status, one in operation["responses"].items()]
    rows = [
        (status, _inline(one["description"]), ", ".join(" ".join(_content(*each)) for each in one["content"].items()))
        for status, one in answers
    ]
    parts.append(_table(("Status", "Meaning", "Body"), rows))
    for kind, entry in operation["responses"]["200"]["content"].items():
        if "example" in entry:
            parts += [f"<p>For example, as {kind}:</p>", _json(entry["example"])]
    return (
        f'<details id="{operation["operationId"]}"><summary><span class="method">{method}</span> '
        f"<code>{escape(path)}</code> <span>{escape(operation['summary'])}</span></summary>{''.join(parts)}</details>"
    )


def _curl(method: str, path: str, body: JsonObject | None) -> str:
    words = ["curl"]
    content = body["content"] if body else {}
    if any(kind.startswith("image/") for kind in content):
        words.append("--data-binary @photo.jpg")
    elif "multipart/form-data" in content:
        words.append("-F images=@photo.jpg")
    elif content:
        words.append(f"--json {shlex.quote(json.dumps(content['application/json'].get('example', {})))}")
    return " ".join([*words, f"{_SERVER}{path}"])


def _content(kind: str, entry: JsonObject) -> tuple[str, str]:
    """A media type, and a link to the schema of its documents if it has one."""
    name = entry["schema"].get("$ref", "").rpartition("/")[2]
    return f"<code>{kind}</code>", f'<a href="#schema-{name}">{name}</a>' if name else ""


def _resolved(one: JsonObject, components: JsonObject) -> JsonObject:
    if "$ref" not in one:
        return one
    *_, section, name = one["$ref"].split("/")
    found: JsonObject = components[section][name]
    return found


def _table(heading: tuple[str, ...], rows: list[Any]) -> str:
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heading)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _json(value: Any, name: str = "") -> str:
    text = escape(json.dumps(value, indent=2))
    return f'<pre id="{name}">{text}</pre>' if name else f"<pre>{text}</pre>"


def _paragraph(text: str) -> str:
    return f"<p>{_inline(text.strip())}</p>" if text else ""


def _inline(text: str) -> str:
    """Text with `code` in it as HTML."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
