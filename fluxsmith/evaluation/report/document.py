"""The whole page: everything it needs is inside it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxsmith.evaluation.report.markup import Child, Markup, legible, tag
from fluxsmith.files import write_text

STYLE = Path(__file__).with_name("style.css")
PAGE, DATA = "index.html", "results.json"
# Even if something in the page were to ask for it, nothing is fetched and no script runs.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, facts: Child, sections: Sequence[tuple[str, str, Markup]]) -> str:
    """Sections are (name, title, content)."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    links = [tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name, _ in sections]
    contents = tag("nav", tag("ul", links), aria_label="Sections") if links else None
    body = [
        tag("section", tag("h2", name, id=anchor), content, aria_labelledby=anchor)
        for anchor, name, content in sections
    ]
    page = tag(
        "html",
        head,
        tag("body", tag("header", tag("h1", title), facts, contents), tag("main", body)),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{page}\n"


def write_page(folder: Path, page: str, data: Any) -> Path:
    """The page and its data beside it; gives the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / DATA, json.dumps(finite(data), indent=2, allow_nan=False) + "\n")
    write_text(folder / PAGE, page)
    return folder / PAGE


def finite(data: Any) -> Any:
    """The same with null where JSON has no number: NaN and infinity."""
    if isinstance(data, Mapping):
        return {legible(str(key)): finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
