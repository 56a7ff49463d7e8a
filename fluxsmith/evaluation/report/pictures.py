"""The pictures of a gallery as HTML: inside the page, each pixel a square."""

import base64
import io
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from fluxsmith.evaluation.report.gallery import Gallery
from fluxsmith.evaluation.report.markup import Child, Markup, figure, tag
from fluxsmith.evaluation.report.wording import number, prompt_name
from fluxsmith.render import to_pil

SHOWN = 64  # CSS pixels, the width that small pictures are magnified to by a whole factor
LARGEST = 256  # pixels; larger pictures are reduced, so that the page can still be mailed
FRAMES = 11  # of a trajectory


def picture(image: Tensor, alt: str) -> Markup:
    """(c, h, w) uint8 as an <img> that holds its own PNG."""
    drawn = to_pil(image.cpu())
    if max(drawn.size) > LARGEST:
        drawn.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    drawn.save(file, format="PNG", optimize=True)
    factor = max(1, round(SHOWN / drawn.width))
    width = min(drawn.width * factor, 2 * SHOWN)
    return tag(
        "img",
        src="data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii"),
        width=width,
        height=round(width * drawn.height / drawn.width),
        alt=alt,
        class_="pixels" if drawn.width <= width else None,
    )


def row_of_samples(images: Tensor, of: str) -> list[Markup]:
    """(k, c, h, w) -> k pictures; `of` names the row in their alternative texts."""
    total = len(images)
    return [picture(image, f"{of}, sample {i + 1} of {total}") for i, image in enumerate(images)]


def samples(gallery: Gallery) -> Markup | None:
    """A row of pictures for each prompt."""
    if not gallery.samples:
        return None
    rows: list[Child] = []
    for caption, images in gallery.samples:
        name = prompt_name(caption)
        rows += [tag("dt", name), tag("dd", row_of_samples(images, name))]
    return tag("dl", rows, class_="strips")


def trajectories(gallery: Gallery) -> list[Markup]:
    """A strip for each trajectory, t beneath each frame."""
    return [_strip(*each) for each in gallery.trajectories if len(each[2])]


def _strip(caption: str, times: Sequence[float], frames: Sequence[Tensor]) -> Markup:
    last = len(frames) - 1
    shown = sorted({round(i * last / (FRAMES - 1)) for i in range(FRAMES)})
    name = prompt_name(caption)
    cells = [
        tag("li", picture(frames[i], f"{name} at t = {times[i]:.2f}"), tag("span", _at(times[i])))
        for i in shown
    ]
    return figure(tag("ol", cells, class_="strip"), name, class_="trajectory")


def _at(t: float) -> str:
    return f"t {t:.2f}"


def neighbours(gallery: Gallery) -> Markup | None:
    """Each sample beside the training image nearest to it, with their distance."""
    if not gallery.neighbours:
        return None
    pairs = []
    for sample, nearest, distance, caption in gallery.neighbours:
        name = prompt_name(caption)
        images = [picture(sample, f"sample of {name}"), picture(nearest, "nearest training image")]
        pairs.append(
            tag("li", figure(images, [tag("span", name), f"distance {number(float(distance))}"]))
        )
    return tag("ul", pairs, class_="pairs")
