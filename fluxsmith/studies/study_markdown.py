"""A study's answer in Markdown, for a repository: the page's parts, plots and pictures as files."""

import base64
import io
from pathlib import Path

from PIL import Image

from fluxsmith.evaluation.report import Pictures, Table
from fluxsmith.evaluation.report.parts import Plot
from fluxsmith.storage.files import make_folder, write_text
from fluxsmith.studies.planning import Plan
from fluxsmith.studies.study_page import Answer, sections_of


def write_markdown(plan: Plan, answer: Answer, path: Path) -> None:
    """The same in Markdown, with its plots in a folder of the file's name."""
    folder = path.with_suffix("")
    make_folder(folder, "--markdown")
    lines = [f"# {answer['name']}", "", str(answer["hypothesis"])]
    for anchor, heading, parts in sections_of(plan, answer):
        lines += ["", f"## {heading}"]
        for i, part in enumerate(parts):
            if isinstance(part, str):
                lines += ["", part]
            elif isinstance(part, Plot):
                file = folder / f"{anchor}-{i}.svg"
                file.write_bytes(base64.b64decode(part.source.partition(",")[2]))
                lines += ["", f"![{part.title}]({folder.name}/{file.name})", "", part.caption]
            elif isinstance(part, Pictures):
                file = folder / f"{anchor}-{i}.png"
                _sheet(part).save(file)
                names = ", ".join(name for name, _ in part.rows)
                lines += [
                    "",
                    f"![{names}]({folder.name}/{file.name})",
                    "",
                    f"From the top: {names}.",
                ]
            else:
                lines += ["", *_as_markdown(part)]
    write_text(path, "\n".join(lines) + "\n")


def _as_markdown(table: Table) -> list[str]:
    """One column becomes text as it is; what is folded on the page is folded here."""
    if len(table.head) == 1:
        lines = ["```", *(cell for (cell,) in table.rows), "```"]
    else:
        rows = [table.head, ["---"] * len(table.head), *table.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    if table.folded:
        return [f"<details><summary>{table.caption}</summary>", "", *lines, "", "</details>"]
    return [f"*{table.caption}*", "", *lines]


def _sheet(part: Pictures) -> Image.Image:
    """Rows of pictures as one, as large as the page shows them."""
    _, first = part.rows[0]
    width, height = first[0].width, first[0].height
    sheet = Image.new(
        "RGB", (width * max(len(row) for _, row in part.rows), height * len(part.rows))
    )
    for y, (_, row) in enumerate(part.rows):
        for x, picture in enumerate(row):
            drawn = Image.open(io.BytesIO(base64.b64decode(picture.source.partition(",")[2])))
            sheet.paste(
                drawn.resize((width, height), Image.Resampling.NEAREST), (x * width, y * height)
            )
    return sheet
