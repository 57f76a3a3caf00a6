"""A corpus: files of every kind, depth, layout and orientation, each read as what was stored.

The stored values are the oracle: PNG and TIFF files are written by the book, the others by Pillow
and pillow-heif from images whose colours lossy codecs keep.
"""

import io
import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import PIL
import pytest
from image_bytes import png, tiff
from PIL import Image

from tools.pictures import count_pixels, read_picture

random = np.random.default_rng(0)


def noise(bits, channels, height=9, width=13):
    return random.integers(0, 2**bits, (height, width, channels)).astype(np.uint16)


def spread(values, bits):
    """Values of `bits` bits with white at 255, or at 65535 for more than 8 bits."""
    if bits <= 8:
        return (values * (255 // (2**bits - 1))).astype(np.uint8)
    return (values * (65535 // (2**bits - 1))).astype(np.uint16)


def upright(array, orientation):
    """What an image of this EXIF orientation shows, by the standard's table."""
    transposed = array.swapaxes(0, 1)
    return [
        array, array[:, ::-1], array[::-1, ::-1], array[::-1],
        transposed, transposed[:, ::-1], transposed[::-1, ::-1], transposed[::-1],
    ][orientation - 1]  # fmt: skip


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def png_files():
    """(name, content, expected array, levels of 255 that it may differ)."""
    for interlaced in (False, True):
        for bits in (1, 2, 4, 8, 16):
            gray = noise(bits, 1)
            name = f"gray-{bits}-{interlaced}"
            yield f"{name}.png", png(gray, bits, 0, interlaced=interlaced), spread(gray, bits), 0
            alpha = np.where(gray == gray[3, 4], 0, 2**bits - 1)
            clear = b"tRNS", gray[3, 4].astype(">u2").tobytes()
            content = png(gray, bits, 0, clear, interlaced=interlaced)
            yield f"{name}-tRNS.png", content, spread(np.dstack([gray, alpha]), bits), 0
        for bits in (8, 16):
            colours = noise(bits, 3)
            name = f"colour-{bits}-{interlaced}"
            content = png(colours, bits, 2, interlaced=interlaced)
            yield f"{name}.png", content, spread(colours, bits), 0
            alpha = np.where((colours == colours[3, 4]).all(axis=2), 0, 2**bits - 1)
            clear = b"tRNS", colours[3, 4].astype(">u2").tobytes()
            content = png(colours, bits, 2, clear, interlaced=interlaced)
            yield f"{name}-tRNS.png", content, spread(np.dstack([colours, alpha]), bits), 0
            for channels, colour_type in ((2, 4), (4, 6)):
                values = noise(bits, channels)
                content = png(values, bits, colour_type, interlaced=interlaced)
                yield f"alpha-{channels}-{bits}-{interlaced}.png", content, spread(values, bits), 0
        for bits in (1, 2, 4, 8):
            indices = noise(bits, 1)
            palette = random.integers(0, 256, (2**bits, 3), dtype=np.uint8)
            chunk = (b"PLTE", palette.tobytes())
            expected = palette[indices[..., 0]]
            name = f"palette-{bits}-{interlaced}"
            yield f"{name}.png", png(indices, bits, 3, chunk, interlaced=interlaced), expected, 0
            alpha = random.integers(0, 256, 2**bits - 1, dtype=np.uint8)  # the last is opaque
            content = png(
                indices, bits, 3, chunk, (b"tRNS", alpha.tobytes()), interlaced=interlaced
            )
            alpha = np.append(alpha, np.uint8(255))[indices[..., 0]]
            yield f"{name}-tRNS.png", content, np.dstack([expected, alpha]), 0
    kinds = [(1, 0, 1), (8, 0, 1), (16, 0, 1), (8, 4, 2), (8, 2, 3), (16, 6, 4)]
    for (bits, colour_type, channels), orientation in itertools.product(kinds, range(1, 9)):
        values = noise(bits, channels)
        content = png(values, bits, colour_type, (b"eXIf", exif(orientation)[6:]))
        expected = upright(spread(values, bits), orientation)
        yield f"turned-{bits}-{channels}-{orientation}.png", content, expected, 0


def tiff_files():
    for order, orientation, white_is_zero in itertools.product("<>", range(1, 9), (False, True)):
        for bits in (1, 2, 4, 8, 16):
            gray = noise(bits, 1)
            content = tiff(gray, bits, 1 - white_is_zero, order, tags=[(0x0112, 3, [orientation])])
            shown = 2**bits - 1 - gray if white_is_zero else gray
            name = f"gray-{bits}-{white_is_zero}-{ord(order)}-{orientation}.tif"
            yield name, content, upright(spread(shown, bits), orientation), 0
    layouts = itertools.product("<>", (8, 16), (1, 8, 32773), (False, True))
    for order, bits, compression, planes in layouts:
        name = f"{bits}-{ord(order)}-{compression}-{planes}.tif"
        colours = noise(bits, 3)
        content = tiff(colours, bits, 2, order, compression, planes)
        yield f"colour-{name}", content, spread(colours, bits), 0
        for channels, photometric in ((2, 1), (4, 2)):
            if planes and channels == 2:
                continue  # refused: see below
            values = noise(bits, channels)
            alpha = [(338, 3, [2])]
            content = tiff(values, bits, photometric, order, compression, planes, alpha)
            yield f"alpha-{channels}-{name}", content, spread(values, bits), 0
    for bits, channels, order in itertools.product((8, 16), (2, 4), "<>"):
        values = noise(bits, channels)
        values[..., -1] = values[..., -1] // 2 + 2 ** (bits - 1)  # half transparent at most
        scaled = values[..., :-1] * (values[..., -1:] / (2**bits - 1))
        stored = np.dstack([scaled.round(), values[..., -1]]).astype(np.uint16)
        content = tiff(stored, bits, 2 if channels == 4 else 1, order, tags=[(338, 3, [1])])
        yield f"premultiplied-{bits}-{channels}-{ord(order)}.tif", content, spread(values, bits), 2
        content = tiff(values, bits, 2 if channels == 4 else 1, order, tags=[(338, 3, [0])])
        yield (
            f"unknown-{bits}-{channels}-{ord(order)}.tif",
            content,
            spread(values[..., :-1], bits),
            0,
        )
    for bits, order in itertools.product((1, 2, 4, 8), "<>"):
        indices = noise(bits, 1)
        palette = random.integers(0, 256, (3, 2**bits))
        tags = [(320, 3, list(palette.reshape(-1) * 257))]
        content = tiff(indices, bits, 3, order, tags=tags)
        yield (
            f"palette-{bits}-{ord(order)}.tif",
            content,
            palette.T[indices[..., 0]].astype(np.uint8),
            0,
        )


def encode(array, format, **options):
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array.squeeze())
    image.save(buffer, format, **options)
    return buffer.getvalue()


def flat(channels):
    """Blocks of one colour: codecs that transform 8 x 8 or 16 x 16 pixels keep them."""
    blocks = random.integers(20, 236, (3, 4, channels), dtype=np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


def one_hue():
    """As `flat`, all blocks with the same chroma: also kept where codecs store fewer of it."""
    brightness = random.integers(0, 120, (3, 4, 1)).repeat(16, axis=0).repeat(16, axis=1)
    return (np.array([100, 20, 60]) + brightness).astype(np.uint8)


def lossy_files():
    options = itertools.product((0, 1, 2), (False, True), (90, 100))
    for number, (subsampling, progressive, quality) in enumerate(options):
        for channels in (1, 3):
            array, orientation = one_hue() if channels == 3 else flat(1), number % 8 + 1
            content = encode(
                array, "JPEG", subsampling=subsampling, progressive=progressive, quality=quality,
                exif=exif(orientation),
            )  # fmt: skip
            suffix = (".jpg", ".jpeg", ".jpe", ".jfif")[number % 4]
            yield f"{number}-{channels}{suffix}", content, upright(array, orientation), 2
    for channels, orientation in itertools.product((3, 4), range(1, 9)):
        values = noise(8, channels).astype(np.uint8)
        content = encode(values, "WEBP", lossless=True, exact=True, exif=exif(orientation))
        yield f"{channels}-{orientation}.webp", content, upright(values, orientation), 0
        array = one_hue()
        content = encode(array, "WEBP", quality=100, exif=exif(orientation))
        yield f"lossy-{channels}-{orientation}.webp", content, upright(array, orientation), 2
    for channels in (3, 4):
        array = flat(channels)
        content = encode(array, "AVIF", quality=100, subsampling="4:4:4", speed=10)
        yield f"{channels}.avif", content, array, 2


def other_files():
    gray, colours, translucent = (noise(8, c).astype(np.uint8) for c in (1, 3, 4))
    deep, binary = noise(16, 1), noise(1, 1).astype(bool)
    indices, palette = (
        noise(4, 1).astype(np.uint8),
        random.integers(0, 256, (16, 3), dtype=np.uint8),
    )
    paletted = Image.fromarray(indices.squeeze())
    paletted.putpalette(palette.tobytes())
    seen = palette[indices[..., 0]]
    formats = {"BMP": [".bmp"], "TGA": [".tga"], "PPM": [".ppm", ".pnm"], "GIF": [".gif"]}
    formats["JPEG2000"] = [".jp2", ".j2k"]
    for format, suffixes in formats.items():
        for suffix in suffixes:
            options = {"no_jp2": suffix == ".j2k"} if format == "JPEG2000" else {}
            yield f"gray{suffix}", encode(gray, format, **options), gray, 0
            if format != "GIF":
                yield f"colours{suffix}", encode(colours, format, **options), colours, 0
            if format in ("TGA", "JPEG2000"):
                yield f"alpha{suffix}", encode(translucent, format, **options), translucent, 0
            if format in ("BMP", "TGA", "GIF"):
                yield f"palette{suffix}", encode(paletted, format), seen, 0
            if format in ("PPM", "JPEG2000"):
                yield f"deep{suffix}", encode(deep, format, **options), deep, 0
            if format in ("BMP", "PPM"):
                yield f"binary{suffix}", encode(binary, format), binary * np.uint8(255), 0
    yield "rle.tga", encode(colours, "TGA", compression="tga_rle"), colours, 0
    yield "gray.pgm", encode(gray, "PPM"), gray, 0
    yield (
        "text.pbm",
        b"P1\n3 2\n1 0 0\n0 1 1\n",
        np.uint8([[0, 255, 255], [255, 0, 0]])[..., None],
        0,
    )
    clear = np.where(indices == 3, 0, 255).astype(np.uint8)
    content = encode(paletted, "GIF", transparency=3)
    shown = np.dstack([seen, clear])
    yield "clear.gif", content, shown * (clear > 0), 0
    for subsampling in (0, 2):
        frames = {"save_all": True, "append_images": [Image.fromarray(flat(3)[::2, ::2])]}
        array = one_hue()
        yield (
            f"{subsampling}.mpo",
            encode(array, "MPO", subsampling=subsampling, quality=100, **frames),
            array,
            2,
        )


def heic_files():
    pillow_heif = pytest.importorskip("pillow_heif")
    for orientation in range(1, 9):
        array = flat(3)
        buffer = io.BytesIO()
        image = pillow_heif.from_pillow(Image.fromarray(array))
        try:
            image.save(buffer, quality=-1, chroma=444, exif=exif(orientation))
        except RuntimeError:
            pytest.skip("this build of pillow-heif does not encode")
        yield f"{orientation}.heic", buffer.getvalue(), upright(array, orientation), 2


FAMILIES = {
    png_files: 100, tiff_files: 240, lossy_files: 55, other_files: 25, heic_files: 8,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_file_is_read_as_what_was_stored(tmp_path, family):
    count, wrong = 0, {}
    for name, content, expected, tolerance in family():
        count += 1
        path = tmp_path / name
        path.write_bytes(content)
        try:
            array, _ = read_picture(path)
        except (OSError, ValueError) as error:
            wrong[name] = str(error)
            continue
        array = array.reshape(*array.shape[:2], -1)
        if path.suffix in (".gif", ".webp") and expected.shape[2] == 1:  # libvips reads RGB
            expected = expected.repeat(3, axis=2)
        if array.shape != expected.shape or array.dtype != expected.dtype:
            wrong[name] = f"{array.dtype} {array.shape}, expected {expected.dtype} {expected.shape}"
            continue
        level = np.iinfo(array.dtype).max / 255
        difference = np.abs(array.astype(float) - expected).max() / level
        if difference > tolerance:
            wrong[name] = difference
    assert not wrong
    assert count >= FAMILIES[family]


def test_what_libvips_misreads_is_read_by_pillow_or_refused(tmp_path):
    colours = noise(8, 3).astype(np.uint8)
    (tmp_path / "ycbcr.tif").write_bytes(encode(Image.fromarray(colours).convert("YCbCr"), "TIFF"))
    if int(PIL.__version__.split(".")[0]) >= 13:  # before, Pillow refused what it had written
        read = read_picture(tmp_path / "ycbcr.tif")[0].astype(int)
        assert np.abs(read - colours).max() <= 3  # rounded twice
    else:
        with pytest.raises(OSError, match=r"ycbcr\.tif: .*save it as PNG"):
            read_picture(tmp_path / "ycbcr.tif")
    planes = tiff(noise(8, 2), 8, 1, planes=True, tags=[(338, 3, [2])])
    (tmp_path / "planes.tif").write_bytes(planes)
    with pytest.raises(OSError, match=r"planes\.tif: .*save it as PNG"):
        read_picture(tmp_path / "planes.tif")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 50_000, 5000))
def test_damaged_files_are_read_or_refused_by_name(tmp_path, first):
    """No crash, no hang, no error of another kind, and no file left behind."""
    script = Path(__file__).with_name("fuzzing.py")
    command = [sys.executable, script, tmp_path, str(first), str(first + 5000)]
    here = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(script.parents[1]), str(script.parent))),
    }
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=here)
    assert run.returncode == 0, (sorted(path.name for path in tmp_path.iterdir()), run.stderr)
    assert 500 < int(run.stdout) < 4500


@pytest.mark.parametrize(
    "suffix", [".png", ".jpg", ".webp", ".avif", ".tif", ".gif", ".bmp", ".ppm", ".tga", ".jp2"]
)
def test_pixels_are_counted_in_the_header(suffix, tmp_path, monkeypatch):
    if suffix == ".avif":
        pytest.importorskip("PIL._avif")
    path = tmp_path / f"图 [1]{suffix}"
    Image.fromarray(noise(8, 3, 30, 20).astype(np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 350)  # above it Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count_pixels(path) == 600
    path.unlink()  # which Windows does with closed files only


def test_of_what_is_no_image_no_pixels_are_counted(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for path in (tmp_path / "notes.txt", tmp_path / "missing.png", tmp_path):
        assert count_pixels(path) == 0
