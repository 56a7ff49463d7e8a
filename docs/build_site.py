"""Builds the site from README, docs and the book: python docs/build_site.py

Pages go to build/pages as they are, but for two things. A link to any file of the repository leads
to a page that shows it. A paragraph in the book such as

    [fluxsmith.flow.path.interpolate](../../fluxsmith/flow/path.py)

becomes the code that it names. Zensical makes build/site of them, and equations become MathML. Any
dead link, and anything that would be loaded from elsewhere, ends the build.
"""

import html
import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
SHOWN = ("*.md", "docs/**/*.md", "models/**/*.md")  # the repository's pages
NAMED_CODE = re.compile(r"^\[([a-z]\w*(?:\.\w+)+)\]\((\S+\.py)\)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)")
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def lay_out() -> None:
    """Writes every page, and the files that pages show."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for source in {path for pattern in SHOWN for path in ROOT.glob(pattern)}:
        text = NAMED_CODE.sub(partial(code, source), source.read_text("utf-8"))
        write(place(source), LINK.sub(partial(link, source), text))
    package = find_spec("ziamath")
    assert package is not None and package.origin is not None
    font = Path(package.origin).parent / "fonts" / "STIXTwoMath-Regular.ttf"
    shutil.copy(font, PAGES / "docs" / font.name)


def code(page: Path, named: re.Match[str]) -> str:
    """The source of a function, method or class, as a block with its file's name."""
    found, file = resolve_name(named[1]), (page.parent / named[2]).resolve()
    actual = inspect.getsourcefile(inspect.unwrap(found))
    if actual is None or Path(actual).resolve() != file:
        sys.exit(f"{page}: {named[1]} is in {actual}, not in {file}")
    source = textwrap.dedent(inspect.getsource(found)).rstrip()
    return f'```python title="{file.relative_to(ROOT)}"\n{source}\n```'


def place(source: Path) -> Path:
    """Where a file of the repository is among the pages."""
    if source == ROOT / "README.md":
        return PAGES / "index.md"
    suffix = "" if source.suffix in (".md", ".png", ".svg") else ".md"
    return PAGES / f"{source.relative_to(ROOT)}{suffix}"


def link(page: Path, found: re.Match[str]) -> str:
    """The same link, to where the file of the repository is shown."""
    target = (page.parent / found[1]).resolve()
    if not target.is_file():
        return found[0]
    shown = place(target)
    if target.suffix in (".png", ".svg"):
        shown.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(target, shown)
    elif target.suffix != ".md":
        language = {".py": "python", ".yaml": "yaml"}.get(target.suffix, "text")
        text = target.read_text("utf-8")
        write(shown, f"# {target.relative_to(ROOT)}\n\n````{language}\n{text}\n````\n")
    there = Path(os.path.relpath(shown, place(page).parent)).as_posix()
    return f"]({there}{found[2] or ''})"


def write(page: Path, text: str) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, "utf-8")


def typeset(page: Path) -> None:
    """Turns the equations of a built page into MathML."""

    def formula(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        made = convert(html.unescape(found[2]), display=display)
        return f'<{found[1]} class="arithmatex">{made}</{found[1]}>'

    page.write_text(EQUATION.sub(formula, page.read_text("utf-8")), "utf-8")


class Links(HTMLParser):
    """What a page links to and loads, and the places that can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attributes if value is not None}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        for name in ("href", "src"):
            if name in given and not (
                tag == "link" and given.get("rel") in ("canonical", "prev", "next")
            ):
                (self.targets if tag == "a" else self.loaded).append(given[name])


def faults() -> list[str]:
    """The dead links of the built site, and what its pages load from elsewhere."""
    pages, found = {page: Links(page) for page in SITE.rglob("*.html")}, []
    for page, links in pages.items():
        if page.name == "404.html":  # its links are the site's, wherever it is shown
            continue
        found += [f"{page}: loads {url}" for url in links.loaded if re.match(r"\w+:|//", url)]
        for url in links.targets + links.loaded:
            path, _, anchor = url.partition("#")
            if re.match(r"\w+:|//", url):
                continue
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            there = target.is_file() and (
                not anchor or target not in pages or anchor in pages[target].ids | {"__top"}
            )
            if not there:
                found.append(f"{page}: {url} leads nowhere")
    return found


def main() -> None:
    sys.path.insert(0, str(ROOT / "docs" / "lesson"))
    lay_out()
    build = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    subprocess.run(build, cwd=ROOT, check=True)
    for page in SITE.rglob("*.html"):
        typeset(page)
    if found := faults():
        sys.exit("\n".join(found))
    print(f"open {SITE / 'index.html'}")


if __name__ == "__main__":
    main()
