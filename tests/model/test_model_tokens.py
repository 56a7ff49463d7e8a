"""Patches out and in: inverses, and the order of tokens and of features within one."""

import pytest
import torch
from flux_at_random import CPU
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxsmith.model.tokens import image_ids, patchify, text_ids, token_grid, unpatchify

sizes = st.tuples(*[st.integers(1, n) for n in (3, 4, 5, 5, 4)])  # b, c, rows, columns, patch


def numbered(*shape):
    """Every element different, so that equality means the same place."""
    return torch.arange(torch.Size(shape).numel()).view(shape)


@settings(deadline=None, max_examples=50)
@given(sizes)
def test_unpatchify_undoes_patchify(size):
    b, c, rows, columns, patch = size
    x = numbered(b, c, rows * patch, columns * patch)
    tokens = patchify(x, patch)
    assert tokens.shape == (b, rows * columns, c * patch**2)
    assert torch.equal(unpatchify(tokens, patch, rows * patch, columns * patch), x)


def test_tokens_run_row_by_row_and_channels_slowest_within_one():
    x = torch.tensor([[[0, 1, 2, 3], [4, 5, 6, 7]]])  # (c, h, w)
    x = torch.stack((x, 10 + x), dim=1)  # (b, c, h, w) = (1, 2, 2, 4)
    assert patchify(x, 2).tolist() == [[[0, 1, 4, 5, 10, 11, 14, 15], [2, 3, 6, 7, 12, 13, 16, 17]]]


@pytest.mark.parametrize(("height", "width", "patch"), [(9, 8, 2), (8, 9, 2), (8, 8, 3), (8, 8, 0)])
def test_an_image_that_does_not_divide_is_refused_by_number(height, width, patch):
    with pytest.raises(ValueError, match=f"{height}x{width} image .* {patch}x{patch}"):
        patchify(torch.zeros(1, 1, height, width), patch)
    with pytest.raises(ValueError, match=f"{height}x{width} image .* {patch}x{patch}"):
        token_grid(height, width, patch)


@pytest.mark.parametrize("shape", [(1, 5, 8), (1, 6, 7)])
def test_tokens_that_make_no_image_are_refused_by_number(shape):
    with pytest.raises(ValueError, match=r"\(1, \d, \d\) .*4x6 .* 6 tokens of c\*4"):
        unpatchify(torch.zeros(shape), 2, 4, 6)


def test_ids_match_the_tokens_of_patchify():
    """An image whose channels are its own row and column numbers has tokens equal to their ids."""
    rows, columns = 3, 5
    where = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(5), indexing="ij"))[None]
    ids = image_ids(rows, columns, CPU)
    assert torch.equal(ids[:, 1:], patchify(where, 1)[0].float())
    assert not ids[:, 0].any()
    assert ids.dtype == torch.float32
    assert image_ids(2, 2, CPU).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]


def test_ids_are_the_same_object_each_time_and_serve_training():
    """By which the rotary cache recognises them. Text has no position."""
    with torch.inference_mode():
        img, txt = image_ids(7, 11, CPU), text_ids(77, CPU)
    assert image_ids(7, 11, CPU) is img
    assert text_ids(77, CPU) is txt
    assert not img.is_inference()
    assert torch.equal(txt, torch.zeros(77, 3))
