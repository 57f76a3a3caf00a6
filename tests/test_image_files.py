"""Image files of every kind, sound and damaged, and pictures from file to file."""

import errno
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_bytes import png, tiff
from PIL import Image, ImageCms, PngImagePlugin
from skimage import data

from datasets import read_list
from tools.image_files import IMAGE_FORMATS, IMAGE_SUFFIXES, open_image, pil_to_array
from tools.pictures import read_picture, write_picture
from utils import read_image


@pytest.fixture
def photo():
    return np.ascontiguousarray(data.astronaut()[100:140, 180:240])  # uint8 (40, 60, 3)


def save(folder, image, name="image.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


# --- 16 bits a channel ---------------------------------------------------------------------------


def test_sixteen_bit_colours_are_read_as_eight_with_a_warning(tmp_path, recwarn):
    pixels = np.random.default_rng(0).integers(0, 65536, (7, 11, 3)).astype(np.uint16)
    (tmp_path / "a.ppm").write_bytes(b"P6 11 7 65535\n" + pixels.astype(">u2").tobytes())
    (tmp_path / "plain.ppm").write_text("P3 1 1 1023 1023 0 512")
    with pytest.warns(UserWarning, match=r"plain\.ppm: 16 bits"):
        assert np.array(open_image(tmp_path / "plain.ppm")).tolist() == [[[255, 0, 128]]]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    for name in ("a.ppm", "a.tif"):
        with pytest.warns(UserWarning, match=f"{name}: 16 bits a channel are read as 8"):
            image = open_image(tmp_path / name)
        assert np.abs(np.array(image) - pixels / 257).max() <= 1
    save(tmp_path, Image.fromarray(np.zeros((4, 4, 3), np.uint8)), "eight.ppm")
    recwarn.clear()
    open_image(tmp_path / "eight.ppm")
    assert not recwarn


def test_sixteen_bits_in_planes_are_refused_by_pillow_which_reads_noise(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (3, 7, 11)).astype(np.uint16)
    path = tmp_path / "planes.tif"
    options = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(path, pixels, **options)
    with pytest.raises(
        ValueError, match=r"planes\.tif: colours of 16 bits in separate planes.*; s"
    ):
        read_image(path)
    assert np.array_equal(read_picture(path)[0], pixels.transpose(1, 2, 0))
    tifffile.imwrite(path, pixels.astype(np.uint8), **options)
    assert np.array_equal(read_image(path), pixels.astype(np.uint8).transpose(1, 2, 0))


def test_twelve_bits_reach_white(tmp_path):
    values = np.array([[0, 4095, 2048, 16], [1, 2, 4094, 100]])
    path = tmp_path / "twelve.tif"
    path.write_bytes(tiff(values[..., None], 12, 1))
    assert np.abs(read_picture(path)[0] - values / 4095 * 65535).max() <= 1
    assert np.abs(read_image(path)[..., 1] - values / 4095 * 255).max() <= 0.6
    path.write_bytes(tiff(values[..., None], 12, 0))
    for read in (read_picture, read_image):
        with pytest.raises(OSError, match=r"twelve\.tif: .*of a kind that is not read; save it"):
            read(path)


def test_sixteen_bit_gray_where_white_is_zero(tmp_path):
    values = np.arange(0, 60000, 5000, dtype=np.uint16).reshape(3, 4)
    path = tmp_path / "negative.tif"
    tifffile.imwrite(path, values, photometric="miniswhite")
    assert np.array_equal(read_picture(path)[0].squeeze(), 65535 - values)
    assert np.abs(read_image(path)[..., 0] - (65535 - values) / 257).max() <= 0.6


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
    heic = {".heic", ".heif"}  # of a plug-in that is loaded when it is needed
    listed = {formats[suffix] for suffix in set(IMAGE_SUFFIXES) - heic}
    assert listed - {"MPO"} == set(IMAGE_FORMATS)


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


def test_an_uncompressed_gray_tiff_that_is_to_be_turned(tmp_path):
    """Pillow scrambles it if it opens the file itself."""
    path = tmp_path / "turned.tif"
    stored = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
    path.write_bytes(tiff(stored[..., None], 8, 1, tags=[(0x0112, 3, [6])]))
    expected = [[40, 10], [50, 20], [60, 30]]
    assert read_image(path)[..., 0].tolist() == expected
    assert read_picture(path)[0].squeeze().tolist() == expected


def test_conversions_that_fail_name_the_file(tmp_path, photo, monkeypatch):
    def fail(*arguments):
        raise AssertionError

    path = save(tmp_path, Image.fromarray(photo), "a.png")
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(OSError, match=r"a\.png: damaged.*AssertionError"):
        read_image(path)


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


# --- libvips: pictures from file to file ---------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_what_is_written_is_read_alike_by_others(tmp_path, channels, dtype, suffix):
    top = np.iinfo(dtype).max + 1
    array = np.random.default_rng(0).integers(0, top, (150, 7, channels)).astype(dtype)
    strips = [array[:70], array[70:71], array[71:]]
    path = tmp_path / f"a{suffix}"
    write_picture(path, strips, (150, 7, channels), dtype, {})
    if suffix != ".png":
        read = tifffile.imread(path)
    elif dtype == np.uint8:
        read = np.array(Image.open(path))
    elif channels == 2:  # Pillow keeps the upper 8 of the 16 bits
        read, array = np.array(Image.open(path).convert("RGBA"))[..., [0, 3]], array >> 8
    else:
        cv2 = pytest.importorskip("cv2")
        read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).reshape(array.shape)
        read = read[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]]
    assert np.array_equal(read.reshape(array.shape), array)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".avif"])
def test_quality_says_how_much_is_lost(tmp_path, photo, suffix):
    sizes, errors = [], []
    for quality in (30, 95):
        path = tmp_path / f"{quality}{suffix}"
        write_picture(path, [photo], photo.shape, photo.dtype, {}, quality)
        sizes.append(path.stat().st_size)
        errors.append(np.abs(np.array(Image.open(path)).astype(int) - photo).mean())
    assert sizes[0] < sizes[1] and errors[0] > errors[1] and errors[1] < 4


@pytest.mark.parametrize(
    ("name", "quality", "size", "message"),
    [
        ("a.bmp", None, (4, 4), r"not written as '\.bmp'; accepted are \.png"),
        ("a", None, (4, 4), "not written as ''; accepted"),
        ("a.png", 90, (4, 4), r"quality is 90 for \.png"),
        ("a.tiff", 90, (4, 4), r"quality is 90 for \.tif"),
        ("a.jpg", 0, (4, 4), r"quality is 0 for \.jpg; it is 1 to 100"),
        ("a.webp", 101, (4, 4), "quality is 101"),
        ("a.webp", None, (4, 16384), r"holds 16383 pixels a side, not 16384; choose \.png"),
        ("a.jpeg", None, (65536, 4), "holds 65535 pixels"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_computed(
    tmp_path, name, quality, size, message
):
    def strips():
        raise AssertionError("computed in vain")
        yield

    with pytest.raises(ValueError, match=message):
        write_picture(tmp_path / name, strips(), (*size, 3), np.uint8, {}, quality)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_an_oserror(tmp_path, photo):
    with pytest.raises(OSError, match="nowhere"):
        write_picture(tmp_path / "nowhere" / "a.png", [photo], photo.shape, np.uint8, {})


def test_jpeg_lays_transparency_on_white_and_says_so(tmp_path):
    for dtype in (np.uint8, np.uint16):
        array = np.zeros((16, 16, 4), dtype)
        with pytest.warns(UserWarning, match="does not keep transparency"):
            write_picture(tmp_path / "a.jpg", [array], (16, 16, 4), dtype, {})
        assert np.array(Image.open(tmp_path / "a.jpg")).min() > 250


def test_warnings_name_what_a_format_does_not_keep(tmp_path, recwarn):
    array = np.zeros((16, 16, 1), np.uint16)
    info = {"exif": Image.Exif().tobytes(), "cicp": bytes([9, 16, 0, 1])}
    for suffix, names in {
        ".png": [],
        ".tif": ["EXIF", "HDR"],
        ".jpg": ["16 bits", "HDR"],
        ".webp": ["16 bits", "HDR"],
        ".avif": ["HDR"],
    }.items():
        recwarn.clear()
        write_picture(tmp_path / f"a{suffix}", [array], (16, 16, 1), np.uint16, info)
        text = " ".join(str(warning.message) for warning in recwarn)
        assert [name for name in ("EXIF", "16 bits", "HDR") if name in text] == names


def metadata():
    exif = Image.Exif()
    exif[0x0132] = "2020:01:02 03:04:05"
    exif[0x010F] = "a maker"
    exif.get_ifd(0x8769)[0x9003] = "2019:01:02 03:04:05"
    exif.get_ifd(0x8825)[2] = (47.0, 30.0, 15.5)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return exif, profile, b"<x:xmpmeta xmlns:x='adobe:ns:meta/' tiff:Orientation='6'/>"


@pytest.mark.parametrize("target", [".png", ".jpg", ".webp", ".avif", ".tif"])
@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".avif", ".tif"])
def test_metadata_goes_from_file_to_file(tmp_path, photo, source, target):
    exif, profile, xmp = metadata()
    exif[0x0112] = 6
    exif.load(exif.tobytes())  # Pillow's TIFF writer takes what has been read
    if source == ".tif":
        exif[700] = xmp
    options = {"exif": exif, "icc_profile": profile, "xmp": xmp, "dpi": (100, 100)}
    if source == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    path = save(tmp_path, Image.fromarray(photo), f"in{source}", **options)
    array, info = read_picture(path)
    assert array.shape == (60, 40, 3)  # turned, and not to be turned again
    write_picture(tmp_path / f"out{target}", [array], (60, 40, 3), np.uint8, info)
    with Image.open(tmp_path / f"out{target}") as image:
        assert image.info["icc_profile"] == profile
        written = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
        written = written.decode() if isinstance(written, bytes) else written
        assert "xmpmeta" in written and "tiff:Orientation='1'" in written
        found = image.getexif()
        assert found.get(0x0112, 1) == 1
        if target != ".tif":
            assert found[0x0132] == exif[0x0132] and found[0x010F] == exif[0x010F]
            assert found.get_ifd(0x8769)[0x9003] == "2019:01:02 03:04:05"
            assert found.get_ifd(0x8825)[2] == (47.0, 30.0, 15.5)
        if source in (".jpg", ".png", ".tif") and target in (".jpg", ".png", ".tif"):
            assert image.info["dpi"] == pytest.approx((100, 100), abs=0.02)


def test_the_thumbnail_of_a_turned_photograph_is_left_out(tmp_path, photo):
    thumbnail = io.BytesIO()
    Image.fromarray(photo[::4, ::4].copy()).save(thumbnail, "JPEG")
    thumbnail = thumbnail.getvalue()
    first = struct.pack("<HHHIII", 1, 0x0112, 3, 1, 6, 26)
    second = struct.pack("<HHHIIHHIIHHIII", 3, 0x0103, 3, 1, 6, 0x0201, 4, 1, 68, 0x0202, 4, 1,
                         len(thumbnail), 0)  # fmt: skip
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + second + thumbnail
    path = save(tmp_path, Image.fromarray(photo), "in.jpg", exif=exif)
    assert thumbnail in path.read_bytes()
    array, info = read_picture(path)
    write_picture(tmp_path / "out.jpg", [array], array.shape, np.uint8, info)
    assert array.shape == (60, 40, 3) and thumbnail not in (tmp_path / "out.jpg").read_bytes()


@pytest.mark.parametrize("target", [".jpg", ".webp", ".avif", ".png"])
def test_no_metadata_are_invented(tmp_path, photo, target):
    array, info = read_picture(save(tmp_path, Image.fromarray(photo)))
    assert info == {}
    write_picture(tmp_path / f"out{target}", [array], photo.shape, np.uint8, info)
    assert not Image.open(tmp_path / f"out{target}").getexif()


@pytest.mark.parametrize("channels", [3, 4])
def test_gamma_is_applied(tmp_path, channels):
    values = np.arange(0, 252, 4, dtype=np.uint8).reshape(-1, 7, 1).repeat(channels, axis=2)
    colour_type = {3: 2, 4: 6}[channels]
    for gamma, exponent in [(100000, 1 / 2.2), (45455, 1), (46000, 1), (0, 1), (55556, 1 / 1.222)]:
        chunk = b"gAMA", struct.pack(">I", gamma)
        (tmp_path / "a.png").write_bytes(png(values, 8, colour_type, chunk))
        array, _ = read_picture(tmp_path / "a.png")
        expected = (values[..., :3] / 255) ** exponent * 255
        assert np.abs(array[..., :3] - expected).max() <= 1
        assert np.array_equal(array[..., 3:], values[..., 3:])
    chunks = (b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))
    (tmp_path / "a.png").write_bytes(png(values, 8, colour_type, *chunks))
    assert np.array_equal(read_picture(tmp_path / "a.png")[0], values)


def test_the_colour_space_of_hdr_is_kept(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    cicp = b"cICP", bytes([9, 16, 0, 1])
    (tmp_path / "a.png").write_bytes(png(values, 8, 2, cicp, (b"gAMA", bytes([0, 1, 0, 0]))))
    array, info = read_picture(tmp_path / "a.png")
    write_picture(tmp_path / "b.png", [array], (5, 7, 3), np.uint8, info)
    assert np.array_equal(np.array(Image.open(tmp_path / "b.png")), values)
    with pytest.warns(UserWarning, match=r"\.tif does not keep HDR"):
        write_picture(tmp_path / "b.tif", [array], (5, 7, 3), np.uint8, info)
    content = (tmp_path / "b.png").read_bytes()
    chunk = b"cICP" + bytes([9, 16, 0, 1])
    assert content.index(struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))) == 33


def test_a_palette_image_without_palette_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.zeros((3, 4, 1), int), 8, 3))
    for read in (read_picture, read_image):
        with pytest.raises((OSError, ValueError), match=r"a\.png: a palette image without"):
            read(tmp_path / "a.png")


def test_unsupported_files_are_not_called_damaged_outright(tmp_path):
    tifffile.imwrite(tmp_path / "five.tif", np.zeros((4, 4, 5), np.uint8), planarconfig="contig")
    for read in (read_picture, read_image):
        with pytest.raises((OSError, ValueError), match=r"five\.tif: .*not (read|supported).*PNG"):
            read(tmp_path / "five.tif")


def test_names_that_libvips_takes_for_options(tmp_path, photo):
    (tmp_path / "a [page=3]").mkdir()
    path = tmp_path / "a [page=3]" / "照片.png[n=-1]"
    save(tmp_path, Image.fromarray(photo)).rename(path)
    assert np.array_equal(read_picture(path)[0], photo)
    write_picture(path.with_name("b.png"), [photo], photo.shape, np.uint8, {})
    assert np.array_equal(read_image(path.with_name("b.png")), photo)


def test_extra_samples_of_a_tiff_are_alpha_only_if_it_says_so(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    for kind, expected in (("unassalpha", values), ("unspecified", values[..., :3])):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, values, photometric="rgb", extrasamples=[kind])
        assert np.array_equal(read_picture(path)[0], expected)


def test_ten_bits_reach_white(tmp_path):
    pyvips = pytest.importorskip("pyvips")
    values = np.array([[0, 64, 32768, 65535]], np.uint16).repeat(8, axis=1).repeat(8, axis=0)
    image = pyvips.Image.new_from_array(np.dstack([values] * 3)).copy(interpretation="rgb16")
    image.heifsave(str(tmp_path / "a.avif"), compression="av1", bitdepth=10, lossless=True)
    array, _ = read_picture(tmp_path / "a.avif")
    expected = np.round((values >> 6) / 1023 * 65535)
    assert np.abs(array - expected[..., None]).max() <= 1


@pytest.mark.parametrize("read", [read_picture, read_image])
def test_only_images_are_decoded(tmp_path, read):
    (tmp_path / "a.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'
    )
    (tmp_path / "a.csv").write_text("1 2\n3 4\n")
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    for path in tmp_path.iterdir():
        with pytest.raises(OSError, match="not an image, or of a kind that is not read"):
            read(path)


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_the_waiting_file_is_let_go(tmp_path, photo):
    """While it is open, the disk keeps its gigabyte, and Windows cannot delete it."""
    write_picture(tmp_path / "a.png", [photo], photo.shape, np.uint8, {})
    opened = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    assert not [name for name in opened if "a.raw" in name]


def test_a_file_that_has_changed_is_read_anew(tmp_path, photo):
    for array in (photo, photo[::-1]):
        assert np.array_equal(read_picture(save(tmp_path, Image.fromarray(array)))[0], array)


def test_a_phones_picture_is_read(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    colours = np.kron(np.array([[[200, 30, 40], [20, 180, 60]]], np.uint8), np.ones((32, 32, 1)))
    image = Image.fromarray(colours.astype(np.uint8))
    exif, _, _ = metadata()
    exif[0x0112] = 6
    try:
        pillow_heif.from_pillow(image).save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    except RuntimeError:
        pytest.skip("this build of pillow-heif does not encode")
    for primaries, transfer, expected in ((1, 13, None), (9, 16, bytes([9, 16, 0, 1]))):
        nclx = {"color_primaries": primaries, "transfer_characteristics": transfer}
        image = pillow_heif.from_pillow(Image.fromarray(colours.astype(np.uint8)))
        image.save(tmp_path / "marked.heic", save_nclx_profile=True, **nclx)
        assert read_picture(tmp_path / "marked.heic")[1].get("cicp") == expected
    upright = np.rot90(colours, -1)
    for array in (read_picture(tmp_path / "a.heic")[0], read_image(tmp_path / "a.heic")):
        assert array.shape == (64, 32, 3) and np.abs(array - upright).mean() < 4


def test_a_missing_package_for_heic_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for read in (read_picture, read_image):
        with pytest.raises(OSError, match=r"a\.heic: .*pip install pillow-heif"):
            read(tmp_path / "a.heic")


def test_a_closed_pil_image_is_named_so(tmp_path, photo):
    image = Image.open(save(tmp_path, Image.fromarray(photo)))
    image.close()
    with pytest.raises(ValueError, match="closed image; open it again"):
        pil_to_array(image)


def test_training_needs_no_libvips(tmp_path, photo):
    save(tmp_path, Image.fromarray(photo), "image.avif", quality=100)
    code = "import sys; sys.modules['pyvips'] = sys.modules['pillow_heif'] = None\n"
    code += f"import solver, utils; print(utils.read_image({str(tmp_path / 'image.avif')!r}).shape)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "(40, 60, 3)\n"


@pytest.mark.parametrize("dpi", [(0, 0), (float("nan"), 1), "fine", (72,), (1e300, 1), None])
def test_a_nonsensical_resolution_is_left_out(photo, dpi):
    image = Image.fromarray(photo)
    image.info["dpi"] = dpi
    assert "dpi" not in pil_to_array(image)[1]


def test_a_profile_of_other_colours_is_left_out(photo):
    image = Image.fromarray(photo).convert("LAB")
    image.info["icc_profile"] = b"of LAB"
    assert "icc_profile" not in pil_to_array(image)[1]


def test_a_windows_path_in_quotes_is_told_how_to_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "D:\new\table"  # as a student types it: a line end and a tab
    for read, name in ((read_image, f"{path}.png"), (read_list, f"{path}.csv")):
        with pytest.raises(FileNotFoundError, match=r"'D:\\new\\table.*write /") as error:
            read(name)
        assert "\n" not in str(error.value)
