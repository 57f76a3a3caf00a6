"""Image files of every kind, sound and damaged, and PNG files written in strips."""

import errno
import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from skimage import data

from tools.image_files import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    open_deep_image,
    open_image,
    pil_to_array,
    write_png,
)
from utils import read_image


@pytest.fixture
def photo():
    return np.ascontiguousarray(data.astronaut()[100:140, 180:240])  # uint8 (40, 60, 3)


def save(folder, image, name="image.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


# --- 16 bits a channel ---------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.tif", {}),
        ("big-endian.tif", {"byteorder": ">"}),
        ("deflate.tif", {"compression": "zlib", "predictor": True}),
        ("turned.tif", {"extratags": [(0x0112, 3, 1, 3, True)]}),
    ],
)
def test_sixteen_bits_a_colour_can_be_had(tmp_path, recwarn, channels, name, options):
    pixels = np.random.default_rng(0).integers(0, 65536, (7, 11, channels)).astype(np.uint16)
    if name == "a.png":
        cv2 = pytest.importorskip("cv2")
        cv2.imwrite(str(tmp_path / name), pixels[..., [2, 1, 0, 3][:channels]])
    else:
        tifffile.imwrite(
            tmp_path / name,
            pixels,
            photometric="rgb",
            extrasamples=["unassalpha"][: channels - 3],
            **options,
        )
    image, deep = open_deep_image(tmp_path / name)
    expected = pixels[::-1, ::-1] if name == "turned.tif" else pixels
    assert deep.dtype == np.uint16 and np.array_equal(deep, expected)
    assert np.array_equal(np.array(image), expected >> 8)
    assert not recwarn
    with pytest.warns(UserWarning, match="16 bits a channel are read as 8"):
        open_image(tmp_path / name)


def test_sixteen_bits_that_cannot_be_had_are_told(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 7, 11)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "premultiplied.tif",
        pixels.transpose(1, 2, 0),
        photometric="rgb",
        extrasamples=["assocalpha"],
    )
    (tmp_path / "a.ppm").write_bytes(
        b"P6 11 7 65535\n" + pixels[:3].transpose(1, 2, 0).astype(">u2").tobytes()
    )
    for name in ("premultiplied.tif", "a.ppm"):
        with pytest.warns(UserWarning, match="16 bits a channel are read as 8"):
            assert open_deep_image(tmp_path / name)[1] is None
    for compression in (None, "zlib"):  # Pillow would read the former as noise
        tifffile.imwrite(
            tmp_path / "planes.tif",
            pixels[:3],
            photometric="rgb",
            planarconfig="separate",
            compression=compression,
        )
        with pytest.raises(
            ValueError, match=r"planes\.tif: colours of 16 bits in separate planes.*; save"
        ):
            open_image(tmp_path / "planes.tif")
    tifffile.imwrite(
        tmp_path / "planes.tif",
        pixels[:3].astype(np.uint8),
        photometric="rgb",
        planarconfig="separate",
    )
    assert np.array_equal(
        read_image(tmp_path / "planes.tif"), pixels[:3].astype(np.uint8).transpose(1, 2, 0)
    )


def test_sixteen_bits_with_a_transparent_colour_are_read_as_eight_with_it(tmp_path):
    pixels = np.arange(36, dtype=np.uint16).reshape(3, 4, 3) * 1000
    write_png(tmp_path / "a.png", [pixels], (3, 4), 3, np.uint16, {})
    content = (tmp_path / "a.png").read_bytes()
    chunk = b"tRNS" + struct.pack(">HHH", *pixels[0, 0])
    chunk = struct.pack(">I", 6) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])  # after the header
    with pytest.warns(UserWarning, match="16 bits a channel are read as 8"):
        image, deep = open_deep_image(tmp_path / "a.png")
    assert deep is None and pil_to_array(image)[0].shape == (3, 4, 4)


# --- colours and orientation ---------------------------------------------------------------------


def test_cmyk_without_profile(tmp_path):
    path = save(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "image.tif")
    assert read_image(path)[0, 0].tolist() == [0, 255, 255]


def test_cmyk_with_a_damaged_profile_is_read_by_the_plain_formula(tmp_path):
    path = save(
        tmp_path, Image.new("CMYK", (8, 8), (0, 255, 0, 0)), "image.tif", icc_profile=b"no profile"
    )
    assert read_image(path)[0, 0].tolist() == [255, 0, 255]
    assert "icc_profile" not in open_image(path).info


def black_only_profile():
    """An ICC profile (version 2, table "mft1") by which K alone darkens."""
    # C, M, Y, K at 0 or full -> L, a, b; 128 is 0 for a and b.
    grid = np.full((2, 2, 2, 2, 3), 128, np.uint8)
    grid[..., 0, 0], grid[..., 1, 0] = 255, 0
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1" + struct.pack(">IBBBB", 0, 4, 3, 2, 0) + identity
    table += 4 * ramp + grid.tobytes() + 3 * ramp
    header = struct.pack(">I4sI", 144 + len(table), b"test", 0x02200000)
    header += b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061)  # the white point D50
    return header.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


def test_cmyk_is_converted_by_its_profile_and_keeps_the_rest(tmp_path):
    pixels = np.array(
        [[[255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255], [0, 0, 0, 128]]], np.uint8
    )
    exif = Image.Exif()
    exif[0x0112] = 3
    options = {"icc_profile": black_only_profile(), "dpi": (300, 300), "exif": exif}
    image = open_image(save(tmp_path, Image.fromarray(pixels, mode="CMYK"), "image.tif", **options))
    # L* = 50 is sRGB 119; the row is turned by 180 degrees.
    assert np.abs(np.array(image)[0, :, 0].astype(int) - [118, 0, 255, 255]).max() <= 2
    assert image.info["dpi"] == pytest.approx((300, 300))
    assert image.info["icc_profile"] != options["icc_profile"]  # sRGB's now


def test_every_listed_suffix_is_of_a_listed_format():
    formats = Image.registered_extensions()
    assert {formats[suffix] for suffix in IMAGE_SUFFIXES} == set(IMAGE_FORMATS)


def test_only_the_listed_formats_are_opened(tmp_path, photo):
    with pytest.raises(OSError, match=r"of a kind that is not read"):
        read_image(save(tmp_path, Image.fromarray(photo), "image.pcx"))


def test_a_profile_for_another_mode_does_not_stop_cmyk(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save(tmp_path, Image.new("CMYK", (8, 8), (0, 0, 255, 0)), "image.tif", icc_profile=srgb)
    assert read_image(path)[0, 0].tolist() == [255, 255, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, photo, orientation):
    # The eight orientations of the EXIF standard, undone by hand.
    upright = [
        photo,
        photo[:, ::-1],
        photo[::-1, ::-1],
        photo[::-1],
        photo.transpose(1, 0, 2),
        np.rot90(photo, -1),
        photo[::-1, ::-1].transpose(1, 0, 2),
        np.rot90(photo, 1),
    ][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(save(tmp_path, Image.fromarray(photo), exif=exif))
    assert np.array_equal(np.array(image), upright)
    assert 0x0112 not in image.getexif() or image.getexif()[0x0112] == 1


def test_unreadable_exif_does_not_stop_reading(tmp_path, photo):
    path = save(
        tmp_path, Image.fromarray(photo), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff broken"
    )
    assert np.array_equal(read_image(path), photo)


def test_content_decides_not_the_suffix(tmp_path, photo):
    path = save(tmp_path, Image.fromarray(photo), "image.jpg", format="PNG")
    assert np.array_equal(read_image(path), photo)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_files_are_errors(tmp_path, photo, format):
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, format=format)
    path = tmp_path / "half.img"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises((OSError, ValueError), match=r"half\.img: .+; "):
        read_image(path)


def open_refused():
    raise PermissionError(errno.EACCES, "Permission denied")


def test_each_failure_names_file_cause_and_way_out(tmp_path, photo, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"missing\.png: no such file"):
        read_image(tmp_path / "missing.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match=r"folder\.png: not a file.*name an image"):
        read_image(tmp_path / "folder.png")
    for content in ("", "not an image at all"):
        (tmp_path / "text.png").write_text(content)
        with pytest.raises(OSError, match=r"text\.png: not an image.*; save"):
            read_image(tmp_path / "text.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif: .*of unknown range; save"):
        read_image(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "int.tif")
    with pytest.raises(ValueError, match=r"int\.tif: .*of unknown range; save"):
        read_image(tmp_path / "int.tif")
    with (
        monkeypatch.context() as patched,
        pytest.raises(OSError, match=r"text\.png: it may not be read.*permissions"),
    ):
        patched.setattr(Image, "open", lambda *a, **k: open_refused())
        read_image(tmp_path / "text.png")
    frames = [Image.fromarray(photo), Image.fromarray(photo[::-1])]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"moving\.gif: 2 frames.*; save"):
        read_image(tmp_path / "moving.gif")


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"bomb\.png: .*MAX_IMAGE_PIXELS"):
        read_image(save(tmp_path, Image.new("L", (20, 20)), "bomb.png"))


def test_a_camera_file_with_preview_is_read(tmp_path, photo):
    images = [Image.fromarray(photo), Image.fromarray(photo[::2, ::2])]
    images[0].save(
        tmp_path / "camera.jpg", format="MPO", save_all=True, append_images=images[1:], quality=95
    )
    assert read_image(tmp_path / "camera.jpg").shape == photo.shape


# --- PNG -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_written_png_files_are_read_alike_by_pillow_and_opencv(tmp_path, channels, dtype):
    top = np.iinfo(dtype).max + 1
    array = np.random.default_rng(0).integers(0, top, (150, 7, channels)).astype(dtype)
    strips = [array[:70], array[70:71], array[71:]]
    write_png(tmp_path / "a.png", strips, (150, 7), channels, dtype, {})
    if dtype == np.uint8:
        with Image.open(tmp_path / "a.png") as image:
            assert np.array_equal(np.array(image).reshape(array.shape), array)
    elif channels != 2:
        cv2 = pytest.importorskip("cv2")
        read = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED).reshape(array.shape)
        order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
        assert np.array_equal(read[..., order], array)
    else:
        with Image.open(tmp_path / "a.png") as image:  # Pillow keeps the upper 8 of the 16 bits
            assert np.array_equal(np.array(image.convert("RGBA"))[..., [0, 3]], array >> 8)


def test_profile_and_resolution_survive_array_and_png(tmp_path, photo):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = save(tmp_path, Image.fromarray(photo), "in.jpg", icc_profile=profile, dpi=(72, 144))
    array, info = pil_to_array(open_image(source))
    assert info == {"icc_profile": profile, "dpi": (72, 144)}
    write_png(tmp_path / "out.png", [array], array.shape[:2], 3, array.dtype, info)
    again, written = pil_to_array(open_image(tmp_path / "out.png"))
    assert np.array_equal(again, array) and written["icc_profile"] == profile
    assert written["dpi"] == pytest.approx(info["dpi"], abs=0.02)


@pytest.mark.parametrize("dpi", [(0, 0), (float("nan"), 1), "fine", (72,), (1e300, 1), None])
def test_a_nonsensical_resolution_is_left_out(photo, dpi):
    image = Image.fromarray(photo)
    image.info["dpi"] = dpi
    assert "dpi" not in pil_to_array(image)[1]


def test_a_profile_of_other_colours_is_left_out(photo):
    image = Image.fromarray(photo).convert("LAB")
    image.info["icc_profile"] = b"of LAB"
    assert "icc_profile" not in pil_to_array(image)[1]
