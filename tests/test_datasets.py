"""Lists, pairs, the pixel store, the plan of an epoch, its patches and their batches."""

import multiprocessing
import os
import random
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import count_lines, run_killed
from PIL import Image

import datasets
from datasets import PairDataset, PatchDataset, PatchLoader, read_list, read_pair
from tools import pixel_store
from tools.pixel_store import open_store
from utils import write_image, write_rows

SIZES = [(12, 10), (9, 30), (16, 16), (25, 7), (8, 8), (11, 13), (40, 9)]  # LR height and width
NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forked processes")


@pytest.fixture
def make_list(tmp_path, monkeypatch):
    """make_list(sizes) -> path of a list of images of random pixels, HR independent of LR."""
    monkeypatch.chdir(tmp_path)

    def make(sizes=SIZES, extra=(0, 0), folder="images"):
        pixels = np.random.default_rng(0)
        rows = []
        for k, (h, w) in enumerate(sizes):
            height, width = 4 * h + extra[0], 4 * w + extra[1]
            hr, lr = f"{folder}/{k}_HR.png", f"{folder}/{k}.png"
            write_image(hr, pixels.integers(0, 256, (height, width, 3), dtype=np.uint8))
            write_image(lr, pixels.integers(0, 256, (h, w, 3), dtype=np.uint8))
            rows.append({"hr": hr, "lr": lr, "width": width, "height": height})
        write_rows(f"{folder}.csv", rows)
        return f"{folder}.csv"

    return make


def levels(images):
    """Float batch -> uint8 levels, channels last: what was in the files."""
    return images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def equal(batches, others):
    batches, others = list(batches), list(others)
    return len(batches) == len(others) and all(
        torch.equal(a, b)
        for one, two in zip(batches, others, strict=True)
        for a, b in zip(one, two, strict=True)
    )


# --- plan ----------------------------------------------------------------------------------------


def test_every_round_of_an_epoch_visits_every_image_once(make_list):
    dataset = PatchDataset(make_list(), crop_size=28)
    rounds = dataset.plan(0)[:, 0].reshape(100, len(SIZES)).tolist()
    assert all(sorted(order) == list(range(len(SIZES))) for order in rounds)
    assert len(dataset) == 700 and len({tuple(order) for order in rounds}) > 90


def test_all_positions_and_orientations_are_equally_likely(make_list):
    dataset = PatchDataset(make_list([(12, 10)]), crop_size=24, patches_per_image=14000, seed=3)
    _, top, left, flip = dataset.plan(1).T
    # 7 x 5 positions: the last row and the last column of the image are reached
    for values, bins in ((top * 5 + left, 7 * 5), (flip, 8), (flip * 7 + top, 8 * 7)):
        counts = np.bincount(values)
        assert len(counts) == bins
        chi_square = ((counts - 14000 / bins) ** 2).sum() / (14000 / bins)
        # its mean and standard deviation
        assert abs(chi_square - (bins - 1)) < 4 * np.sqrt(2 * (bins - 1))
    assert top.max() == 12 - 6 and left.max() == 10 - 6


def test_all_orders_of_a_round_are_equally_likely(make_list):
    dataset = PatchDataset(make_list([(8, 8)] * 3), crop_size=28, patches_per_image=6000)
    orders, counts = np.unique(dataset.plan(0)[:, 0].reshape(-1, 3), axis=0, return_counts=True)
    assert len(orders) == 6
    assert (abs(counts - 1000) < 4 * np.sqrt(1000)).all()


def test_position_depends_on_the_size_of_its_own_image(make_list):
    dataset = PatchDataset(make_list(), crop_size=28, patches_per_image=1000)
    image, top, left, _ = dataset.plan(0).T
    for k, (h, w) in enumerate(SIZES):
        assert set(top[image == k]) == set(range(h - 6))
        assert set(left[image == k]) == set(range(w - 6))


def test_plan_is_a_function_of_seed_and_epoch(make_list):
    list_file = make_list()

    def plan(seed, epoch):
        return PatchDataset(list_file, crop_size=28, seed=seed).plan(epoch)

    assert np.array_equal(plan(0, 3), plan(0, 3))
    different = [plan(0, 0), plan(0, 1), plan(1, 0), plan(1, 1)]
    for k, a in enumerate(different):
        for b in different[:k]:
            assert (a != b).any(axis=0).all()


# --- patches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [(0, 0), (3, 1)])
def test_patches_are_crops_of_the_files_flipped_as_planned(make_list, extra):
    dataset = PatchDataset(make_list(extra=extra), crop_size=28, patches_per_image=40)
    plan = dataset.plan(4)
    assert set(plan[:, 3]) == set(range(8))
    for scale, suffix in ((1, ".png"), (4, "_HR.png")):
        patches = levels(dataset.patches(plan, dataset.pixels, scale))
        for patch, (image, top, left, flip) in zip(
            patches, plan * [1, scale, scale, 1], strict=True
        ):
            file = np.array(Image.open(f"images/{image}{suffix}"))
            expected = file[top : top + 7 * scale, left : left + 7 * scale]
            expected = np.fliplr(expected) if flip in (1, 3, 5, 7) else expected
            expected = np.flipud(expected) if flip in (2, 3, 6, 7) else expected
            expected = np.transpose(expected, (1, 0, 2)) if flip >= 4 else expected
            assert np.array_equal(patch, expected)


def test_items_are_the_patches_of_epoch_0(make_list):
    dataset = PatchDataset(make_list(), crop_size=28, patches_per_image=2)
    items = list(dataset)
    assert len(items) == len(dataset) == 14
    assert items[0][0].shape == (3, 7, 7) and items[0][1].shape == (3, 28, 28)
    batches = PatchLoader(dataset, 1).epoch(0)
    assert equal(items, [(lr[0], hr[0]) for lr, hr in batches])


@pytest.mark.skipif(os.name == "nt", reason="needs sparse files")
def test_patches_beyond_two_billion_pixels_are_the_same(make_list):
    dataset = PatchDataset(make_list(), crop_size=28, patches_per_image=5)
    plan = dataset.plan(0)
    expected = [dataset.patches(plan, dataset.pixels, scale) for scale in (1, 4)]
    with open("large", "wb") as file:  # a hole, then the pixels
        file.seek(3 * 2**31)
        file.write(dataset.pixels.numpy().tobytes())
    size = os.stat("large").st_size
    pixels = torch.from_file("large", shared=True, size=size, dtype=torch.uint8).view(-1, 3)
    dataset.starts = {scale: start + 2**31 for scale, start in dataset.starts.items()}
    assert equal([expected], [[dataset.patches(plan, pixels, scale) for scale in (1, 4)]])


def test_white_is_one_and_all_levels_survive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    write_image("lr.png", ramp)
    write_image("hr.png", ramp.repeat(4, axis=0).repeat(4, axis=1))
    write_rows("list.csv", [{"hr": "hr.png", "lr": "lr.png", "width": 64, "height": 64}])
    lr, hr = PatchDataset("list.csv", crop_size=64)[0]
    assert hr.min() == 0 and hr.max() == 1
    assert sorted(lr[0].mul(255).round().ravel().tolist()) == list(range(256))


@pytest.mark.parametrize("crop_size", [0, -4, 30])
def test_crop_size_is_a_multiple_of_the_scale(make_list, crop_size):
    with pytest.raises(ValueError, match="multiple of 4"):
        PatchDataset(make_list(), crop_size=crop_size)


def test_an_image_smaller_than_the_crop_is_named(make_list):
    message = r"images/1_HR.png: 56 x 80 pixels .* patches of 60; take a smaller crop_size"
    with pytest.raises(ValueError, match=message):
        PatchDataset(make_list([(20, 15), (20, 14)]), crop_size=60)


# --- batches -------------------------------------------------------------------------------------


def test_batches_are_float_and_channels_last(make_list):
    loader = PatchLoader(PatchDataset(make_list(), crop_size=28), 16)
    lr, hr = next(loader.epoch(0))
    assert lr.shape == (16, 3, 7, 7) and hr.shape == (16, 3, 28, 28)
    for batch in (lr, hr):
        assert batch.dtype == torch.float32 and batch.min() >= 0 and batch.max() <= 1
        assert batch.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_resumes_at_any_batch(make_list):
    loader = PatchLoader(PatchDataset(make_list(), crop_size=28, patches_per_image=5), 4)
    whole = list(loader.epoch(3))
    assert len(whole) == len(loader) == 9
    assert len(whole[-1][0]) == 3  # 35 patches: the last batch is smaller
    for start in range(10):
        assert equal(loader.epoch(3, start=start), whole[start:])
    assert not equal(loader.epoch(4), whole)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_together_train_on_what_one_would(make_list, world_size):
    dataset = PatchDataset(make_list(), crop_size=28, patches_per_image=5)  # 35 patches
    alone = PatchLoader(dataset, 6)
    loaders = [PatchLoader(dataset, 6, rank=k, world_size=world_size) for k in range(world_size)]
    shares = [list(loader.epoch(2)) for loader in loaders]
    assert {len(share) for share in shares} == {len(loader) for loader in loaders}
    seen = 0
    for batch, *parts in zip(alone.epoch(2), *shares, strict=True):
        # every process gets equally many of the last batch
        whole = len(batch[0]) // world_size * world_size
        seen += whole
        for side in (0, 1):
            merged = torch.stack([part[side] for part in parts], dim=1).flatten(0, 1)
            assert torch.equal(merged, batch[side][:whole])
    assert seen == 35 // world_size * world_size


@pytest.mark.parametrize("batch_size, world_size", [(0, 1), (3, 2), (-2, 2)])
def test_batch_sizes_that_cannot_be_shared_are_rejected(make_list, batch_size, world_size):
    dataset = PatchDataset(make_list(), crop_size=28)
    with pytest.raises(ValueError, match=f"multiple of {world_size}, got {batch_size}"):
        PatchLoader(dataset, batch_size, world_size=world_size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fits", [True, False])
def test_a_gpu_gets_the_same_batches_as_the_cpu(make_list, monkeypatch, capsys, fits):
    monkeypatch.setattr(datasets, "SPARE_GPU_MEMORY", 0 if fits else 2**60)
    dataset = PatchDataset(make_list(), crop_size=28, patches_per_image=5)
    loader = PatchLoader(dataset, 4, device="cuda")
    batches = list(loader.epoch(1))
    assert ("they are kept there" in capsys.readouterr().out) == fits == loader.pixels.is_cuda
    for batch, expected in zip(batches, PatchLoader(dataset, 4).epoch(1), strict=True):
        for a, b in zip(batch, expected, strict=True):
            assert a.is_cuda and a.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-7)  # x / 255 rounds differently


# --- store ---------------------------------------------------------------------------------------


def whole_pixels(pairs):
    """What `pixels.bin` shall hold, decoded by Pillow."""
    blocks = []
    for pair in pairs:
        hr, lr = np.array(Image.open(pair.hr)), np.array(Image.open(pair.lr))
        blocks += [hr[: 4 * len(lr), : 4 * lr.shape[1]].tobytes(), lr.tobytes()]
    return b"".join(blocks)


def open_counted(pairs, cache="cache"):
    """(pixels as bytes, checksum, names of the pairs that were decoded)."""
    decoded = []

    def read(pair):
        decoded.append(pair.name)
        return read_pair(pair)

    sizes = [3 * 17 * (pair.height // 4) * (pair.width // 4) for pair in pairs]
    pixels, checksum = open_store(Path(cache), pairs, sizes, read)
    return pixels.numpy().tobytes(), checksum, sorted(decoded)


def folders(cache="cache"):
    return list(Path(cache).iterdir())


def test_nothing_is_decoded_before_pixels_are_asked_for(make_list):
    dataset = PatchDataset(make_list(extra=(2, 3)), crop_size=28, cache="elsewhere")
    dataset.plan(0)
    assert len(PatchLoader(dataset, 4)) == 175
    assert not Path("elsewhere").exists()
    assert dataset.pixels.numpy().tobytes() == whole_pixels(dataset.pairs)
    assert Path("elsewhere").exists() and not Path("data").exists()


def test_a_whole_store_is_opened_without_decoding(make_list):
    pairs = read_list(make_list())
    pixels, checksum, decoded = open_counted(pairs)
    assert pixels == whole_pixels(pairs) and decoded == list("0123456")
    [folder] = folders()
    lines = (folder / "checksums.txt").read_text()
    assert open_counted(pairs) == (pixels, checksum, [])
    assert (folder / "checksums.txt").read_text() == lines


def test_a_changed_file_or_list_gets_a_store_of_its_own(make_list):
    pairs = read_list(make_list())
    open_counted(pairs)
    write_image(pairs[2].lr, 255 - read_pair(pairs[2])[0])  # the same size in pixels
    pixels, _, decoded = open_counted(pairs)
    assert pixels == whole_pixels(pairs) and decoded == list("0123456") and len(folders()) == 2
    open_counted(pairs[:-1])
    assert len(folders()) == 3


def test_checksum_identifies_pixels_not_paths(make_list):
    here, there = (PatchDataset(make_list(folder=name), crop_size=28) for name in ("one", "two"))
    assert here.checksum == there.checksum and re.fullmatch("[0-9a-f]{16}", here.checksum)
    assert len(folders("data/cache")) == 2
    image = np.array(Image.open("two/6.png"))
    image[-1, -1, -1] ^= 1
    write_image("two/6.png", image)
    assert PatchDataset("two.csv", crop_size=28).checksum != here.checksum


@pytest.mark.parametrize("place", [0, 5000, -1])
def test_a_flipped_byte_in_the_store_is_noticed_and_repaired(make_list, place):
    pairs = read_list(make_list())
    pixels, checksum, _ = open_counted(pairs)
    [folder] = folders()
    damaged = bytearray(pixels)
    damaged[place] ^= 1
    (folder / "pixels.bin").write_bytes(damaged)
    ends = np.cumsum([3 * 17 * h * w for h, w in SIZES])
    image = str(np.searchsorted(ends, place % len(pixels), side="right"))
    with pytest.warns(UserWarning, match=f"images/{image}_HR.png is damaged"):
        assert open_counted(pairs) == (pixels, checksum, [image])
    assert open_counted(pairs)[2] == []


@pytest.mark.slow
def test_none_of_250_changed_bytes_in_the_store_is_trained_on(make_list, recwarn):
    pairs, random_bytes = read_list(make_list()), random.Random(0)
    whole = open_counted(pairs)[:2]
    [folder] = folders()
    for _ in range(250):
        path = folder / random_bytes.choice(["pixels.bin", "pixels.bin", "checksums.txt"])
        damaged = bytearray(path.read_bytes())
        damaged[random_bytes.randrange(len(damaged))] ^= random_bytes.randrange(1, 256)
        path.write_bytes(damaged)
        assert open_counted(pairs)[:2] == whole


def test_a_store_of_the_wrong_size_is_repaired(make_list):
    pairs = read_list(make_list())
    pixels, *_ = open_counted(pairs)
    [folder] = folders()
    (folder / "pixels.bin").write_bytes(pixels[:-1])
    with pytest.warns(UserWarning, match="images/6_HR.png is damaged"):
        assert open_counted(pairs)[0] == pixels
    (folder / "pixels.bin").write_bytes(pixels + b"x")
    assert open_counted(pairs)[0] == pixels


def test_only_what_an_interrupted_run_left_out_is_decoded(make_list, recwarn):
    pairs = read_list(make_list())
    pixels, checksum, _ = open_counted(pairs)
    [folder] = folders()
    lines = (folder / "checksums.txt").read_text().splitlines(keepends=True)
    assert [line.split()[0] for line in lines] == list("0123456")
    # image 5's line is not whole, and the file is as long as its images need
    (folder / "checksums.txt").write_text("".join(lines[k] for k in (0, 4, 1)) + lines[5][:6])
    (folder / "pixels.bin").write_bytes(pixels[: sum(3 * 17 * h * w for h, w in SIZES[:5])])
    assert open_counted(pairs) == (pixels, checksum, ["2", "3", "5", "6"])
    assert open_counted(pairs)[:2] == (pixels, checksum)
    assert not recwarn  # nothing is called damaged


def check_kills(make_list, stores, seed):
    pairs = read_list(make_list([(8 + k, 9) for k in range(12)]))
    lines = count_lines(lambda: open_counted(pairs, "counted"), [pixel_store])
    checksum = open_counted(pairs, "counted")[1]
    moments = random.Random(seed)
    for k in range(stores):
        for _ in range(5):  # killed again and again, unless it comes through
            moment = moments.randint(1, lines)
            run_killed(partial(open_counted, pairs, f"killed{k}"), [pixel_store], moment)
        assert open_counted(pairs, f"killed{k}")[:2] == (whole_pixels(pairs), checksum)
        assert open_counted(pairs, f"killed{k}")[2] == []


@NEEDS_FORK
def test_killed_while_decoding_ends_in_the_same_bytes(make_list):
    check_kills(make_list, 3, seed=0)


@pytest.mark.slow
@NEEDS_FORK
def test_killed_while_decoding_at_many_moments(make_list):
    check_kills(make_list, 20, seed=1)


@NEEDS_FORK
def test_of_several_processes_one_decodes(make_list):
    pairs = read_list(make_list())
    fork = multiprocessing.get_context("fork")
    decoded = fork.Queue()
    processes = [
        fork.Process(target=lambda: [decoded.put(name) for name in open_counted(pairs)[2]])
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    names = sorted(decoded.get() for _ in pairs)
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes) and decoded.empty()
    assert names == list("0123456") and open_counted(pairs)[0] == whole_pixels(pairs)


def test_a_full_disk_is_told_before_decoding(make_list, monkeypatch, capsys):
    dataset = PatchDataset(make_list([(100, 200)] * 5), crop_size=96)
    usage = shutil.disk_usage(".")._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"0\.01 GB, the disk has 0\.00 GB left; delete folders in"):
        dataset[0]
    assert "Decoding 5 images once into data/cache/" in capsys.readouterr().out


# --- lists and pairs -----------------------------------------------------------------------------


def test_pairs_are_whole_images_cut_to_whole_lr_pixels(make_list):
    pairs = PairDataset(make_list(extra=(3, 2)))
    assert len(pairs) == len(SIZES)
    for k, (name, lr, hr) in enumerate(pairs):
        assert name == str(k) and lr.dtype == hr.dtype == np.uint8
        assert np.array_equal(lr, np.array(Image.open(f"images/{k}.png")))
        assert np.array_equal(hr, np.array(Image.open(f"images/{k}_HR.png"))[:-3, :-2])


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "no such list.*create_data_lists.py"),
        ("", "lists no images.*create_data_lists.py"),
        ("hr,lr,width,height\n", "lists no images"),
        ("hr,lr\na,b\n", "line 2: expected the columns hr, lr .*create_data_lists.py"),
        ("hr,lr,width,height\nimages/0_HR.png,images/0.png,40\n", "line 2: expected"),
        ("hr,lr,width,height\nimages/0_HR.png,images/0.png,40,many\n", "line 2: expected"),
        ("hr,lr,width,height\nimages/9_HR.png,images/0.png,40,48\n", "9_HR.png: no such.*bad.csv"),
        ("hr,lr,width,height\nimages/0_HR.png,images/9.png,40,48\n", "9.png: no such.*bad.csv"),
        ("hr,lr,width,height\nimages/0_HR.png,,40,48\n", "no such file, though bad.csv"),
    ],
)
@pytest.mark.parametrize("dataset", [PatchDataset, PairDataset])
def test_bad_lists_are_explained(make_list, dataset, text, message):
    make_list()
    if text is not None:
        Path("bad.csv").write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        dataset("bad.csv")


def test_a_changed_image_is_explained(make_list):
    list_file = make_list()
    write_image("images/3.png", np.zeros((5, 5, 3), np.uint8))
    message = "images/3.png: has 5 x 5 pixels, its list says 7 x 25.*create_data_lists.py"
    with pytest.raises(ValueError, match=message):
        PatchDataset(list_file, crop_size=28)[0]
    with pytest.raises(ValueError, match=message):
        PairDataset(list_file)[3]


def test_a_damaged_image_is_named(make_list):
    list_file = make_list()
    path = Path("images/2_HR.png")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match="2_HR"):
        PatchDataset(list_file, crop_size=28)[0]


def test_a_list_edited_in_a_spreadsheet_is_read(make_list):
    text = Path(make_list()).read_text()
    Path("edited.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_list("edited.csv") == read_list("images.csv")


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "utf-16"])
def test_a_list_that_a_spreadsheet_saved_in_another_encoding_is_explained(make_list, encoding):
    text = Path(make_list()).read_text().replace("0_HR", "0_ü_HR")
    Path("edited.csv").write_bytes(text.encode(encoding))
    message = 'edited.csv: is not UTF-8.*"CSV UTF-8".*python create_data_lists.py'
    with pytest.raises(ValueError, match=message):
        read_list("edited.csv")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",", ";").encode(),  # spreadsheets of half of Europe
        lambda text: text.replace(",", "\t").encode(),
        lambda text: text.encode("utf-16-le"),  # without its mark: NUL beside each letter
        lambda text: text.replace("0.png", '"' + "x" * 200000).encode(),  # csv.Error
    ],
)
def test_a_list_with_other_separators_is_explained(make_list, change):
    Path("edited.csv").write_bytes(change(Path(make_list()).read_text()))
    with pytest.raises(ValueError, match=r"edited.csv, line .*expected the columns.*by commas"):
        read_list("edited.csv")


def test_the_shared_images_are_a_list(images):
    dataset = PatchDataset(images, crop_size=16, patches_per_image=4, cache=images.parent / "cache")
    lr, hr = next(PatchLoader(dataset, 16).epoch(0))
    # LR is the mean of 4 x 4 HR pixels, rounded.
    assert (torch.nn.functional.avg_pool2d(hr, 4) - lr).abs().max() < 0.6 / 255
