"""A page as a browser would read it."""

import base64
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree


class Page(HTMLParser):
    """Fails on a page whose tags aren't closed in order; keeps what is on it."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += data.split()

    @property
    def drawn_text(self) -> str:
        return " ".join(text for plot in self.plots for text in plot.itertext())

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def headings(self) -> list[str]:
        return [heading["id"] for heading in self.named("h2")]

    @property
    def plots(self) -> list[ElementTree.Element]:
        kind = "data:image/svg+xml;base64,"
        sources = [image["src"] for image in self.named("img")]
        files = [src.removeprefix(kind) for src in sources if src.startswith(kind)]
        return [ElementTree.fromstring(base64.b64decode(file)) for file in files]
