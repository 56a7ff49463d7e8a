"""Pictures of every mode, orientation and size become the pixels that a person would see."""

import io
import struct
import zlib

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from fluxsmith.data.images import to_size
from fluxsmith.data.pictures import ORIENTATION, decode, fit_picture, open_picture, picture_size
from fluxsmith.data.records import PictureError


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(open_picture(data))


def test_plain_grey_and_rgb_are_read_as_they_are():
    grey, rgb = drawn(6, 5), drawn(6, 5, 3)
    assert np.array_equal(pixels(encoded(Image.fromarray(grey))), grey)
    assert np.array_equal(pixels(encoded(Image.fromarray(rgb))), rgb)


def test_what_is_transparent_lies_on_white():
    rgba = drawn(4, 4, 4)
    rgba[..., 3] = np.tile([0, 255, 0, 255], (4, 1))
    found = pixels(encoded(Image.fromarray(rgba)))
    assert (found[:, 0::2] == 255).all()
    assert np.array_equal(found[:, 1::2], rgba[:, 1::2, :3])


def test_half_transparent_black_is_grey():
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 51))
    assert np.unique(pixels(encoded(half))).tolist() == [204]
    assert np.unique(pixels(encoded(Image.new("LA", (2, 2), (0, 51))))).tolist() == [204]


def test_a_palette_gives_its_colours_and_its_transparent_entry_white():
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    assert pixels(encoded(palette)).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    found = pixels(encoded(palette, transparency=1))
    assert found.tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_black_and_white_of_one_bit():
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert pixels(encoded(bits)).tolist() == [[0, 255]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_rounded_to_8(kind):
    levels = np.array([[0, 1, 128, 129, 32768, 65534, 65535]], dtype=np.uint16)
    found = pixels(encoded(Image.fromarray(levels), kind))
    assert found.tolist() == [[0, 0, 0, 1, 128, 255, 255]]


def test_a_transparent_level_of_16_bits_is_white():
    def chunk(name: bytes, data: bytes) -> bytes:
        whole = name + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    row = b"\0" + struct.pack(">3H", 0, 1000, 65535)
    png = b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 16, 0, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(">H", 1000)),
            chunk(b"IDAT", zlib.compress(row)),
            chunk(b"IEND", b""),
        ]
    )
    assert pixels(png).tolist() == [[0, 255, 255]]


def test_floats_and_more_than_16_bits_are_refused_with_a_reason():
    with pytest.raises(PictureError, match="floats"):
        open_picture(encoded(Image.new("F", (2, 2), 0.5), "TIFF"))
    with pytest.raises(PictureError, match="more than 16 bits"):
        open_picture(encoded(Image.new("I", (2, 2), 70_000), "TIFF"))


def test_cmyk_becomes_rgb():
    found = pixels(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert found.shape == (8, 8, 3)
    assert (found == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    """The upright picture is the same, whichever way the camera was held."""
    upright = Image.fromarray(drawn(6, 4, 3))
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # how the camera stored it: the inverse of what a viewer does
    stored = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(stored, exif=exif)
    assert np.array_equal(pixels(data), np.asarray(upright))
    assert picture_size(data) == (4, 6)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data) == (255, 0, 0)).all()


def test_a_large_jpeg_is_decoded_small_and_looks_the_same():
    smooth = np.linspace(0, 255, 512).astype(np.uint8)
    picture = Image.fromarray(np.stack([np.tile(smooth, (512, 1))] * 3, axis=-1))
    data = encoded(picture, "JPEG", quality=95)
    assert open_picture(data, enough=32).size == (64, 64)
    small = decode(data, 32, 3, "stretch", 0.5)
    oracle = to_size(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None], 32, "stretch")
    assert (small.int() - oracle[0].int()).abs().max() <= 3


@pytest.mark.parametrize("resize", ["pad", "stretch", "center-crop"])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (40, 21), (16, 16)])
def test_single_pictures_and_tensors_are_fitted_alike(resize, shape):
    image = drawn(*shape, 3)
    one = fit_picture(Image.fromarray(image), 16, 3, resize)
    other = to_size(torch.from_numpy(image).permute(2, 0, 1)[None], 16, resize)[0]
    assert one.shape == (3, 16, 16)
    assert (one.int() - other.int()).abs().max() <= 1


@pytest.mark.parametrize(("place", "left"), [(0.0, 0), (0.5, 5), (0.999, 9)])
def test_a_crop_is_cut_where_it_is_told_to(place, left):
    image = drawn(8, 18)
    wide = fit_picture(Image.fromarray(image), 8, 1, "random-crop", place)
    assert np.array_equal(wide[0], image[:, left : left + 8])
    high = fit_picture(Image.fromarray(image.T.copy()), 8, 1, "random-crop", place)
    assert np.array_equal(high[0], image.T[left : left + 8])


@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_comes_in_the_channels_asked_for(channels):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"):
        kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
        data = encoded(Image.new(mode, (5, 7)), kind)
        if mode == "YCbCr" and PIL.__version__.startswith("12.3."):
            continue  # this Pillow can't read the one that it writes
        assert decode(data, 4, channels, "pad", 0.5).shape == (channels, 4, 4), mode


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no image that Pillow knows"),
        (b"not an image at all", "no image that Pillow knows"),
        (encoded(Image.fromarray(drawn(64, 64)))[:900], "truncated"),
    ],
)
def test_a_corrupt_picture_is_a_picture_error_in_one_line(data, reason):
    with pytest.raises(PictureError, match=reason) as caught:
        open_picture(data)
    assert len(str(caught.value).splitlines()) == 1


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PictureError, match="more than 200 pixels"):
        open_picture(encoded(Image.new("L", (20, 11))))


def test_a_missing_file_is_a_picture_error(tmp_path):
    with pytest.raises(PictureError, match="no such file"):
        open_picture(tmp_path / "gone.png")
