"""Tiles against the whole image, to the bit; image files sound and damaged; ONNX."""

import copy
import gc
import io
import random
import struct
import subprocess
import sys
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from skimage import data

import super_resolve as module
import utils
from imresize import imresize
from models import SRResNet
from super_resolve import back_project, super_resolve, super_resolve_file
from tools import acceleration, openvino_engine
from tools.acceleration import speed_up
from utils import read_image, to_array, to_tensor


def make_generator(num_blocks, num_channels, sped_up=True):
    """A generator as training leaves it: enlarges, and every layer and statistic takes part."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    generator = SRResNet(num_blocks, num_channels, init="interpolator")
    with torch.no_grad():
        for layer in generator.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.05, generator=random)
                layer.running_var.uniform_(0.5, 1.5, generator=random)
                layer.weight.uniform_(0.1, 0.5, generator=random)
                layer.bias.normal_(0, 0.05, generator=random)
        generator.tail.weight += 0.03 * torch.randn(generator.tail.weight.shape, generator=random)
    return (speed_up(generator, "cpu") if sped_up else generator).eval()


@pytest.fixture(scope="module", params=["plain", "sped up"])
def generator(request):
    return make_generator(2, 16, request.param == "sped up")


@pytest.fixture(scope="module")
def tiny():
    return make_generator(1, 4)


@torch.inference_mode()
def whole(generator, image):
    return to_array(generator(to_tensor(image)))


@torch.inference_mode()
def whole_back_projected(generator, image):
    lr = to_tensor(image)
    return to_array(back_project(generator(lr).clamp(0, 1), lr))


def photo(height, width):
    left = min(100, 512 - width)
    image = np.ascontiguousarray(data.astronaut()[:height, left : left + width])
    assert image.shape == (height, width, 3)
    return image


# --- pieces and whole ----------------------------------------------------------------------------

SIZES = [
    (1, 1), (1, 500), (500, 1), (37, 53), (64, 64), (5, 333), (3, 3), (90, 120), (97, 131),
    (150, 149),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_tiles_equal_the_whole_image(generator, size):
    image = photo(*size)
    for tile in (module.TILE, 100, 37, 16)[: 4 if max(size) < 80 else 3]:
        result = super_resolve(generator, image, tile=tile, progress=False)
        assert result.dtype == np.uint8
        assert np.array_equal(result, whole(generator, image)), tile


@pytest.mark.parametrize("size", [(37, 53), (97, 131)])
def test_tiles_equal_the_whole_image_with_back_projection(generator, size):
    image = photo(*size)
    expected = whole_back_projected(generator, image)
    assert np.abs(expected.astype(int) - whole(generator, image)).max() > 20
    for tile in (module.TILE, 37):
        result = super_resolve(generator, image, tile=tile, back_projection=True, progress=False)
        assert np.array_equal(result, expected), tile


def test_the_two_halves_are_the_forward_pass(generator):
    lr = torch.rand(2, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = module.extract_features(generator, lr)
        assert torch.equal(module.enlarge_features(generator, features), generator(lr))


def test_back_projection_keeps_what_is_invented_and_corrects_the_rest():
    hr = data.astronaut()[:160, 100:260].astype(np.float64) / 255
    lr = imresize(hr, 1 / 4)
    stain = np.zeros_like(hr)
    stain[40:100, 60:120] = [0.04, -0.03, 0.02]
    # Between the LR pixels: no trace in them.
    invented = np.tile([[0.1, -0.1], [-0.1, 0.1]], (80, 80))[..., None]
    wrong = hr + stain + invented
    sr = back_project(*(torch.from_numpy(x).permute(2, 0, 1) for x in (wrong, lr)))
    sr = sr.permute(1, 2, 0).numpy()
    assert np.abs(sr - (wrong + imresize(lr - imresize(wrong, 1 / 4), 4))).max() < 1e-12
    left = sr - hr - invented
    assert np.abs(left[52:88, 72:108]).max() < 1e-3 and np.abs(left[8:24, 8:-8]).max() < 1e-3
    assert np.abs(imresize(sr, 1 / 4) - lr).max() < 0.5 * np.abs(imresize(stain, 1 / 4)).max()


def test_the_bicubic_radius_covers_what_back_projection_depends_on():
    sr, lr = torch.zeros(1, 84, 84, dtype=torch.float64, requires_grad=True), torch.zeros(1, 21, 21)
    for corner in ((40, 40), (43, 43)):
        touched = torch.autograd.grad(back_project(sr, lr)[(0, *corner)], sr)[0][0].nonzero() // 4
        assert abs(touched - 10).max() <= module.BICUBIC_RADIUS


@pytest.mark.parametrize("back_projection", [False, True])
@pytest.mark.parametrize("channels", [4, 64])
def test_tiles_equal_the_whole_image_in_sixteen_bits(channels, back_projection):
    """16 bits show what 8 round away: other algorithms of PyTorch for tiles than for the whole."""
    generator = make_generator(1, channels)
    image = photo(60, 75).astype(np.uint16) * 257
    with torch.inference_mode():
        lr = to_tensor(image)
        sr = generator(lr).clamp(0, 1)
        sr = back_project(sr, lr).clamp(0, 1) if back_projection else sr
        expected = (sr[0] * 65535).round().permute(1, 2, 0).numpy()
    for tile in (37, 16):
        options = {"tile": tile, "back_projection": back_projection, "progress": False}
        assert np.array_equal(super_resolve(generator, image, **options), expected), tile


def test_the_second_half_has_tiles_of_its_own(generator, monkeypatch):
    monkeypatch.setattr(module, "ENLARGE_TILE", 20)
    image = photo(50, 61)
    result = super_resolve(generator, image, progress=False)
    assert np.array_equal(result, whole(generator, image))


@pytest.mark.parametrize("sped_up", [False, True])
def test_tiles_equal_the_whole_image_with_the_papers_depth(sped_up):
    generator = make_generator(16, 16, sped_up)
    image = photo(50, 130)
    result = super_resolve(generator, image, tile=33, progress=False)
    assert np.array_equal(result, whole(generator, image))


def radius_of(function, x):
    """How far from its place the central output of `function` depends on `x`, (1, C, 41, 41)."""
    x.requires_grad_()
    y = function(x)
    scale = y.shape[-1] // 41
    centre = y[..., 20 * scale : 21 * scale, 20 * scale : 21 * scale].sum()
    touched = torch.autograd.grad(centre, x)[0].abs().sum(dim=1)[0].nonzero()
    return abs(touched - 20).max().item()


def test_the_receptive_field_is_what_gradients_show(generator):
    generator = copy.deepcopy(generator).double()
    features, enlarge = module.receptive_field_radii(2)
    lr = torch.rand(1, 3, 41, 41, dtype=torch.float64)
    maps = torch.rand(1, 16, 41, 41, dtype=torch.float64)
    assert radius_of(lambda x: module.extract_features(generator, x), lr) == features
    assert radius_of(lambda x: module.enlarge_features(generator, x), maps) <= enlarge
    assert features + enlarge - 1 <= radius_of(generator, lr) <= features + enlarge
    assert module.receptive_field_radii(16) == (37, 3)


def test_ensemble_is_the_mean_of_eight_views(tiny):
    image = photo(30, 41)
    total = 0
    with torch.inference_mode():
        for rotations in range(4):
            for flip in (False, True):
                view = np.rot90(image, rotations)
                view = view[:, ::-1] if flip else view
                sr = tiny(to_tensor(np.ascontiguousarray(view)))[0].permute(1, 2, 0).numpy()
                sr = sr[:, ::-1] if flip else sr
                total = total + np.rot90(sr, -rotations).astype(np.float64)
    for tile in (16, module.TILE):
        result = super_resolve(tiny, image, tile=tile, ensemble=True, progress=False)
        # Eight sums in float32: a half to 6 digits may be rounded either way.
        assert np.abs(result - (total / 8).clip(0, 1) * 255).max() <= 0.5 + 1e-3
    assert not np.array_equal(result, whole(tiny, image))


@pytest.mark.parametrize("precision, largest", [("no", 0), ("bf16", 8)])
def test_fast_is_half_precision_where_the_device_has_it(generator, precision, largest, monkeypatch):
    monkeypatch.setattr(acceleration, "fastest_precision", lambda device: precision)
    lr = data.astronaut()[:60, 200:260]
    exact = super_resolve(generator, lr).astype(int)
    difference = np.abs(super_resolve(generator, lr, fast=True) - exact)
    assert difference.max() <= largest and (difference.mean() > 0) == (precision != "no")
    assert difference.mean() < 0.6


def test_memory_that_runs_out_halves_the_tiles(generator, monkeypatch):
    image = photo(200, 220)
    extract, seen = module.extract_features, []
    limit = 110 * 110

    def scarce(generator, lr):
        seen.append(lr.shape[2] * lr.shape[3])
        if seen[-1] > limit:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            )
        return extract(generator, lr)

    monkeypatch.setattr(module, "extract_features", scarce)
    result = super_resolve(generator, image, tile=220, progress=False)
    assert np.array_equal(result, whole(generator, image))
    assert sum(area > limit for area in seen) == 2  # of 220 and of 110; the smaller one is kept
    limit = 10
    with pytest.raises(MemoryError, match="close other programs"):
        super_resolve(generator, image, progress=False)


def test_progress_ends_at_all_of_it_even_if_tiles_are_done_again(tiny, monkeypatch):
    bars = []

    class Bar(utils.tqdm):
        def close(self):
            bars.append((self.n, self.total))
            super().close()

    calls, extract = [], module.extract_features

    def scarce(generator, lr):
        calls.append(lr)
        if len(calls) == 2:
            raise MemoryError
        return extract(generator, lr)

    monkeypatch.setattr(utils, "tqdm", Bar)
    monkeypatch.setattr(module, "extract_features", scarce)
    super_resolve(tiny, photo(100, 120), tile=100)
    assert len(calls) > 2
    assert bars[0] == (400 * 480, 400 * 480)


@pytest.mark.parametrize(("network", "calls"), [("tiny", 1), (None, 0)])
def test_a_network_on_the_cpu_reuses_memory(network, calls, tiny, monkeypatch):
    """Before it computes. Bicubic interpolation has no large blocks that come again."""
    seen, extract = [], module.extract_features
    monkeypatch.setattr(module, "keep_freed_memory", lambda: seen.append("kept"))
    monkeypatch.setattr(
        module, "extract_features", lambda *x: seen.append("computed") or extract(*x)
    )
    super_resolve(network and tiny, photo(9, 9), progress=False)
    assert seen == calls * ["kept", "computed"]


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny, monkeypatch):
    def broken(generator, lr):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(module, "extract_features", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        super_resolve(tiny, photo(5, 5), progress=False)


def test_the_generator_is_left_as_it_was(tiny):
    generator = make_generator(1, 4).train()
    image = photo(20, 20)
    assert np.array_equal(super_resolve(generator, image, progress=False), whole(tiny, image))
    assert generator.training
    assert all(
        torch.equal(a, b)
        for a, b in zip(generator.state_dict().values(), tiny.state_dict().values(), strict=True)
    )


def test_weights_that_are_not_finite_are_named():
    generator = make_generator(1, 4)
    generator.tail.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        super_resolve(generator, photo(8, 8), progress=False)


# --- arrays and PIL images of every kind ---------------------------------------------------------


def test_arrays_keep_their_channels(tiny):
    rgb = photo(20, 30)
    gray, alpha = rgb[..., 0], rgb[..., 1]
    enlarged = super_resolve(tiny, gray, progress=False)
    three = whole(tiny, np.dstack([gray] * 3))
    assert enlarged.shape == (80, 120)
    assert np.abs(enlarged - three.mean(axis=2)).max() <= 1
    assert super_resolve(tiny, gray[..., None], progress=False).shape == (80, 120, 1)
    gray_alpha = super_resolve(tiny, np.dstack([gray, alpha]), tile=16, progress=False)
    assert np.array_equal(gray_alpha[..., 0], enlarged)
    assert np.array_equal(gray_alpha[..., 1], imresize(alpha, 4))
    rgba = super_resolve(tiny, np.dstack([rgb, alpha]), tile=16, progress=False)
    assert np.array_equal(rgba[..., :3], whole(tiny, rgb))
    assert np.array_equal(rgba[..., 3], imresize(alpha, 4))


def test_sixteen_bits_stay_sixteen_bits(tiny):
    rgb = photo(20, 30)
    fine = rgb.astype(np.uint16) * 257
    result = super_resolve(tiny, fine, progress=False)
    with torch.inference_mode():
        expected = tiny(to_tensor(rgb))[0].permute(1, 2, 0).clamp(0, 1).numpy() * 65535
    assert result.dtype == np.uint16 and len(np.unique(result)) > 256
    assert np.abs(result - expected).max() < 1
    assert super_resolve(tiny, fine[..., 0], progress=False).dtype == np.uint16


def test_bicubic_in_tiles_is_matlabs():
    opaque = np.full((50, 60), 255, np.uint8)
    for image in (photo(50, 60), np.dstack([photo(50, 60), opaque])):
        enlarged = super_resolve(None, image, tile=17, progress=False)
        assert np.array_equal(enlarged, imresize(image, 4))


def laid_on(image, page):
    """Float RGB of uint8 (H, W, 2 or 4) over a page of one colour."""
    alpha = image[..., -1:] / 255
    return image[..., :-1] * alpha + page * (1 - alpha)


def test_bicubic_enlarges_what_is_seen():
    """On any page, as if the image had been laid on it first: colours with their alpha."""
    image = np.random.default_rng(0).integers(70, 180, (20, 24, 4), dtype=np.uint8)
    enlarged = super_resolve(None, image, tile=7, progress=False)
    assert np.array_equal(enlarged, super_resolve(None, image, progress=False))
    assert np.abs(enlarged[..., 3] - imresize(image[..., 3] / 255, 4) * 255).max() < 0.51
    for page in (0, 255):
        expected = imresize(laid_on(image, page), 4)
        assert np.abs(laid_on(enlarged, page) - expected).max() < 1.01


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("hidden", [0, 128, "noise"])
def test_hidden_colours_do_not_bleed(generator, dtype, hidden):
    """A white disc on transparency has no halo on a white page, whatever is hidden around it."""
    rows, columns = np.mgrid[:60, :70]
    distance = np.hypot(rows - 28.3, columns - 33.1)
    alpha = ((18 - distance).clip(0, 1) * 255).astype(np.uint8)
    image = np.dstack([np.full((60, 70, 3), 255, np.uint8), alpha])
    expected = super_resolve(generator, np.ascontiguousarray(image), tile=25, progress=False)
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    image[..., :3][alpha == 0] = (noise if hidden == "noise" else noise * 0 + hidden)[alpha == 0]
    image = image.astype(dtype) * (np.iinfo(dtype).max // 255)
    for network in (generator, None):
        result = super_resolve(network, image, tile=25, progress=False)
        result = np.round(result / (np.iinfo(dtype).max / 255))
        if network is None:
            assert np.abs(laid_on(result, 255) - 255).max() <= 1
        else:
            assert np.abs(result - expected).max() <= 1
    gray = np.ascontiguousarray(image[..., [0, 3]])
    assert (
        laid_on(super_resolve(None, gray, progress=False) / (np.iinfo(dtype).max / 255), 255).min()
        > 254
    )


def test_an_invisible_image_is_enlarged_too(tiny):
    image = np.dstack([photo(6, 7), np.zeros((6, 7), np.uint8)])
    for network in (tiny, None):
        assert not super_resolve(network, image, progress=False)[..., 3].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("back_projection", [False, True])
def test_equal_channels_stay_equal(generator, dtype, back_projection):
    gray = photo(40, 50)[..., 0].astype(dtype) * (np.iinfo(dtype).max // 255)
    options = {"tile": 33, "back_projection": back_projection, "progress": False}
    expected = super_resolve(generator, gray, **options)
    three = np.dstack([gray] * 3)
    assert np.array_equal(super_resolve(generator, three, **options), np.dstack([expected] * 3))
    alpha = photo(40, 50)[..., 1].astype(dtype)
    enlarged = super_resolve(generator, np.dstack([three, alpha]), **options)
    assert np.array_equal(enlarged[..., :3], np.dstack([enlarged[..., 0]] * 3))
    three[3, 4, 1] ^= 1  # no gray image: computed in colours
    assert not (np.ptp(super_resolve(generator, three, **options), axis=2) == 0).all()


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (np.zeros((4, 4, 3)), TypeError),
        (np.zeros((4, 4, 3), bool), TypeError),
        ([[1, 2]], TypeError),
        (None, TypeError),
        (np.zeros((0, 4, 3), np.uint8), ValueError),
        (np.zeros((4, 4, 5), np.uint8), ValueError),
        (np.zeros((1, 3, 4, 4), np.uint8), ValueError),
        (Image.new("F", (3, 3)), ValueError),
        (Image.new("RGB", (0, 3)), ValueError),
    ],
)
def test_what_cannot_be_enlarged_is_refused(tiny, image, error):
    with pytest.raises(error, match=r"accepted|save"):
        super_resolve(tiny, image, progress=False)


@pytest.mark.parametrize("tile", [0, -1, 2.5, "small"])
def test_tile_is_checked(tiny, tile):
    with pytest.raises(ValueError, match="tile"):
        super_resolve(tiny, photo(4, 4), tile=tile, progress=False)


def palette_image(transparent=False):
    image = Image.fromarray(photo(9, 12)).quantize(5)
    if transparent:
        image.info["transparency"] = 2
    return image


PIL_MODES = {
    "1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB",
    "RGBA": "RGBA", "RGBa": "RGBA", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB",
    "LAB": "RGB", "I;16": "I;16", "I;16L": "I;16", "I;16B": "I;16", "I;16N": "I;16", "I": "I;16",
}  # fmt: skip


@pytest.mark.parametrize("mode", PIL_MODES)
def test_every_mode_of_pil(tiny, mode):
    rgb = Image.fromarray(photo(9, 12))
    deep = photo(9, 12)[..., 0].astype(np.uint16) * 200
    if mode == "I":
        image = Image.fromarray(deep).convert(mode)
    elif mode.startswith("I"):
        order = {"B": ">", "L": "<"}.get(mode[-1], "=" if mode[-1] == "N" else "<")
        image = Image.frombytes(
            mode, (12, 9), deep.astype(deep.dtype.newbyteorder(order)).tobytes()
        )
    elif mode in ("La", "RGBa", "PA"):
        image = rgb.convert("RGBA").convert({"La": "LA", "RGBa": "RGBa", "PA": "PA"}[mode])
        image = image.convert(mode)
    else:
        image = rgb.convert(mode)
    result = super_resolve(tiny, image, progress=False)
    assert result.mode == PIL_MODES[mode] and result.size == (48, 36)
    if result.mode.startswith("RGB"):
        colours = np.array(
            image.convert("RGBA").convert("RGB") if mode == "RGBa" else image.convert("RGB")
        )
        assert np.array_equal(np.array(result)[..., :3], whole(tiny, colours))
    elif mode.startswith("I"):
        assert np.array_equal(np.array(result), super_resolve(tiny, deep, progress=False))


def test_no_mode_of_pil_is_left_out(tiny):
    assert set(Image.MODES) <= {*PIL_MODES, "F"}
    with pytest.raises(ValueError, match="floating-point"):
        super_resolve(tiny, Image.new("F", (3, 3)), progress=False)


def test_transparency_of_a_palette_and_of_a_colour_is_kept(tiny):
    image = palette_image(transparent=True)
    result = super_resolve(tiny, image, progress=False)
    assert result.mode == "RGBA"
    alpha = np.where(np.array(image) == 2, 0, 255).astype(np.uint8)
    assert 0 < (alpha == 0).mean() < 1
    assert np.array_equal(np.array(result)[..., 3], imresize(alpha, 4))
    gray = Image.fromarray(photo(9, 12)[..., 0])
    gray.info["transparency"] = int(np.array(gray)[0, 0])
    assert super_resolve(tiny, gray, progress=False).mode == "LA"


def test_profile_and_resolution_are_carried_over(tiny, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photo(8, 9)).save(tmp_path / "in.jpg", icc_profile=profile, dpi=(72, 144))
    for result in (
        super_resolve(tiny, tmp_path / "in.jpg", progress=False),
        super_resolve_file(tiny, tmp_path / "in.jpg", tmp_path / "out.png", progress=False)
        or Image.open(tmp_path / "out.png"),
    ):
        assert result.info["icc_profile"] == profile
        assert result.info["dpi"] == pytest.approx((288, 576), abs=0.05)


def test_a_turned_photograph_comes_out_upright(tiny, tmp_path):
    image = Image.fromarray(photo(10, 16))
    image.getexif()[0x0112] = 6
    upright = np.ascontiguousarray(np.rot90(photo(10, 16), -1))
    assert np.array_equal(
        np.array(super_resolve(tiny, image, progress=False)), whole(tiny, upright)
    )
    image.save(tmp_path / "turned.png", exif=image.getexif())
    result = super_resolve(tiny, tmp_path / "turned.png", progress=False)
    assert np.array_equal(np.array(result), whole(tiny, upright))
    assert result.getexif().get(0x0112, 1) == 1


# --- files: sound, odd, damaged ------------------------------------------------------------------


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def sound_files():
    """(name, bytes, PIL image that the file should be read as)."""
    rgb = Image.fromarray(photo(9, 12))
    gray, rgba, one = rgb.convert("L"), rgb.convert("RGBA"), rgb.convert("1")
    rgba.putalpha(Image.fromarray(photo(9, 12)[..., 2]))
    deep = Image.fromarray(np.arange(108, dtype=np.uint16).reshape(9, 12) * 600)
    for format in ("PNG", "TIFF", "BMP", "PPM", "TGA", "WEBP", "JPEG", "JPEG2000", "AVIF", "GIF"):
        lossless = {"WEBP": {"lossless": True, "exact": True}}.get(format, {})
        images = {
            "L": gray, "RGB": rgb, "RGBA": rgba, "1": one, "P": palette_image(),
            "LA": rgba.convert("LA"), "I;16": deep, "CMYK": rgb.convert("CMYK"),
            "YCbCr": rgb.convert("YCbCr"),
        }  # fmt: skip
        for mode, image in images.items():
            if format == "AVIF" and mode != "RGBA":
                continue  # slow to write
            try:
                content = encode(image, format, **lossless)
                with Image.open(io.BytesIO(content)) as read:
                    read.load()
            except (OSError, ValueError, KeyError):
                continue  # the format does not hold this mode
            yield f"{format}-{mode.replace(';', '')}.{format.lower()}", content, read
    for height, width in [(1, 1), (1, 17), (17, 1), (2, 3), (3, 2), (4, 4), (31, 2)]:
        image = Image.fromarray(photo(height, width))
        yield f"size-{height}x{width}.png", encode(image, "PNG"), image
    yield (
        "palette-transparent.png",
        encode(palette_image(True), "PNG", transparency=2),
        palette_image(True),
    )
    yield "png inside.jpg", encode(rgb, "PNG"), rgb
    yield "照片.tif", encode(rgb, "TIFF", compression="tiff_lzw"), rgb
    yield "interlaced-looking.PNG", encode(rgb, "PNG", optimize=True), rgb
    yield "broken-profile.png", encode(rgb, "PNG", icc_profile=b"nonsense"), rgb
    yield "broken-exif.png", encode(rgb, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), rgb


def test_sound_files_are_enlarged_as_what_they_show(tiny, tmp_path, recwarn):
    count = 0
    for name, content, image in sound_files():
        count += 1
        (tmp_path / name).write_bytes(content)
        super_resolve_file(tiny, tmp_path / name, tmp_path / "out.png", progress=False)
        expected = super_resolve(tiny, image, progress=False)
        with Image.open(tmp_path / "out.png") as result:
            assert result.size == (4 * image.width, 4 * image.height), name
            if name.startswith("GIF-"):  # libvips reads them as RGB
                expected = expected.convert("RGB")
            assert result.mode == expected.mode, name
            assert np.array_equal(np.array(result), np.array(expected)), name
            if image.mode == "RGB" and np.ptp(np.array(image), axis=2).any():
                assert np.array_equal(np.array(result), whole(tiny, np.array(image))), name
    assert count > 50


def damaged_files():
    """(name, bytes, the image of the sound file or None if it cannot be read as that)."""
    rgb, gray = Image.fromarray(photo(9, 12)), Image.fromarray(photo(9, 12)[..., 0])
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "TGA", "PPM", "JPEG2000", "AVIF"):
        sound = encode(gray if format == "GIF" else rgb, format)
        with Image.open(io.BytesIO(sound)) as image:
            image.load()
        for length in range(10, len(sound), 10):
            yield f"{format}-{length}-bytes.{format.lower()}", sound[:length], image
        for seed in range(8):
            content = bytearray(sound)
            for place in random.Random(seed).sample(range(len(content)), 3):
                content[place] ^= 0xFF
            yield f"{format}-damaged-{seed}.{format.lower()}", bytes(content), None


def huge_files():
    png = encode(Image.fromarray(photo(9, 12)), "PNG")
    for width, height in [
        (60000, 60000),
        (2**31 - 1, 2**31 - 1),
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (0, 5),
    ]:
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        yield (
            f"{width}x{height}.png",
            png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:],
        )
    bmp = bytearray(encode(Image.fromarray(photo(9, 12)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 50000, 50000)
    yield "huge.bmp", bytes(bmp)
    jpeg = bytearray(encode(Image.fromarray(photo(9, 12)), "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 65500, 65500)
    yield "huge.jpg", bytes(jpeg)
    yield "huge.ppm", b"P6 99999999 99999999 255\n" + bytes(100)
    yield "short.ppm", b"P6 5000 5000 255\n" + bytes(100)
    yield "text.png", b"not an image"
    yield "zeros.jpg", bytes(1000)
    yield "empty.png", b""
    frames = [Image.fromarray(photo(9, 12)), Image.fromarray(photo(9, 12)[::-1])]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        yield (
            f"animated.{format.lower()}",
            encode(frames[0], format, save_all=True, append_images=frames[1:]),
        )
    yield "float.tif", encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    yield "postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_or_read_right_and_leave_nothing(tiny, tmp_path):
    refused = read = 0
    source, target = tmp_path / "in", tmp_path / "out" / "result.png"
    for name, content, sound in [
        *damaged_files(),
        *((name, content, None) for name, content in huge_files()),
    ]:
        path = source / name
        source.mkdir(exist_ok=True)
        path.write_bytes(content)
        try:
            super_resolve_file(tiny, path, target, progress=False)
        except (OSError, ValueError) as error:
            assert str(error).startswith(f"{path}: "), error
            assert not target.exists(), name
            refused += 1
        else:
            with Image.open(target) as result:
                result.load()
                if sound is not None:
                    expected = super_resolve(tiny, sound, progress=False)
                    assert np.array_equal(np.array(result), np.array(expected)), name
            target.unlink()
            read += 1
        assert not target.parent.exists() or not any(target.parent.iterdir()), name
    assert refused + read > 200 and refused > 150
    print(f"{refused} refused, {read} read")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "content"),
    list(huge_files()),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_files_are_refused(tiny, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((OSError, ValueError), match=r"; |not supported"):
        super_resolve_file(tiny, tmp_path / name, tmp_path / "out.png", progress=False)


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_a_colour_stay_sixteen_from_file_to_file(tiny, tmp_path, channels):
    cv2 = pytest.importorskip("cv2")
    array = np.random.default_rng(0).integers(0, 65536, (20, 5, channels)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "in.png"), array[..., [2, 1, 0, 3][:channels]])
    super_resolve_file(tiny, tmp_path / "in.png", tmp_path / "out.png", tile=16, progress=False)
    result = cv2.imread(str(tmp_path / "out.png"), cv2.IMREAD_UNCHANGED)[
        ..., [2, 1, 0, 3][:channels]
    ]
    assert np.array_equal(result, super_resolve(tiny, array, progress=False))
    with pytest.warns(UserWarning, match="16 bits a channel are returned as 8"):
        image = super_resolve(tiny, tmp_path / "in.png", progress=False)
    assert image.mode == {3: "RGB", 4: "RGBA"}[channels]
    assert np.abs(np.asarray(image) - result / 257).max() <= 0.5


def test_a_result_is_whole_or_absent(tiny, tmp_path, monkeypatch):
    Image.fromarray(photo(60, 9)).save(tmp_path / "in.png")
    (tmp_path / "out.png").write_bytes(b"the old result")
    enlarge, calls = module._enlarge, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return enlarge(*arguments)

    monkeypatch.setattr(module, "_enlarge", stopped)
    with pytest.raises(KeyboardInterrupt):
        super_resolve_file(tiny, tmp_path / "in.png", tmp_path / "out.png", tile=16, progress=False)
    assert (tmp_path / "out.png").read_bytes() == b"the old result"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]


def test_a_file_takes_a_strip_at_a_time(tiny, tmp_path, monkeypatch):
    Image.fromarray(photo(100, 40)).save(tmp_path / "in.png")
    heights = []
    write = module.write_picture

    def watch(path, strips, *arguments):
        write(path, (heights.append(len(strip)) or strip for strip in strips), *arguments)

    monkeypatch.setattr(module, "write_picture", watch)
    super_resolve_file(tiny, tmp_path / "in.png", tmp_path / "out.png", tile=25, progress=False)
    assert heights == [100] * 4
    assert np.array_equal(read_image(tmp_path / "out.png"), whole(tiny, photo(100, 40)))


# --- ONNX ----------------------------------------------------------------------------------------


def test_onnx_agrees_with_pytorch(tmp_path, generator):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "模型 一" / "generator 1.onnx"
    module.export_onnx(generator, path)
    # Tools expect convolutions with constant weights: the rearranged tail must be computed before.
    graph = onnx.load_from_string(path.read_bytes()).graph
    stored = {tensor.name for tensor in graph.initializer}
    assert all(set(node.input[1:]) <= stored for node in graph.node if node.op_type == "Conv")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n, height, width in [(1, 16, 24), (1, 37, 53), (2, 1, 40)]:
        lr = torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.inference_mode():
            expected = generator(lr).clamp(0, 1).numpy()
        result = session.run(["sr"], {"lr": lr.numpy()})[0]
        assert np.abs(result - expected).max() < 1e-5
        assert result.min() == 0 and result.max() == 1


def test_a_missing_onnx_is_named(generator, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="onnx"):
        module.export_onnx(generator, tmp_path / "a.onnx")


# --- OpenVINO ------------------------------------------------------------------------------------


@pytest.fixture
def openvino():
    """The options; not by `importorskip`, after which OpenVINO would report its use."""
    pytest.importorskip("onnx")
    try:
        openvino_engine.import_openvino()
    except ImportError as error:
        pytest.skip(str(error))
    return {"engine": "openvino", "progress": False}


@pytest.mark.parametrize("options", [{}, {"ensemble": True}, {"back_projection": True}])
def test_openvino_differs_from_pytorch_by_its_rounding_alone(generator, openvino, options):
    image = photo(97, 131).astype(np.uint16) * 257  # 16 bits show what 8 round away
    expected = super_resolve(generator, image, progress=False, **options).astype(int)
    for tile in (None, 37):
        result = super_resolve(generator, image, tile=tile, **openvino, **options)
        assert np.abs(result - expected).max() <= 2, tile


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_openvino_enlarges_gray_and_transparent_images(generator, openvino, channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 33, channels), np.uint8)
    expected = super_resolve(generator, image, progress=False).astype(int)
    assert np.abs(super_resolve(generator, image, **openvino) - expected).max() <= 1


def test_openvino_cuts_the_second_half_in_tiles_of_its_own(generator, openvino, monkeypatch):
    expected = super_resolve(generator, photo(50, 61), **openvino).astype(int)
    monkeypatch.setattr(module, "OPENVINO_ENLARGE_TILE", 20)
    assert np.abs(super_resolve(generator, photo(50, 61), **openvino) - expected).max() <= 1


@pytest.mark.parametrize("half", [False, True])
def test_fast_reaches_openvino(generator, openvino, half, monkeypatch):
    """Where the processor has no bfloat16, OpenVINO may compute in float32 all the same."""
    monkeypatch.setattr(openvino_engine, "computes_in_bf16", lambda device: half)
    exact = super_resolve(generator, photo(40, 50), progress=False).astype(int)
    error = np.abs(super_resolve(generator, photo(40, 50), fast=True, **openvino) - exact)
    assert error.max() <= (8 if half else 1)
    if half and acceleration.computes_in_bf16(torch.device("cpu")):
        assert error.mean() > 0.05


def test_openvino_computes_with_weights_changed_in_any_way(openvino):
    generator, image = make_generator(1, 4), photo(20, 30)

    def check():
        before = super_resolve(generator, image, progress=False).astype(int)
        assert np.abs(super_resolve(generator, image, **openvino) - before).max() <= 1
        return before

    first = check()
    generator.tail.bias.data += 0.5  # does not count as a change for PyTorch
    second = check()
    generator.load_state_dict(make_generator(1, 4).state_dict())
    third = check()
    generator.blocks[0].body[1].running_mean += 1
    fourth = check()
    assert (first != second).any() and (first == third).all() and (first != fourth).any()


def test_openvino_compiles_once_and_forgets_a_generator_with_it(openvino, monkeypatch):
    generator, writes, write = make_generator(1, 4), [], openvino_engine.write_onnx
    monkeypatch.setattr(
        openvino_engine, "write_onnx", lambda *args: writes.append(args[2]) or write(*args)
    )
    for size in ((20, 30), (31, 17)):
        super_resolve(generator, photo(*size), **openvino)
    assert len(writes) == 2  # a half each
    super_resolve(generator, photo(20, 30), fast=True, **openvino)
    assert len(writes) == 4
    alive = weakref.ref(generator)
    del generator
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("training", [False, True])
def test_openvino_and_the_export_leave_the_mode_of_the_generator(openvino, tmp_path, training):
    generator, image = make_generator(1, 4), photo(20, 30)
    expected = super_resolve(generator, image, progress=False).astype(int)
    generator.train(training)
    assert np.abs(super_resolve(generator, image, **openvino) - expected).max() <= 1
    module.export_onnx(generator, tmp_path / "a.onnx")
    assert all(layer.training == training for layer in generator.modules())


@pytest.mark.parametrize("package", ["onnx", "openvino"])
def test_a_package_that_openvino_needs_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "onnx":
        monkeypatch.setattr(openvino_engine, "import_openvino", lambda: None)
    with pytest.raises(ImportError, match=f"{package}.*pip install openvino onnx"):
        super_resolve(make_generator(1, 4), photo(9, 9), engine="openvino", progress=False)


def test_openvino_is_refused_on_another_device(tiny):
    elsewhere = copy.deepcopy(tiny).to("meta")
    with pytest.raises(ValueError, match="on the CPU, and the generator is on meta"):
        super_resolve(elsewhere, photo(9, 9), engine="openvino", progress=False)
    with pytest.raises(ValueError, match='engine is "torch" or "openvino", not \'tensorrt\''):
        super_resolve(tiny, photo(9, 9), engine="tensorrt", progress=False)


def test_openvino_sends_no_statistics(openvino):
    """Its package reports each import and conversion over the net, unless it is told not to."""
    code = "import sys; from tools.openvino_engine import import_openvino as load; load()"
    code += "; sys.exit(any(name.startswith('openvino_telemetry.') for name in sys.modules))"
    folder = Path(module.__file__).parent
    assert subprocess.run([sys.executable, "-c", code], cwd=folder).returncode == 0


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_not_finite_output_is_an_error_with_each_engine(openvino, engine):
    for value in (float("nan"), float("inf")):
        generator = make_generator(1, 4)
        generator.blocks[0].body[0].weight.data[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match="not finite"):
            super_resolve(generator, photo(20, 30), **openvino | {"engine": engine})
