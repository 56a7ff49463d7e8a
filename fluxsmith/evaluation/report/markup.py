"""HTML as nested calls. Text is escaped unless it came from `tag`, so that a prompt can't break
out of the page."""

import html
import re
from collections.abc import Sequence

VOID = {"img", "meta"}  # elements that have no end
UNFIT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # for XML, UTF-8


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Sequence["Child"] | None  # a str, a Markup, several of them, or nothing


def legible(text: str) -> str:
    """The text with what neither XML nor UTF-8 can hold shown as U+FFFD."""
    return UNFIT.sub("\ufffd", text)


def escaped(child: Child) -> Markup:
    """The child as HTML; several are joined."""
    if child is None:
        return Markup("")
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return Markup(html.escape(legible(child)))
    return Markup("".join(escaped(each) for each in child))


def tag(element: str, /, *children: Child, **attributes: str | int | None) -> Markup:
    """<name key="value">children</name>. `class_` is class, `aria_label` aria-label; attributes
    that are None are left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in VOID:
        return Markup(f"<{element}{given}>")
    return Markup(f"<{element}{given}>{escaped(children)}</{element}>")


def table(caption: Child, head: Sequence[Child], rows: Sequence[Sequence[Child]]) -> Markup:
    """A table with a header cell in front of each row, in a box that scrolls where it is too
    wide."""
    body = [
        tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]])
        for row in rows
    ]
    return scrolling(tag("caption", caption), header(head), tag("tbody", body))


def header(head: Sequence[Child]) -> Markup:
    return tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in head]))


def scrolling(*content: Child) -> Markup:
    return tag("div", tag("table", *content), class_="scroll", tabindex=0)


def figure(content: Child, caption: Child = None, class_: str | None = None) -> Markup:
    below = tag("figcaption", caption) if caption else None
    return tag("figure", content, below, class_=class_)


def folded(summary: Child, *content: Child) -> Markup:
    return tag("details", tag("summary", summary), *content)
