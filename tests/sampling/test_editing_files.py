"""Pictures and masks from files: every depth and mode is read as training reads it, nothing thin is
lost, and what a mask keeps is kept."""

import shlex

import numpy as np
import pytest
import torch
from helpers import randomise
from PIL import Image
from tiny_autoencoder import save_autoencoder

from fluxsmith import Pipeline
from fluxsmith.cli import main
from fluxsmith.data.images import to_uint8, to_unit
from fluxsmith.errors import UserError
from fluxsmith.sampling.edit import Edit
from fluxsmith.sampling.edit_files import read_edit
from fluxsmith.sampling.generate import Sampler


def saved(path, array):
    Image.fromarray(np.asarray(array)).save(path)
    return path


@pytest.fixture
def picture(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return saved(tmp_path / "picture.png", ramp)


@pytest.fixture
def read(pipeline, picture):
    """read(mask_array, ...) is the mask that is read of a file of these pixels."""

    def read(array, image=picture, size=None, **settings):
        mask = saved(picture.with_name("mask.png"), array)
        edit, _ = read_edit(pipeline, image, mask, size, **settings)
        return edit.mask

    return read


def test_a_picture_of_16_bits_is_seen_as_it_is(pipeline, tmp_path):
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    edit, size = read_edit(pipeline, saved(tmp_path / "deep.png", levels), None, None)
    assert size == (16, 16)
    torch.testing.assert_close(edit.image[0].flatten(), to_unit(torch.arange(256).byte()))


def test_a_mask_of_16_bits_and_an_opaque_one_with_alpha_are_those_of_8(read):
    left = np.zeros((16, 16), dtype=np.uint8)
    left[:, :5] = 255
    expected = read(left)
    assert expected.sum() == 5 * 16
    assert torch.equal(read(left.astype(np.uint16) * 257), expected)
    opaque = np.stack([left, left, left, np.full_like(left, 255)], axis=-1)
    assert torch.equal(read(opaque), expected)
    seen_through = opaque.copy()
    seen_through[0, 0, 3] = 254
    with pytest.raises(UserError, match=r"mask\.png: is transparent.*save it in black and white"):
        read(seen_through)


@pytest.mark.parametrize("side", [16, 64, 250, 8])
def test_a_line_of_one_pixel_stays(read, side):
    line = np.zeros((side, side), dtype=np.uint8)
    line[side // 2] = 255
    mask = read(line)
    assert mask.shape == (1, 16, 16)
    assert mask[0].amax(0).all()  # from left to right
    assert mask.sum() <= 16 * max(2, 16 // side)  # and no thicker than it must be


@pytest.mark.parametrize(("value", "said"), [(0, "nothing"), (255, "all")])
def test_a_mask_that_says_nothing_is_said_so(read, caplog, value, said):
    read(np.full((16, 16), value, dtype=np.uint8))
    assert f"everywhere: {said} of the picture is drawn anew" in caplog.text


def test_a_mask_grows_and_its_edge_is_blurred(read):
    dot = np.zeros((16, 16), dtype=np.uint8)
    dot[8, 8] = 255
    grown = read(dot, grow=2)[0]
    assert grown.sum() == 25
    assert grown[6:11, 6:11].all()
    half = np.zeros((16, 16), dtype=np.uint8)
    half[:, 8:] = 255
    blurred = read(half, blur=1.5)[0]
    assert (blurred.diff(dim=1) >= 0).all()
    assert blurred[:, 0].max() < 0.01
    assert blurred[:, -1].min() > 0.99
    torch.testing.assert_close(blurred[:, 7] + blurred[:, 8], torch.ones(16), atol=0.02, rtol=0)


def test_a_mask_of_another_size_lies_where_the_picture_does(read, tmp_path):
    wide = saved(tmp_path / "wide.png", np.zeros((32, 64), dtype=np.uint8))
    right = np.zeros((16, 32), dtype=np.uint8)
    right[:, 24:] = 255
    assert torch.equal(read(right, wide)[0, 0], (torch.arange(64) >= 48).float())
    middle = read(right, wide, size=(16, 16))  # cut to the middle, which ends before the white
    assert not middle.any()
    with pytest.raises(UserError, match=r"has 16x16 pixels, and the picture has 64x32"):
        read(np.zeros((16, 16), dtype=np.uint8), wide)


def test_a_picture_is_cut_to_whole_tokens_without_being_scaled(pipeline, tmp_path):
    pixels = torch.randint(256, (19, 22), generator=torch.Generator().manual_seed(0)).byte()
    edit, size = read_edit(pipeline, saved(tmp_path / "odd.png", pixels.numpy()), None, None)
    assert size == (16, 20)
    assert torch.equal(to_uint8(edit.image)[0], pixels[1:17, 1:21])


def test_a_reference_has_no_more_pixels_than_training_showed(toy, tmp_path):
    pipeline = Pipeline.build(toy("model.conditioning=kontext"))
    large = saved(tmp_path / "large.png", np.zeros((80, 20), dtype=np.uint8))
    edit, size = read_edit(pipeline, large, None, None)
    assert tuple(edit.image.shape) == (1, *size) == (1, 32, 8)
    edit, size = read_edit(pipeline, large, None, (16, 24))
    assert (tuple(edit.image.shape), size) == ((1, 32, 8), (16, 24))


def test_a_square_reference_is_as_large_as_what_training_showed(toy, tmp_path):
    """784 times (512 / 784) is a little less than 512 in floating point."""
    pipeline = Pipeline.build(toy("model.conditioning=kontext", "data.image_size=512"))
    square = saved(tmp_path / "square.png", np.zeros((784, 784), dtype=np.uint8))
    assert read_edit(pipeline, square, None, None)[1] == (512, 512)


@pytest.mark.parametrize("size", [(0, 0), (-8, 16), (16, 17)])
def test_a_size_that_can_t_be_drawn_is_refused_before_the_picture_is_fitted(
    pipeline, picture, size
):
    with pytest.raises(UserError, match="must be a multiple of"):
        read_edit(pipeline, picture, None, size)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"strength": 0.5}, "--strength 0.5"),
        ({"strength": 0.0}, "--strength 0.0"),
        ({"mask": "mask.png"}, "--mask mask.png"),
        ({"grow": 2}, "--mask-grow 2"),
        ({"blur": 1.5}, "--mask-blur 1.5"),
    ],
)
def test_an_option_without_what_it_is_for_is_refused(pipeline, picture, settings, named):
    mask = settings.pop("mask", None)
    with pytest.raises(UserError, match=named):
        read_edit(pipeline, None, mask, None, **settings)
    if mask is None and "strength" not in settings:
        with pytest.raises(UserError, match=named):
            read_edit(pipeline, picture, None, None, **settings)


def test_files_that_are_no_pictures_are_named_with_their_option(pipeline, picture, tmp_path):
    (tmp_path / "no.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"--init-image .*no\.png: no image"):
        read_edit(pipeline, tmp_path / "no.png", None, None)
    with pytest.raises(UserError, match=r"--mask .*none\.png: there is no such file"):
        read_edit(pipeline, picture, tmp_path / "none.png", None)


@pytest.mark.parametrize("conditioning", ["text", "fill"])
def test_what_a_mask_keeps_of_a_latent_model_is_not_decoded(toy, tmp_path, conditioning):
    config = toy(
        "data.channels=3",
        "autoencoder.kind=flux",
        f"autoencoder.weights={save_autoencoder(tmp_path / 'ae.safetensors')}",
        "model.patch_size=2",
        f"model.conditioning={conditioning}",
    )
    pipeline = randomise(Pipeline.build(config)).eval()
    image = torch.rand(3, 16, 16) * 2 - 1
    mask = torch.zeros(1, 16, 16)
    mask[:, 5:9, 5:9] = 1
    mask[:, 9] = 0.25  # a soft edge
    seen = []
    drawn = Sampler(pipeline).generate(
        ["3"], steps=2, edit=Edit(image, mask=mask), on_step=lambda *step: seen.append(step)
    )[0]
    kept = (mask == 0).expand_as(image)
    assert torch.equal(drawn[kept], image[kept])
    assert torch.equal(seen[-1][2][0].clamp(-1, 1)[kept], image[kept])
    alone = Sampler(pipeline).generate(["3"], steps=2, edit=Edit(image, mask=mask.ceil()))[0]
    soft = (mask == 0.25).expand_as(image)
    torch.testing.assert_close(drawn[soft], (0.25 * alone + 0.75 * image)[soft])


def test_an_edit_can_be_drawn_again_from_what_its_png_says(toy_file, picture, tmp_path, capsys):
    mask = saved(tmp_path / "mask.png", np.eye(16, dtype=np.uint8) * 255)
    with pytest.raises(SystemExit):
        main(["train", str(toy_file)])
    options = ["--prompt", "3", "--init-image", str(picture), "--mask", str(mask)]
    options += ["--mask-grow", "1", "--mask-blur", "0.5", "--strength", "0.9"]
    options += ["--negative-prompt", "7", "--out", str(tmp_path / "one")]
    with pytest.raises(SystemExit) as exit_:
        main(["sample", str(tmp_path / "run"), *options])
    assert not exit_.value.code
    file = tmp_path / "one" / "sample-6-seed0" / "0000.png"
    with Image.open(file) as opened:
        said = opened.text
    assert said["negative_prompt"] == "7"
    assert said["strength"] == "0.9"
    assert len(said["edit"]) == 16
    _, *again = shlex.split(said["command"])
    with pytest.raises(SystemExit):
        main([*again, "--out", str(tmp_path / "two")])
    assert (tmp_path / "two" / "sample-6-seed0" / "0000.png").read_bytes() == file.read_bytes()
