"""axe-core (https://github.com/dequelabs/axe-core), which finds what a page lacks for those who do not see it well."""

import pytest

from tests.serve.chromium import Page, find_chromium
from zoo.base.files import PROJECT

__all__ = ["SCREENS", "complaints", "needs_axe"]

_SOURCE = PROJECT / "node_modules" / "axe-core" / "axe.min.js"
_RUN = """axe.run().then((found) => [...found.violations, ...found.incomplete].flatMap((rule) => rule.nodes.map(
    (node) => `${rule.id}: ${node.target}: ${node.any.concat(node.all, node.none).map((check) => check.message)}`)))"""

needs_axe = pytest.mark.skipif(
    find_chromium() is None or not _SOURCE.is_file(),
    reason="no chromium or no axe-core: apt-get install chromium; npm install --no-save --no-package-lock axe-core",
)

SCREENS = [
    pytest.param({"width": width, "phone": width < 500, "prefers_color_scheme": scheme}, id=f"{width}-{scheme}")
    for width in (1280, 390)
    for scheme in ("light", "dark")
]
"""What Chromium.open takes: a desktop and a phone, light and dark."""


def complaints(page: Page) -> list[str]:
    """What axe-core finds wrong with a page as it is, and what it cannot decide about."""
    page.run(f"{_SOURCE.read_text(encoding='utf-8')};0")
    return page.run(_RUN)
