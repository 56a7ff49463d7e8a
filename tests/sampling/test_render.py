"""Sheets show every pixel of every picture, and files say how they were made."""

import math
from itertools import pairwise

import pytest
import torch
from PIL import Image
from torch import Tensor

from fluxsmith.sampling.render import filmstrip, grid, magnified, save_gif, save_png, to_pil

WHITE = 255


def random_images(n: int, channels: int, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(n + channels)
    return torch.randint(256, (n, channels, size, size), generator=generator).to(torch.uint8)


def pixels(picture: Image.Image) -> Tensor:
    """(h, w, c) int, or (h, w) for a grey picture."""
    bands = len(picture.getbands())
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).int()
    return flat.view(picture.height, picture.width, bands).squeeze(-1)


def numbers(colours: Tensor) -> Tensor:
    """One whole number for each colour (..., 3)."""
    return colours[..., 0] * 65536 + colours[..., 1] * 256 + colours[..., 2]


def boxes(sheet: Image.Image, colours: list[tuple[int, int, int]]) -> list[tuple[int, ...]]:
    """(top, left, bottom, right) of what has each colour in the sheet, the last two beyond it."""
    coloured = numbers(pixels(sheet))
    found = []
    for number in numbers(torch.tensor(colours)):
        rows, columns = torch.where(coloured == number)
        top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        found.append((int(top), int(left), int(bottom), int(right)))
    return found


def plain_colours(n: int) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Pictures (n, 3, 8, 8), each of one colour that no other and no ink has."""
    colours = [(200, 10 + 5 * i, 3) for i in range(n)]
    return torch.tensor(colours, dtype=torch.uint8).view(n, 3, 1, 1).repeat(1, 1, 8, 8), colours


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 96, 100])
def test_magnifying_shows_each_pixel_as_a_square(channels, size):
    image = random_images(1, channels, size)[0]
    large = pixels(magnified(image))
    factor, rest = divmod(len(large), size)
    assert rest == 0
    assert len(large) >= 96
    squares = image.expand(3, size, size).permute(1, 2, 0).int()
    assert torch.equal(large, squares.repeat_interleave(factor, 0).repeat_interleave(factor, 1))


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (5, 2), (6, 3), (7, 7), (12, 5)])
def test_pictures_stand_whole_and_in_order_row_by_row(n, columns):
    images, colours = plain_colours(n)
    sheet = grid(images, [str(i) for i in range(n)], columns=columns)
    places = boxes(sheet, colours)
    side = magnified(images[0]).width
    for i, (top, left, bottom, right) in enumerate(places):
        block = pixels(sheet)[top:bottom, left:right]
        assert block.shape == (side, side, 3)
        assert (block == torch.tensor(colours[i])).all()
    lefts = sorted({left for _, left, _, _ in places})
    tops = sorted({top for top, _, _, _ in places})
    assert (len(lefts), len(tops)) == (columns, math.ceil(n / columns))
    assert [(top, left) for top, left, _, _ in places] == [
        (tops[i // columns], lefts[i % columns]) for i in range(n)
    ]
    assert all(after - before > side for before, after in pairwise(lefts))


def test_a_caption_changes_the_sheet_below_its_picture_only():
    images, colours = plain_colours(4)
    one = grid(images, ["a", "b", "c", "d"], columns=2)
    other = grid(images, ["a", "B", "c", "d"], columns=2)
    rows, columns = torch.where((pixels(one) != pixels(other)).any(-1))
    _, left, bottom, right = boxes(one, colours)[1]
    next_row = boxes(one, colours)[2][0]
    assert bottom <= rows.min()
    assert rows.max() < next_row
    assert left <= columns.min()
    assert columns.max() < right


def test_an_empty_prompt_is_shown_as_such():
    images, _ = plain_colours(1)
    assert grid(images, [""]).tobytes() == grid(images, ["(no prompt)"]).tobytes()
    assert grid(images, [""]).tobytes() != grid(images, [" "]).tobytes()


@pytest.mark.parametrize("caption", ["a long caption " * 10, "W" * 5000, "i" * 100])
def test_a_long_caption_stays_under_its_picture(caption):
    images, colours = plain_colours(2)
    sheet = grid(images, [caption, caption], columns=2)
    (_, _, bottom, right), (_, left, _, _) = boxes(sheet, colours)
    assert (pixels(sheet)[bottom:, right + 1 : left - 1] == WHITE).all()
    assert (pixels(sheet)[bottom:, : right - 1] != WHITE).any()
    plain = grid(images, ["a", "b"], columns=2)
    assert sheet.width == plain.width
    assert plain.height <= sheet.height <= plain.height + 2 * 20  # at most three lines of text


@pytest.mark.parametrize(
    "caption",
    ["a\nb\tc", "\x00\x1b[31m", "наука", "数字の三", "🙂" * 40, "\u202eabc", "\ud800", "ﷺ" * 9],
)
def test_any_caption_can_be_drawn(caption):
    images, colours = plain_colours(1)
    sheet = grid(images, [caption])
    assert boxes(sheet, colours)[0][2] < sheet.height


@pytest.mark.parametrize(
    ("stages", "most", "shown"), [(21, 5, 5), (21, 11, 11), (3, 11, 3), (1, 11, 1)]
)
def test_a_filmstrip_runs_from_the_first_stage_to_the_last(stages, most, shown):
    images, colours = plain_colours(stages)
    times = torch.linspace(1, 0, stages).tolist()
    strip = filmstrip(list(images), times, most)
    shades = set(numbers(pixels(strip)).unique().tolist())
    there = [i for i, number in enumerate(numbers(torch.tensor(colours))) if int(number) in shades]
    assert (there[0], there[-1], len(there)) == (0, stages - 1, shown)
    assert len({after - before for before, after in pairwise(there)}) <= 1  # evenly spaced
    places = boxes(strip, [colours[i] for i in there])
    assert all(before[1] < after[1] for before, after in pairwise(places))
    assert len({top for top, _, _, _ in places}) == 1


METADATA = {
    "prompt": "sieben, 七, 🙂",
    "seed": 7,
    "guidance": 2.5,
    "lines": "two\nlines",
    "config": {"model": {"axes_dim": [16, 24, 24]}, "path": None},
}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_its_pixels_and_its_metadata(tmp_path, channels):
    picture = to_pil(random_images(1, channels)[0])
    save_png(tmp_path / "a.png", picture, METADATA)
    with Image.open(tmp_path / "a.png") as opened:
        assert torch.equal(pixels(opened), pixels(picture))
        assert opened.text == {
            "prompt": "sieben, 七, 🙂",
            "seed": "7",
            "guidance": "2.5",
            "lines": "two\nlines",
            "config": '{"model": {"axes_dim": [16, 24, 24]}, "path": null}',
        }


@pytest.mark.parametrize(("frames", "each"), [(1, 0), (4, 250), (10, 100)])
def test_an_animation_shows_every_frame_and_rests_on_the_last(tmp_path, frames, each):
    pictures = [magnified(image) for image in plain_colours(frames)[0]]
    save_gif(tmp_path / "a.gif", pictures, seconds=1.0)
    durations, corners = [], []
    with Image.open(tmp_path / "a.gif") as opened:
        assert opened.n_frames == frames
        assert opened.info["loop"] == 0  # for ever
        for i in range(frames):
            opened.seek(i)
            durations.append(opened.info["duration"])
            corners.append(opened.convert("RGB").getpixel((0, 0)))
    assert durations[:-1] == [each] * (frames - 1)
    assert durations[-1] == 1500
    assert corners == [picture.getpixel((0, 0)) for picture in pictures]
