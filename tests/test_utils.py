"""Images as arrays, files never left half-written, tensors, seeds and devices."""

import csv
import random

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import utils


@pytest.fixture
def photo():
    return np.ascontiguousarray(data.astronaut()[100:140, 180:240])  # uint8 (40, 60, 3)


def save(folder, image, name="image.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


# --- reading -------------------------------------------------------------------------------------


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


def test_one_bit_is_black_and_white(tmp_path):
    path = save(tmp_path, Image.fromarray(np.array([[0, 255, 255, 0]], np.uint8)).convert("1"))
    assert utils.read_image(path)[0, :, 1].tolist() == [0, 255, 255, 0]


def test_path_with_spaces_and_chinese_characters(tmp_path, photo):
    path = tmp_path / "照片 一" / "图 1.png"
    utils.write_image(path, photo)
    assert np.array_equal(utils.read_image(str(path)), photo)


# --- writing -------------------------------------------------------------------------------------


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


# --- tensors, seeds, devices ---------------------------------------------------------------------


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


@pytest.mark.parametrize(("platform", "refusals", "works"), [
    ("win32", 3, True), ("win32", 99, False), ("linux", 1, False), ("linux", 0, True),
])  # fmt: skip
def test_on_windows_a_file_that_is_held_is_tried_again(platform, refusals, works, monkeypatch):
    pauses, answers = [], iter(refusals * [PermissionError("held")] + ["done"])
    monkeypatch.setattr(utils.sys, "platform", platform)
    monkeypatch.setattr(utils.time, "sleep", pauses.append)

    def replace(source, target):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return source, target

    if works:
        assert utils.patiently(replace, "a", "b") == ("a", "b")
        assert len(pauses) == refusals
    else:
        with pytest.raises(PermissionError, match="held"):
            utils.patiently(replace, "a", "b")
        assert sum(pauses) == (pytest.approx(2) if platform == "win32" else 0)
