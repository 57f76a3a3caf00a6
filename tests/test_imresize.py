"""imresize against MATLAB's files, golden vectors, rational arithmetic; its fast and plain path."""

import hashlib
import json
import math
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import imresize as module
from imresize import imresize
from tools import fast_imresize

# The image is ((i * 2654435761) >> 11) mod 256 at flat index i. Of the MATLAB-exact output: the
# first 16 hexadecimal digits of its sha256, and its sum.
GOLDEN = [
    (96, 96, "symmetric", 1 / 4, "1d5f54afb324eace", 220384),
    (96, 96, "symmetric", 4, "119b410cc08f0d92", 56415832),
    (96, 96, "replicate", 1 / 4, "11c59e5bcb7f310c", 220381),
    (96, 96, "replicate", 4, "8b212437eeb43f47", 56415747),
    (64, 48, "symmetric", 1 / 4, "a5e96167d5a8ade4", 73531),
    (64, 48, "symmetric", 4, "b2e4193e0d2e7524", 18822094),
    (64, 48, "replicate", 1 / 4, "b6dedb63aee344aa", 73524),
    (64, 48, "replicate", 4, "36ee6b44172a2ff2", 18821874),
    (40, 136, "symmetric", 1 / 4, "358cc63e2898998f", 130166),
    (40, 136, "symmetric", 4, "7b3366ed7822932b", 33332578),
    (40, 136, "replicate", 1 / 4, "3a4c1a68c178c6bd", 130156),
    (40, 136, "replicate", 4, "66666e23df1a1567", 33332805),
]
PADDINGS = st.sampled_from(["symmetric", "replicate"])
FAST_SCALES = st.sampled_from([1 / 4, 1 / 3, 1 / 2, 2, 3, 4])


def golden_image(height, width):
    index = np.arange(height * width * 3, dtype=np.uint64)
    return (
        ((index * np.uint64(2654435761) >> np.uint64(11)) % np.uint64(256))
        .astype(np.uint8)
        .reshape(height, width, 3)
    )


def noise(shape, dtype=np.uint8, seed=0):
    """Noise with many extreme values, where rounding and saturation go wrong."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    top = np.iinfo(dtype).max
    return rng.integers(-top // 2, top + top // 2, shape).clip(0, top).astype(dtype)


def to_tensor(image):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))


def to_array(tensor):
    return np.moveaxis(tensor.numpy(), 0, -1)


def plain(*args, **kwargs):
    """Resize without the fast path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fast_resize", lambda *_: None)
        return imresize(*args, **kwargs)


def as_large(*args, **kwargs):
    """Resize by the fast path as if the image were large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_imresize, "SMALL", 600)
        return imresize(*args, **kwargs)


@pytest.mark.parametrize("resize", [imresize, as_large, plain])
@pytest.mark.parametrize(("height", "width", "padding", "scale", "digest", "total"), GOLDEN)
def test_golden_vectors_of_matlab(resize, height, width, padding, scale, digest, total):
    image = golden_image(height, width)
    tensor = resize(to_tensor(image), scale, padding=padding)
    for out in (resize(image, scale, padding=padding), to_array(tensor)):
        assert int(out.sum()) == total
        assert hashlib.sha256(out.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("hr_folder", "lr_folder", "suffix", "padding"),
    [
        ("Set5/HR", "Set5/LR", "", "replicate"),
        ("Set14/HR", "Set14/LR", "", "replicate"),
        ("B100/HR", "B100/LR", "", "replicate"),
        ("Urban100/HR", "Urban100/LR", "", "replicate"),
        ("DIV2K_valid_HR", "DIV2K_valid_LR_bicubic/X4", "x4", "symmetric"),
    ],
)
def test_the_files_that_matlab_wrote(hr_folder, lr_folder, suffix, padding):
    data = Path(__file__).parent.parent / "data"
    paths = sorted((data / hr_folder).glob("*.png"))
    if not paths:
        pytest.skip(f"data/{hr_folder} is not there")
    for path in paths:
        hr = np.asarray(Image.open(path))
        hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
        lr = np.asarray(Image.open(data / lr_folder / f"{path.stem}{suffix}.png"))
        assert np.array_equal(imresize(hr, 1 / 4, padding=padding), lr), path


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    channels=st.integers(1, 5),
    scale=FAST_SCALES,
    options=st.fixed_dictionaries(
        {"padding": PADDINGS},
        optional={
            "antialiasing": st.just(False),
            "kernel": st.sampled_from(["bilinear", "box", "lanczos2"]),
        },
    ),
    resize=st.sampled_from([imresize, as_large]),
    seed=st.integers(0, 2**32 - 1),
)
@example(5, 70, 3, 1 / 4, {}, as_large, 0)  # large, but of two units only
@example(70, 1, 5, 1 / 4, {}, imresize, 0)  # here PyTorch's routine is not exact
def test_fast_path_equals_plain_path(height, width, channels, scale, options, resize, seed):
    image = noise((height, width, channels), seed=seed)
    expected = plain(image, scale, **options)
    assert np.array_equal(resize(image, scale, **options), expected)
    assert np.array_equal(to_array(resize(to_tensor(image), scale, **options)), expected)
    batch = torch.stack([to_tensor(image), to_tensor(255 - image)])
    batch = resize(batch.contiguous(memory_format=torch.channels_last), scale, **options)
    assert np.array_equal(to_array(batch[0]), expected)
    assert np.array_equal(to_array(batch[1]), plain(255 - image, scale, **options))


def test_the_fast_path_serves_uint8_images_on_this_processor(monkeypatch):
    """Where PyTorch rounds otherwise this fails, and the results are only slower."""
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("the fast path is known to work on x86 processors only")
    monkeypatch.setattr(module, "_resize_dimension", None)
    image = noise((40, 24, 3))
    for scale in fast_imresize.UNITS:
        assert np.array_equal(to_array(imresize(to_tensor(image), scale)), imresize(image, scale))


def test_a_processor_that_rounds_otherwise_takes_the_plain_path(monkeypatch):
    real, image = fast_imresize._interpolate, noise((96, 64, 3))

    def wrong(x, dim, out_length):
        out = real(x, dim, out_length)
        return out ^ (out == 77) if out.dtype == torch.uint8 else out

    monkeypatch.setattr(fast_imresize, "_interpolate", wrong)
    fast_imresize._is_exact.cache_clear()
    try:
        assert np.array_equal(imresize(image, 1 / 4), plain(image, 1 / 4))
        assert not fast_imresize._is_exact(1 / 4, 3, torch.channels_last)
    finally:
        fast_imresize._is_exact.cache_clear()


def exact_cubic(t):
    t = abs(t)
    if t <= 1:
        return Fraction(3, 2) * t**3 - Fraction(5, 2) * t**2 + 1
    return -Fraction(1, 2) * t**3 + Fraction(5, 2) * t**2 - 4 * t + 2 if t <= 2 else Fraction(0)


def exact_line(line, out_length, scale, antialiasing, padding):
    """Resize a list of numbers in rational arithmetic, straight from the rules of the docstring."""
    n, shrink, out = len(line), min(scale, 1) if antialiasing else 1, []
    for x in range(1, out_length + 1):
        u = x / scale + (1 - 1 / scale) / 2
        numerator = denominator = Fraction(0)
        for i in range(math.floor(u - 2 / shrink) - 1, math.ceil(u + 2 / shrink) + 2):
            j = (
                min(max(i, 1), n)
                if padding == "replicate"
                else [*range(1, n + 1), *range(n, 0, -1)][(i - 1) % (2 * n)]
            )
            k = exact_cubic(shrink * (u - i))
            numerator, denominator = numerator + k * line[j - 1], denominator + k
        out.append(numerator / denominator)
    return out


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    out_size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    antialiasing=st.booleans(),
    padding=PADDINGS,
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size_against_rational_arithmetic(size, out_size, antialiasing, padding, seed):
    image = noise(size, seed=seed)
    exact = [[Fraction(int(v)) for v in row] for row in image]
    rounded, ties = exact, False
    for axis in sorted((0, 1), key=lambda k: Fraction(out_size[k], size[k])):
        scale = Fraction(out_size[axis], size[axis])
        results = []
        for values in (exact, rounded):
            lines = values if axis == 1 else list(zip(*values, strict=True))
            lines = [
                exact_line(line, out_size[axis], scale, antialiasing, padding) for line in lines
            ]
            results.append(lines if axis == 1 else list(zip(*lines, strict=True)))
        exact = results[0]
        # Where a value is a half but for 1e-9, float64 may round either way, in MATLAB as here.
        ties |= any(abs(v % 1 - Fraction(1, 2)) < 1e-9 for row in results[1] for v in row)
        rounded = [
            [Fraction(min(max(math.floor(v + Fraction(1, 2)), 0), 255)) for v in row]
            for row in results[1]
        ]
    options = {"antialiasing": antialiasing, "padding": padding}
    out = imresize(image.astype(np.float64), out_size, **options)
    np.testing.assert_allclose(out, np.array(exact, dtype=np.float64), rtol=0, atol=1e-10)
    if not ties:
        assert np.array_equal(
            imresize(image, out_size, **options), np.array(rounded, dtype=np.uint8)
        )


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    scale=st.one_of(
        st.floats(0.05, 4), st.tuples(st.integers(1, 60), st.integers(1, 60)), FAST_SCALES
    ),
    kernel=st.sampled_from(["bicubic", "bilinear", "nearest", "box", "lanczos2", "lanczos3"]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32, np.float64]),
    padding=PADDINGS,
    antialiasing=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_arrays_and_tensors_agree(size, scale, kernel, dtype, padding, antialiasing, seed):
    image = noise((*size, 3), dtype, seed)
    options = {"kernel": kernel, "padding": padding, "antialiasing": antialiasing}
    array, tensor = (
        imresize(image, scale, **options),
        to_array(imresize(to_tensor(image), scale, **options)),
    )
    gray = imresize(np.asfortranarray(image[:, :, 1]), scale, **options)
    assert array.dtype == tensor.dtype == dtype and gray.shape == array.shape[:2]
    assert array.shape[:2] == (
        scale if isinstance(scale, tuple) else tuple(math.ceil(scale * n) for n in size)
    )
    np.testing.assert_array_equal(gray, array[:, :, 1])
    np.testing.assert_allclose(
        tensor, array, rtol=0, atol={"u": 0, "f": 1e-5}[np.dtype(dtype).kind]
    )
    # Weights sum to 1, whatever the kernel.
    np.testing.assert_allclose(imresize(np.full_like(image, 7), scale, **options), 7, rtol=1e-6)


def test_other_kernels():
    row = np.array([[0.0, 10, 20, 60, 0, 0, 0, 0]])
    assert imresize(row, (1, 4), kernel="box").tolist() == [[5, 40, 0, 0]]
    assert imresize(row, (1, 4), kernel="nearest").tolist() == [
        [10, 60, 0, 0]
    ]  # of two equally near, the later one
    assert imresize(row, (1, 4), kernel="box", antialiasing=False).tolist() == [[10, 60, 0, 0]]
    assert imresize(np.array([[1.0, 2], [3, 4]]), 2, kernel="bilinear").tolist() == [
        [1, 1.25, 1.75, 2],
        [1.5, 1.75, 2.25, 2.5],
        [2.5, 2.75, 3.25, 3.5],
        [3, 3.25, 3.75, 4],
    ]
    assert imresize(row, (1, 4), kernel="bilinear")[0, 1] == pytest.approx(
        (10 + 3 * 20 + 3 * 60 + 0) / 8
    )
    signal = noise((1, 45), np.float64)
    for lobes in (
        2,
        3,
    ):  # a third: output 7 (from 0) lies at pixel 22, and the kernel is three times as wide
        t = np.arange(-3 * lobes, 3 * lobes + 1) / 3
        weights = np.sinc(t) * np.sinc(t / lobes)
        expected = (weights * signal[0, 22 - 3 * lobes : 23 + 3 * lobes]).sum() / weights.sum()
        assert imresize(signal, (1, 15), kernel=f"lanczos{lobes}")[0, 7] == pytest.approx(expected)


def test_floats_are_neither_rounded_nor_clipped():
    edge = np.repeat([[0.0, 0, 0, 1, 1, 1]], 6, axis=0)
    out = imresize(edge, 2)
    assert out.min() < 0 and out.max() > 1
    assert imresize(edge.astype(np.float16), 2).dtype == np.float16
    # uint8 overshoots too, and saturates.
    assert imresize((edge * 255).astype(np.uint8), 2).max() == 255


def test_integers_are_rounded_after_each_dimension():
    image = noise((40, 56), np.uint16)
    once = np.floor(imresize(image.astype(np.float64), 1 / 2) + 0.5).clip(0, 65535)
    rows = np.floor(imresize(image.astype(np.float64), (20, 56)) + 0.5).clip(0, 65535)
    twice = np.floor(imresize(rows, (20, 28)) + 0.5).clip(0, 65535)
    assert np.array_equal(imresize(image, 1 / 2), twice) and not np.array_equal(once, twice)


def test_the_smaller_scale_goes_first():
    image = noise((40, 40))
    columns_first = imresize(imresize(image, (40, 10)), (20, 10))
    rows_first = imresize(imresize(image, (20, 40)), (20, 10))
    assert np.array_equal(imresize(image, (20, 10)), columns_first) and not np.array_equal(
        columns_first, rows_first
    )


def test_sampling_follows_the_nominal_scale():
    assert imresize(np.arange(10.0)[None], 1 / 4).shape == (1, 3)
    by_scale, by_size = imresize(noise((99, 97)), 0.3), imresize(noise((99, 97)), (30, 30))
    assert by_scale.shape == by_size.shape == (30, 30) and not np.array_equal(by_scale, by_size)


def test_gradients_are_the_transposed_operation():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 7, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    for scale in (1 / 2, 3, (4, 9)):
        assert torch.autograd.gradcheck(
            lambda x, scale=scale: imresize(x, scale, padding="replicate"), x
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype):
    x = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = imresize(x, 1 / 4)
    rows = imresize(x.float(), (10, 40)).to(dtype).float()
    assert out.dtype == dtype and torch.equal(out, imresize(rows, (10, 10)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_types_are_summed_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    half = torch.rand(3, 40, 40, generator=generator).to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    upstream = torch.rand(3, 10, 40, generator=generator).to(dtype)
    (expected,) = torch.autograd.grad(imresize(full, (10, 40)), full, upstream.float())
    (gradient,) = torch.autograd.grad(imresize(half, (10, 40)), half, upstream)
    assert gradient.dtype == dtype and torch.equal(gradient, expected.to(dtype))


def test_a_call_in_inference_mode_leaves_nothing_that_training_refuses():
    x = torch.rand(3, 23, 29, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():  # whose tensors, were they cached, could not serve a backward pass
        expected = imresize(x, 1 / 4)
    x.requires_grad_()
    out = imresize(x, 1 / 4)
    out.sum().backward()
    assert torch.equal(out, expected) and x.grad.abs().sum() > 0


def test_nothing_leaves_the_device():
    for dtype in (torch.uint8, torch.float32):
        out = imresize(torch.empty(2, 3, 64, 48, dtype=dtype, device="meta"), 1 / 4)
        assert out.device.type == "meta" and out.shape == (2, 3, 16, 12) and out.dtype == dtype
    if torch.cuda.is_available():
        image = to_tensor(noise((64, 48, 3)))
        for scale in (1 / 4, 0.3, 3):
            assert torch.equal(imresize(image.cuda(), scale).cpu(), imresize(image, scale))


def test_a_tensor_lets_nan_through_to_its_neighbourhood():
    x = torch.zeros(1, 64, 64)
    x[0, 32, 32] = math.nan
    out = imresize(x, 1 / 4)
    assert out[0, 8, 8].isnan() and out.isnan().sum() == 16


def test_the_input_is_left_alone_whatever_its_memory_layout():
    image = noise((64, 48, 3))
    expected, before = imresize(image, 1 / 4), image.copy()
    frozen = np.asarray(Image.fromarray(image))
    assert not frozen.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch's on arrays that are read-only
        assert np.array_equal(imresize(frozen, 1 / 4), expected)
    sixteen = noise((64, 48), np.uint16)
    assert np.array_equal(imresize(sixteen.astype(">u2"), 1 / 4), imresize(sixteen, 1 / 4))
    assert np.array_equal(imresize(image[::-1, ::-1], 1 / 4), expected[::-1, ::-1])
    assert np.array_equal(imresize(np.asfortranarray(image), 1 / 4), expected)
    assert np.array_equal(
        imresize(noise((80, 80, 3))[3:67, 5:53], 1 / 4),
        imresize(noise((80, 80, 3))[3:67, 5:53].copy(), 1 / 4),
    )
    assert np.array_equal(image, before)
    tensor = to_tensor(image)
    assert (
        not np.shares_memory(imresize(image, 1), image)
        and imresize(tensor, 1).data_ptr() != tensor.data_ptr()
    )
    assert imresize(image, 1 / 4).flags.c_contiguous and imresize(tensor, 1 / 4).is_contiguous()


def peak_memory(call, path):
    """Return the bytes that PyTorch allocates at most during a call; `path` is for a file."""
    call()  # what stays in caches does not count
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    profile.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    totals = [e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]"]
    assert len(totals) > 4
    return max(totals) - min(totals)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_memory_of_the_plain_path(dtype, tmp_path):
    image = noise((1356, 2040, 3), dtype)
    intermediate = np.empty((353, 2040, 3), dtype).nbytes
    peak = peak_memory(lambda: imresize(image, 0.26), tmp_path / "trace.json")
    # One copy of the image in its own type, none in float64.
    assert peak < image.nbytes + 2 * intermediate + 6 * 2**20 < image.size * 8


@pytest.mark.parametrize("size", [(2712, 4080), (2713, 4083)])  # with and without a remainder
def test_memory_of_the_fast_path(size, tmp_path):
    image = noise((*size, 3))
    intermediate = 3 * math.ceil(size[0] / 4) * size[1]
    peak = peak_memory(lambda: imresize(image, 1 / 4), tmp_path / "trace.json")
    assert peak < 2 * intermediate + 6 * 2**20 < image.nbytes  # no copy of it


GOOD = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "scale", "options", "error", "words"),
    [
        ("image.png", 2, {}, TypeError, "str"),
        (Image.new("RGB", (8, 8)), 2, {}, TypeError, "not a NumPy array or PyTorch tensor"),
        (GOOD.astype(np.int64), 2, {}, TypeError, "int64.*uint8"),
        (GOOD.astype(bool), 2, {}, TypeError, "bool"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), 2, {}, TypeError, "int32.*bfloat16"),
        (GOOD[None], 2, {}, ValueError, r"\(1, 8, 8, 3\).*\(H, W, C\)"),
        (GOOD[0, 0], 2, {}, ValueError, r"\(3,\)"),
        (torch.zeros(8, 8), 2, {}, ValueError, r"\(8, 8\).*\(N, C, H, W\)"),
        (GOOD[:0], 2, {}, ValueError, r"\(0, 8, 3\)"),
        (torch.zeros(0, 3, 8, 8), 2, {}, ValueError, r"\(0, 3, 8, 8\)"),
        (np.full((8, 8), np.nan), 2, {}, ValueError, "NaN"),
        (np.array([[1.0, np.nan], [0, 2]]), 2, {}, ValueError, "NaN"),
        (np.array([[1.0, -np.inf]]), 2, {}, ValueError, "infinite"),
        (GOOD, 0, {}, ValueError, "scale is 0.*> 0"),
        (GOOD, -0.5, {}, ValueError, "-0.5"),
        (GOOD, math.nan, {}, ValueError, "nan"),
        (GOOD, math.inf, {}, ValueError, "inf"),
        (GOOD, 1e-9, {}, ValueError, "too small"),
        (GOOD, True, {}, TypeError, "True"),
        (GOOD, "2", {}, TypeError, "'2'"),
        (GOOD, (4.5, 4), {}, TypeError, "4.5.*whole numbers"),
        (GOOD, (4, 0), {}, ValueError, r"\(4, 0\)"),
        (GOOD, (4, 4, 3), {}, ValueError, r"\(4, 4, 3\)"),
        (GOOD, 2, {"kernel": "cubic"}, ValueError, "'cubic'.*bicubic"),
        (GOOD, 2, {"padding": "reflect"}, ValueError, "'reflect'.*symmetric"),
    ],
)
def test_bad_input(image, scale, options, error, words):
    with pytest.raises(error, match=words):
        imresize(image, scale, **options)
