"""Pictures of every mode, orientation and size become the pixels that a person would see."""

import io
import struct

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

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


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_plain_grey_and_rgb_are_read_as_they_are(shape):
    assert np.array_equal(pixels(encoded(Image.fromarray(drawn(*shape)))), drawn(*shape))


def test_what_is_transparent_lies_on_white():
    rgba = drawn(4, 4, 4)
    rgba[..., 3] = np.tile([0, 255, 0, 255], (4, 1))
    found = pixels(encoded(Image.fromarray(rgba)))
    assert (found[:, 0::2] == 255).all()
    assert np.array_equal(found[:, 1::2], rgba[:, 1::2, :3])
    for half in (Image.new("RGBA", (2, 2), (0, 0, 0, 51)), Image.new("LA", (2, 2), (0, 51))):
        assert np.unique(pixels(encoded(half))).tolist() == [204]


def test_a_palette_gives_its_colours_and_its_transparent_entry_white():
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    assert pixels(encoded(palette)).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    found = pixels(encoded(palette, transparency=1))
    assert found.tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_one_bit_and_16_bits_become_8():
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert pixels(encoded(bits)).tolist() == [[0, 255]]
    levels = np.array([[0, 1, 128, 129, 32768, 65534, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        found = pixels(encoded(Image.fromarray(levels), kind))
        assert found.tolist() == [[0, 0, 0, 1, 128, 255, 255]]


def test_cmyk_becomes_rgb_and_of_an_animation_the_first_frame_is_taken():
    found = pixels(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert found.shape == (8, 8, 3)
    assert (found == (255, 0, 0)).all()
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    """The upright picture is the same, whichever way the camera was held."""
    upright = Image.fromarray(drawn(6, 4, 3))
    turns = Image.Transpose
    stored = [  # by the camera: the inverse of what a viewer does
        None, turns.FLIP_LEFT_RIGHT, turns.ROTATE_180, turns.FLIP_TOP_BOTTOM, turns.TRANSPOSE,
        turns.ROTATE_90, turns.TRANSVERSE, turns.ROTATE_270,
    ][orientation - 1]  # fmt: skip
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turned = upright if stored is None else upright.transpose(stored)
    for kind in ("PNG", "TIFF"):
        data = encoded(turned, kind, exif=exif)
        assert np.array_equal(pixels(data), np.asarray(upright))
        assert picture_size(data) == (4, 6)
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
    assert picture_size(encoded(turned, pnginfo=notes)) == (4, 6)


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


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_any_mode_comes_in_the_channels_asked_for(mode):
    if mode == "YCbCr" and PIL.__version__.startswith("12.3."):
        pytest.skip("this Pillow can't read the one that it writes")
    data = encoded(Image.new(mode, (5, 7)), "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    for channels in (1, 3):
        assert decode(data, 4, channels, "pad", 0.5).shape == (channels, 4, 4)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no image that Pillow knows"),
        (b"not an image at all", "no image that Pillow knows"),
        (encoded(Image.fromarray(drawn(64, 64)))[:900], "truncated"),
        (encoded(Image.new("F", (2, 2), 0.5), "TIFF"), "floats"),
        (encoded(Image.new("I", (2, 2), 70_000), "TIFF"), "more than 16 bits"),
        (encoded(Image.new("L", (40, 26))), "more than 1,000 pixels"),
    ],
)
def test_what_can_not_be_used_is_a_picture_error_in_one_line(data, reason, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500 if "pixels" in reason else 10_000)
    with pytest.raises(PictureError, match=reason) as caught:
        open_picture(data)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_a_picture_error(tmp_path):
    with pytest.raises(PictureError, match="no such file"):
        open_picture(tmp_path / "gone.png")


def profile_of(primaries, gamma: float = 2.2, called: bytes = b"wide") -> bytes:
    """An ICC profile of a matrix and a gamma, as wide-gamut displays have them, or with the curve
    of sRGB for a gamma of 0."""

    def fixed(x: float) -> bytes:
        return struct.pack(">i", round(x * 65536))

    def xyz(values) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(map(fixed, values))

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    if not gamma:
        levels = np.linspace(0, 1, 256)
        linear = np.where(levels < 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        table = (linear * 65535).round().astype(">u2").tobytes()
        curve = b"curv" + bytes(4) + struct.pack(">I", 256) + table
    name = b"desc" + bytes(4) + struct.pack(">I", len(called) + 1) + called + bytes(79)
    white = (0.9642, 1.0, 0.8249)
    tags = [(b"desc", name + bytes(-len(name) % 4)), (b"wtpt", xyz(white))]
    tags += [(key, xyz(v)) for key, v in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)]
    tags += [(key, curve) for key in (b"rTRC", b"gTRC", b"bTRC")]
    table, body, begins = b"", b"", 132 + 12 * len(tags)
    for key, data in tags:
        table += key + struct.pack(">II", begins + len(body), len(data))
        body += data
    size = struct.pack(">I", begins + len(body))
    head = size + bytes(4) + struct.pack(">I", 0x02100000) + b"mntrRGB XYZ " + bytes(12)
    head += b"acsp" + bytes(28) + b"".join(map(fixed, white))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


DISPLAY_P3 = (
    (0.51512, 0.24120, -0.00105),
    (0.29198, 0.69225, 0.04189),
    (0.15710, 0.06657, 0.78407),
)


SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def test_colours_are_those_that_the_profile_means():
    """From one set of primaries to another by way of XYZ, with each one's curve."""
    to_xyz, to_srgb = np.array(DISPLAY_P3).T, np.linalg.inv(np.array(SRGB).T)
    linear = to_srgb @ to_xyz @ (np.array([150, 100, 60]) / 255) ** 2.2
    curve = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    expected = curve * 255
    for mode in ("RGB", "RGBA", "P"):
        made = Image.new("RGB", (8, 8), (150, 100, 60))
        made = made.quantize(4) if mode == "P" else made.convert(mode)
        stream = io.BytesIO()
        made.save(stream, format="PNG", icc_profile=profile_of(DISPLAY_P3))
        seen = open_picture(stream.getvalue()).getpixel((0, 0))
        assert np.abs(np.array(seen) - expected).max() <= 1.5, (mode, seen)


def test_a_profile_that_cannot_be_used_is_left_out_of_account():
    for profile in (
        b"no profile",
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), (150, 100, 60)).save(stream, "PNG", icc_profile=profile)
        assert open_picture(stream.getvalue()).getpixel((0, 0)) == (150, 100, 60)


def test_a_profile_is_known_by_what_it_does_and_not_by_its_name():
    """Linear light is not sRGB though its name may say so, and sRGB is left as it is under any."""
    grey = encoded(
        Image.new("RGB", (4, 4), (55, 55, 55)), icc_profile=profile_of(SRGB, 1.0, b"linear sRGB")
    )
    (value,) = set(open_picture(grey).getpixel((0, 0)))
    assert abs(value - 255 * (1.055 * (55 / 255) ** (1 / 2.4) - 0.055)) <= 1.5  # 129
    colours = Image.fromarray(drawn(16, 16, 3))
    for name in (b"sRGB IEC61966-2.1", b"c2"):
        same = encoded(colours, icc_profile=profile_of(SRGB, 0, name))
        assert np.array_equal(pixels(same), drawn(16, 16, 3))


def test_a_picture_with_a_large_note_is_read():
    note = PngImagePlugin.PngInfo()
    note.add_text("workflow", '{"n":1}' * 400_000, zip=True)
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "PNG", pnginfo=note)
    assert open_picture(stream.getvalue()).getpixel((0, 0)) == (255, 0, 0)
