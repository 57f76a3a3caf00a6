"""Reading every kind of image file, and writing without ever leaving half a file."""

import csv
import errno
import io
import random
import struct

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from skimage import data

import utils


@pytest.fixture
def photo():
    return np.ascontiguousarray(data.astronaut()[100:140, 180:240])  # uint8 (40, 60, 3)


def save(folder, image, name="image.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


# -- reading ----------------------------------------------------------------------------------------------------------


def test_rgb_is_read_unchanged(tmp_path, photo):
    assert np.array_equal(utils.read_image(save(tmp_path, Image.fromarray(photo))), photo)


def test_gray_is_copied_to_three_channels(tmp_path, photo):
    gray = photo[..., 0]
    assert np.array_equal(
        utils.read_image(save(tmp_path, Image.fromarray(gray))), np.dstack([gray] * 3)
    )


def test_alpha_is_dropped(tmp_path, photo):
    alpha = np.full((40, 60), 7, np.uint8)
    rgba = save(tmp_path, Image.fromarray(np.dstack([photo, alpha])), "rgba.png")
    gray_alpha = save(
        tmp_path, Image.fromarray(np.dstack([photo[..., 0], alpha]), mode="LA"), "la.png"
    )
    assert np.array_equal(utils.read_image(rgba), photo)
    assert np.array_equal(utils.read_image(gray_alpha), np.dstack([photo[..., 0]] * 3))


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128, 255])])
def test_palette_is_converted(tmp_path, transparency, recwarn):
    palette = np.array([[250, 10, 20], [0, 90, 200], [30, 30, 30], [255, 255, 0]], np.uint8)
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    image = Image.fromarray(indices, mode="P")
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(utils.read_image(save(tmp_path, image, **options)), palette[indices])
    assert not [w for w in recwarn if "Palette" in str(w.message)]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    values = np.arange(0, 65536, 17, dtype=np.uint16).reshape(-1, 1)
    path = save(tmp_path, Image.fromarray(values), f"image{suffix}")
    expected = np.floor(values / 65535 * 255 + 0.5).astype(np.uint8)
    assert np.array_equal(utils.read_image(path), np.dstack([expected] * 3))


def test_sixteen_bits_big_endian(tmp_path):
    path = tmp_path / "image.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + np.array([257, 65535], ">u2").tobytes())
    assert utils.read_image(path)[0, :, 0].tolist() == [1, 255]


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
    image, deep = utils.open_deep_image(tmp_path / name)
    expected = pixels[::-1, ::-1] if name == "turned.tif" else pixels
    assert deep.dtype == np.uint16 and np.array_equal(deep, expected)
    assert np.array_equal(np.array(image), expected >> 8)
    assert not recwarn
    with pytest.warns(UserWarning, match="16 bits a channel are read as 8"):
        utils.open_image(tmp_path / name)


def test_sixteen_bits_that_cannot_be_had_are_told(tmp_path):
    pixels = (
        np.random.default_rng(0).integers(0, 65536, (4, 7, 11)).astype(np.uint16)
    )  # four planes
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
            assert utils.open_deep_image(tmp_path / name)[1] is None
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
            utils.open_image(tmp_path / "planes.tif")
    tifffile.imwrite(
        tmp_path / "planes.tif",
        pixels[:3].astype(np.uint8),
        photometric="rgb",
        planarconfig="separate",
    )
    assert np.array_equal(
        utils.read_image(tmp_path / "planes.tif"), pixels[:3].astype(np.uint8).transpose(1, 2, 0)
    )


def test_one_bit_is_black_and_white(tmp_path):
    path = save(tmp_path, Image.fromarray(np.array([[0, 255, 255, 0]], np.uint8)).convert("1"))
    assert utils.read_image(path)[0, :, 1].tolist() == [0, 255, 255, 0]


def test_cmyk_without_profile(tmp_path):
    path = save(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "image.tif")
    assert utils.read_image(path)[0, 0].tolist() == [0, 255, 255]


def test_cmyk_with_a_damaged_profile_is_read_by_the_plain_formula(tmp_path):
    path = save(
        tmp_path, Image.new("CMYK", (8, 8), (0, 255, 0, 0)), "image.tif", icc_profile=b"no profile"
    )
    assert utils.read_image(path)[0, 0].tolist() == [255, 0, 255]
    assert "icc_profile" not in utils.open_image(path).info


def black_only_profile():
    """An ICC profile (version 2, table "mft1") by which only K is visible: lightness falls with it, C, M and Y print nothing."""
    grid = np.full(
        (2, 2, 2, 2, 3), 128, np.uint8
    )  # C, M, Y, K at 0 or full -> L, a, b; 128 is 0 for a and b
    grid[..., 0, 0], grid[..., 1, 0] = 255, 0
    ramp, identity = (
        bytes(range(256)),
        struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9))),
    )
    table = (
        b"mft1"
        + struct.pack(">IBBBB", 0, 4, 3, 2, 0)
        + identity
        + 4 * ramp
        + grid.tobytes()
        + 3 * ramp
    )
    header = (
        struct.pack(">I4sI", 144 + len(table), b"test", 0x02200000)
        + b"prtrCMYKLab "
        + bytes(12)
        + b"acsp"
    )
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)  # the white point D50
    return header.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


def test_cmyk_is_converted_by_its_profile_and_keeps_the_rest(tmp_path):
    pixels = np.array(
        [[[255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255], [0, 0, 0, 128]]], np.uint8
    )
    exif = Image.Exif()
    exif[0x0112] = 3
    options = {"icc_profile": black_only_profile(), "dpi": (300, 300), "exif": exif}
    image = utils.open_image(
        save(tmp_path, Image.fromarray(pixels, mode="CMYK"), "image.tif", **options)
    )
    # L* = 50 is sRGB 119; the row is turned by 180 degrees.
    assert np.abs(np.array(image)[0, :, 0].astype(int) - [118, 0, 255, 255]).max() <= 2
    assert image.info["dpi"] == pytest.approx((300, 300))
    assert image.info["icc_profile"] != options["icc_profile"]  # sRGB's now


def test_only_the_listed_formats_are_opened(tmp_path, photo):
    with pytest.raises(OSError, match=r"of a kind that is not read"):
        utils.read_image(save(tmp_path, Image.fromarray(photo), "image.pcx"))


def test_a_profile_for_another_mode_does_not_stop_cmyk(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save(tmp_path, Image.new("CMYK", (8, 8), (0, 0, 255, 0)), "image.tif", icc_profile=srgb)
    assert utils.read_image(path)[0, 0].tolist() == [255, 255, 0]


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
    image = utils.open_image(save(tmp_path, Image.fromarray(photo), exif=exif))
    assert np.array_equal(np.array(image), upright)
    assert 0x0112 not in image.getexif() or image.getexif()[0x0112] == 1


def test_unreadable_exif_does_not_stop_reading(tmp_path, photo):
    path = save(
        tmp_path, Image.fromarray(photo), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff broken"
    )
    assert np.array_equal(utils.read_image(path), photo)


def test_content_decides_not_the_suffix(tmp_path, photo):
    path = save(tmp_path, Image.fromarray(photo), "image.jpg", format="PNG")
    assert np.array_equal(utils.read_image(path), photo)


def test_path_with_spaces_and_chinese_characters(tmp_path, photo):
    path = tmp_path / "照片 一" / "图 1.png"
    utils.write_image(path, photo)
    assert np.array_equal(utils.read_image(str(path)), photo)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_files_are_errors(tmp_path, photo, format):
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, format=format)
    path = tmp_path / "half.img"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises((OSError, ValueError), match=r"half\.img: .+; "):
        utils.read_image(path)


def open_refused():
    raise PermissionError(errno.EACCES, "Permission denied")


def test_each_failure_names_file_cause_and_way_out(tmp_path, photo, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"missing\.png: no such file"):
        utils.read_image(tmp_path / "missing.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match=r"folder\.png: not a file.*name an image"):
        utils.read_image(tmp_path / "folder.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(OSError, match=r"empty\.png: the file is empty; copy"):
        utils.read_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("not an image at all")
    with pytest.raises(OSError, match=r"text\.png: not an image.*; save"):
        utils.read_image(tmp_path / "text.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif: floating-point.*; save"):
        utils.read_image(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "int.tif")
    with pytest.raises(ValueError, match=r"int\.tif: 32-bit.*; save"):
        utils.read_image(tmp_path / "int.tif")
    with (
        monkeypatch.context() as patched,
        pytest.raises(OSError, match=r"text\.png: it may not be read.*permissions"),
    ):
        patched.setattr(utils.Image, "open", lambda *a, **k: open_refused())
        utils.read_image(tmp_path / "text.png")
    frames = [Image.fromarray(photo), Image.fromarray(photo[::-1])]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"moving\.gif: 2 frames.*; save"):
        utils.read_image(tmp_path / "moving.gif")


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"bomb\.png: .*MAX_IMAGE_PIXELS"):
        utils.read_image(save(tmp_path, Image.new("L", (20, 20)), "bomb.png"))


def test_a_camera_file_with_preview_is_read(tmp_path, photo):
    images = [Image.fromarray(photo), Image.fromarray(photo[::2, ::2])]
    images[0].save(
        tmp_path / "camera.jpg", format="MPO", save_all=True, append_images=images[1:], quality=95
    )
    assert utils.read_image(tmp_path / "camera.jpg").shape == photo.shape


# -- writing ----------------------------------------------------------------------------------------------------------


def test_atomic_path_replaces_only_on_success(tmp_path):
    path = tmp_path / "new folder" / "file.txt"
    with utils.atomic_path(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
    assert path.read_text() == "first"
    with pytest.raises(KeyboardInterrupt), utils.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_write_image_refuses_what_it_would_spoil(tmp_path, photo):
    with pytest.raises(ValueError, match=r"suffix \.png"):
        utils.write_image(tmp_path / "image.jpg", photo)
    for wrong in (photo / 255, photo[..., 0], photo[None], photo.tolist()):
        with pytest.raises(ValueError, match="uint8 RGB"):
            utils.write_image(tmp_path / "image.png", wrong)
    assert list(tmp_path.iterdir()) == []


def test_rows_as_csv(tmp_path):
    rows = [{"name": "一, 二.png", "psnr": 30.25}, {"name": "b", "psnr": float("inf")}]
    utils.write_rows(tmp_path / "rows.csv", rows)
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        assert [{"name": r["name"], "psnr": float(r["psnr"])} for r in csv.DictReader(file)] == rows
    with pytest.raises(ValueError, match="no rows"):
        utils.write_rows(tmp_path / "none.csv", [])


# -- tensors, seeds, devices ------------------------------------------------------------------------------------------


def test_arrays_survive_the_way_through_a_tensor():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor = utils.to_tensor(levels[:, ::-1])
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32
    assert tensor.min() == 0 and tensor.max() == 1
    assert np.array_equal(utils.to_array(tensor), levels[:, ::-1])
    assert np.array_equal(utils.to_array(tensor[0]), levels[:, ::-1])


def test_to_array_clamps_and_rounds():
    values = (
        torch.tensor([-0.5, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.5])
        .view(1, 1, 1, 5)
        .expand(1, 3, 1, 5)
    )
    assert utils.to_array(values)[0, :, 2].tolist() == [0, 0, 1, 255, 255]
    with pytest.raises(ValueError, match="one RGB image"):
        utils.to_array(torch.zeros(2, 3, 4, 4))


def test_seeds_repeat_everything():
    def draw():
        utils.seed_everything(2**40 + 3)
        return random.random(), np.random.rand(), torch.rand(1).item()

    first = draw()
    assert draw() == first
    utils.seed_everything(4)
    assert all(
        a != b
        for a, b in zip(
            first, (random.random(), np.random.rand(), torch.rand(1).item()), strict=True
        )
    )


def test_devices():
    assert utils.pick_device("cpu") == torch.device("cpu")
    assert utils.pick_device().type in ("cuda", "mps", "cpu")
    for name in ("cuda:99", "nonsense"):
        with pytest.raises(ValueError, match=name):
            utils.pick_device(name)


def test_keep_freed_memory_can_be_called_anywhere(monkeypatch):
    utils.keep_freed_memory()
    monkeypatch.setattr(
        utils.ctypes, "CDLL", lambda name: object()
    )  # a C library that is not glibc
    utils.keep_freed_memory()


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_compare_shows_pixels_one_to_one(photo):
    images = {"bicubic\n28.43 dB": photo, "SRGAN": 255 - photo}
    sheet = np.array(utils.compare(images))
    height, width = photo.shape[:2]
    assert np.array_equal(sheet[-height:, :width], photo)
    second = next(x for x in range(width, sheet.shape[1]) if sheet[-1, x].tolist() != [255] * 3)
    assert np.array_equal(sheet[-height:, second : second + width], 255 - photo)


def test_compare_crops_and_magnifies(photo):
    sheet = np.array(utils.compare({"a": photo}, box=(5, 7, 20, 10), zoom=3))
    part = photo[7:17, 5:25].repeat(3, 0).repeat(3, 1)
    assert np.array_equal(sheet[-30:, :60], part)


def test_compare_refuses_what_cannot_be_compared(photo):
    with pytest.raises(ValueError, match="several"):
        utils.compare({"lr": photo[::4, ::4], "hr": photo})
    with pytest.raises(ValueError, match="not inside"):
        utils.compare({"hr": photo}, box=(50, 0, 20, 10))
    with pytest.raises(ValueError, match="no images"):
        utils.compare({})


def test_mark_box_outlines_and_leaves_the_rest(photo):
    marked = utils.mark_box(photo, (5, 7, 20, 10))
    assert marked[7, 5].tolist() == marked[16, 24].tolist() == [255, 0, 0]
    changed = (marked != photo).any(axis=2)
    assert changed[7:17, 5:25].sum() == changed.sum()
    assert not changed[8:16, 6:24].any()
