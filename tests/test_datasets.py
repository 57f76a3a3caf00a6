"""Patches, their plan, the store they come from, and whole pairs."""

import functools
import os
import pickle
import random
from itertools import pairwise
from multiprocessing import get_all_start_methods

import numpy as np
import pytest
import torch
from killing import contents, count_lines, run_killed
from torch.utils.data import DataLoader

import datasets
from datasets import PairDataset, PatchDataset, PatchLoader, epoch_plan, open_store, read_list
from utils import write_image, write_rows

SIZES = [(12, 10), (9, 30), (16, 16), (25, 7), (8, 8), (11, 13), (40, 9)]  # LR height and width


@pytest.fixture
def make_list(tmp_path, monkeypatch):
    """make_list(sizes) -> path of a list of images in which a pixel tells its place: HR (y // 4, x // 4, k), LR (y, x, k)."""
    monkeypatch.chdir(tmp_path)

    def make(sizes=SIZES, cut=(0, 0), name="list"):
        rows = []
        for k, (h, w) in enumerate(sizes):
            lr = np.stack(
                np.broadcast_arrays(np.arange(h)[:, None], np.arange(w), k), axis=2
            ).astype(np.uint8)
            hr = lr.repeat(4, axis=0).repeat(4, axis=1)
            hr = np.pad(
                hr, ((0, cut[0]), (0, cut[1]), (0, 0)), constant_values=255
            )  # odd sizes: to be cut off again
            write_image(f"images/{k}_HR.png", hr)
            write_image(f"images/{k}.png", lr)
            rows.append(
                {
                    "hr": f"images/{k}_HR.png",
                    "lr": f"images/{k}.png",
                    "width": hr.shape[1],
                    "height": hr.shape[0],
                }
            )
        write_rows(f"{name}.csv", rows)
        return f"{name}.csv"

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


# ---------------------------------------------------------------------------------------------------------------------
# Plan


def test_an_epoch_has_as_many_patches_of_every_image():
    plan = epoch_plan(SIZES, 7, 100, 0, 0, 3)
    assert np.bincount(plan.image).tolist() == [100] * len(SIZES)
    assert all(len(column) == 700 for column in plan)


def test_all_positions_and_orientations_are_equally_likely():
    plan = epoch_plan([(12, 10)], 6, 14000, 3, 1, 1)
    for values, bins in (
        (
            plan.top * 5 + plan.left,
            7 * 5,
        ),  # 7 x 5 positions: the last row and the last column of the image are reached
        (plan.flip, 8),
        (plan.flip * 7 + plan.top, 8 * 7),
    ):
        counts = np.bincount(values)
        assert len(counts) == bins
        chi_square = ((counts - 14000 / bins) ** 2).sum() / (14000 / bins)
        assert abs(chi_square - (bins - 1)) < 4 * np.sqrt(
            2 * (bins - 1)
        )  # its mean and standard deviation
    assert plan.top.max() == 12 - 6 and plan.left.max() == 10 - 6


def test_position_depends_on_the_size_of_its_own_image():
    plan = epoch_plan(SIZES, 7, 1000, 0, 0, 3)
    for k, (h, w) in enumerate(SIZES):
        assert set(plan.top[plan.image == k]) == set(range(h - 6))
        assert set(plan.left[plan.image == k]) == set(range(w - 6))


@pytest.mark.parametrize(
    "n, distinct", [(1, 1), (2, 1), (2, 2), (7, 3), (7, 6), (7, 7), (40, 20), (100, 64)]
)
def test_neighbours_are_distinct_images_across_rounds_too(n, distinct):
    image = epoch_plan([(8, 8)] * n, 7, 30, 5, 2, distinct).image
    assert all(
        len(set(image[i : i + distinct])) == distinct for i in range(len(image) - distinct + 1)
    )
    assert all(sorted(order) == list(range(n)) for order in image.reshape(30, n))


def test_all_allowed_orders_of_a_round_are_equally_likely():
    rounds = epoch_plan([(8, 8)] * 3, 7, 24001, 0, 0, 2).image.reshape(-1, 3)
    seen = {}
    for before, order in pairwise(rounds):
        places = tuple(before.tolist().index(k) for k in order)
        seen[places] = seen.get(places, 0) + 1
    assert sorted(seen) == [
        (0, 1, 2),
        (0, 2, 1),
        (1, 0, 2),
        (1, 2, 0),
    ]  # all that do not begin with the last image
    assert all(abs(count - 6000) < 4 * np.sqrt(6000) for count in seen.values())


@pytest.mark.parametrize("n", [7, 10, 23, 70, 130])
def test_batches_hold_distinct_images(make_list, n):
    list_file = make_list([(8, 8)] * n)
    for batch_size in {1, 2, 3, n // 3, n // 2, n // 2 + 1, n - 1, n}:
        dataset = PatchDataset(list_file, crop_size=32, patches_per_image=12)
        PatchLoader(dataset, batch_size)
        dataset.set_epoch(1)
        image = dataset.plan.image
        for start in range(0, len(image), batch_size):
            batch = image[start : start + batch_size]
            assert len(set(batch)) == len(batch)


def test_plan_is_a_function_of_seed_and_epoch(make_list):
    def plan(seed, epoch):
        dataset = PatchDataset("list.csv", crop_size=28, seed=seed)
        dataset.set_epoch(epoch)
        return [column.tolist() for column in dataset.plan]

    make_list()
    assert plan(0, 3) == plan(0, 3)
    different = [plan(0, 0), plan(0, 1), plan(1, 0), plan(1, 1)]
    assert all(
        a[column] != b[column]
        for a in different
        for b in different
        if a is not b
        for column in range(4)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Patches


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("cut", [(0, 0), (3, 1)])
def test_patches_are_the_planned_ones(make_list, cache, cut):
    dataset = PatchDataset(make_list(cut=cut), crop_size=28, patches_per_image=40, cache=cache)
    dataset.set_epoch(4)
    lr, hr = map(levels, dataset.__getitems__(range(len(dataset))))
    assert lr.shape == (280, 7, 7, 3) and hr.shape == (280, 28, 28, 3)
    assert set(dataset.plan.flip) == set(range(8))
    for k, (image, top, left, flip) in enumerate(zip(*dataset.plan, strict=True)):
        y, x = np.arange(top, top + 7), np.arange(left, left + 7)
        expected = np.stack([*np.meshgrid(y, x, indexing="ij"), np.full((7, 7), image)], axis=2)
        expected = np.fliplr(expected) if flip in (1, 3, 5, 7) else expected
        expected = np.flipud(expected) if flip in (2, 3, 6, 7) else expected
        expected = np.transpose(expected, (1, 0, 2)) if flip >= 4 else expected
        assert np.array_equal(lr[k], expected)
    # One LR pixel is 4 x 4 HR pixels: HR is cut at the same place and turned alike.
    assert np.array_equal(hr, lr.repeat(4, axis=1).repeat(4, axis=2))


def test_batches_are_float_and_channels_last(make_list):
    dataset = PatchDataset(make_list(), crop_size=28)
    for batch in dataset.__getitems__([0, 1, 2]):
        assert batch.dtype == torch.float32 and batch.is_contiguous(
            memory_format=torch.channels_last
        )
        assert batch.min() >= 0 and batch.max() <= 1
    lr, hr = dataset[1]
    assert lr.shape == (3, 7, 7) and hr.shape == (3, 28, 28) and len(dataset) == 700
    assert torch.equal(lr, dataset.__getitems__([5, 1])[0][1])


def test_white_is_one_and_all_levels_survive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    write_image("lr.png", ramp)
    write_image("hr.png", ramp.repeat(4, axis=0).repeat(4, axis=1))
    write_rows("list.csv", [{"hr": "hr.png", "lr": "lr.png", "width": 64, "height": 64}])
    lr, hr = PatchDataset("list.csv", crop_size=64)[0]
    assert hr.min() == 0 and hr.max() == 1
    assert sorted(lr[0].mul(255).round().ravel().tolist()) == list(range(256))


def test_crop_size_may_grow(make_list):
    dataset = PatchDataset(make_list([(12, 12), (20, 14)]), crop_size=16)
    dataset.crop_size = 48
    dataset.set_epoch(1)
    assert dataset[0][1].shape == (3, 48, 48)
    dataset.crop_size = 52
    with pytest.raises(ValueError, match=r"images/0_HR.png: 48 x 48 .* 52.* smaller crop_size"):
        dataset.set_epoch(2)


@pytest.mark.parametrize("crop_size", [0, -4, 30])
def test_crop_size_is_a_multiple_of_the_scale(make_list, crop_size):
    with pytest.raises(ValueError, match="multiple of 4"):
        PatchDataset(make_list(), crop_size=crop_size)


def test_pickles_without_pixels(make_list):
    dataset = PatchDataset(make_list([(100, 100)] * 8), crop_size=96, patches_per_image=1)
    before = dataset[3]
    data = pickle.dumps(dataset)
    assert len(data) < dataset.offsets[-1] / 100
    assert equal([pickle.loads(data)[3]], [before])


# ---------------------------------------------------------------------------------------------------------------------
# Loader


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_change_nothing(make_list, method):
    if method not in get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    dataset = PatchDataset(make_list(), crop_size=28, patches_per_image=4)
    dataset.set_epoch(1)
    alone = DataLoader(dataset, 5, collate_fn=datasets._same)
    workers = DataLoader(
        dataset, 5, collate_fn=datasets._same, num_workers=2, multiprocessing_context=method
    )
    assert equal(alone, workers)


def test_loader_with_workers_follows_the_epochs(make_list):
    dataset = PatchDataset(make_list(), crop_size=28, patches_per_image=3)
    alone, workers = PatchLoader(dataset, 4), PatchLoader(dataset, 4, num_workers=1)
    for epoch in (0, 1):
        assert equal(alone.epoch(epoch), workers.epoch(epoch))


@pytest.mark.parametrize("crop_size, batch_size", [(28, 4), (16, 32), (8, 1)])
def test_resident_batches_are_bit_for_bit_the_same(make_list, crop_size, batch_size):
    dataset = PatchDataset(make_list(cut=(2, 3)), crop_size=crop_size, patches_per_image=20)
    loaded, resident = (
        PatchLoader(dataset, batch_size),
        PatchLoader(dataset, batch_size, resident=True),
    )
    for epoch in (0, 7):
        assert equal(loaded.epoch(epoch), resident.epoch(epoch))
    assert equal(loaded.epoch(2, start=3), resident.epoch(2, start=3))
    _, hr = next(resident.epoch(0))
    assert hr.is_contiguous(memory_format=torch.channels_last) and hr.dtype == torch.float32
    uncached = PatchDataset(
        dataset.list_file, crop_size=crop_size, patches_per_image=20, cache=False
    )
    assert equal(resident.epoch(1), PatchLoader(uncached, batch_size, resident=True).epoch(1))


@pytest.mark.parametrize("resident", [False, True])
def test_an_epoch_resumes_at_any_batch(make_list, resident):
    loader = PatchLoader(
        PatchDataset(make_list(), crop_size=28, patches_per_image=5), 4, resident=resident
    )
    whole = list(loader.epoch(3))
    assert (
        len(whole) == len(loader) == 9 and len(whole[-1][0]) == 3
    )  # 35 patches: the last batch is smaller
    for start in range(10):
        assert equal(loader.epoch(3, start=start), whole[start:])
    assert not equal(loader.epoch(4), whole)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_batch(make_list, resident, world_size):
    def loader(rank, world_size):
        dataset = PatchDataset("list.csv", crop_size=28, patches_per_image=5)  # 35 patches
        return PatchLoader(dataset, 6, rank=rank, world_size=world_size, resident=resident)

    make_list()
    alone = loader(0, 1)
    shares = [list(loader(rank, world_size).epoch(2)) for rank in range(world_size)]
    assert {len(share) for share in shares} == {len(loader(0, world_size))}
    seen = 0
    for batch, *parts in zip(alone.epoch(2), *shares, strict=True):
        whole = (
            len(batch[0]) // world_size * world_size
        )  # every process gets equally many of the last batch
        seen += whole
        for side in (0, 1):
            merged = torch.stack([part[side] for part in parts], dim=1).flatten(0, 1)
            assert torch.equal(merged, batch[side][:whole])
    assert seen == 35 // world_size * world_size


@pytest.mark.parametrize(
    "batch_size, rank, world_size", [(0, 0, 1), (3, 0, 2), (4, 2, 2), (4, -1, 2)]
)
def test_loader_rejects_shares_that_do_not_exist(make_list, batch_size, rank, world_size):
    with pytest.raises(ValueError, match=r"batch_size|rank"):
        PatchLoader(
            PatchDataset(make_list(), crop_size=28), batch_size, rank=rank, world_size=world_size
        )


def test_nothing_is_resident_on_the_cpu_unless_asked(make_list, capsys):
    assert PatchLoader(PatchDataset(make_list(), crop_size=28), 4)._pixels is None
    assert "kept there" not in capsys.readouterr().out


@pytest.mark.parametrize("spare, resident", [(1000, True), (-1000, False)])
def test_pixels_go_to_a_gpu_with_room_for_them(make_list, monkeypatch, capsys, spare, resident):
    dataset = PatchDataset(make_list(), crop_size=28)
    free = int(dataset.offsets[-1]) + datasets.SPARE_DEVICE_MEMORY + spare
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    monkeypatch.setattr(PatchLoader, "_upload", lambda self: "uploaded")
    assert PatchLoader(dataset, 4, device="cuda")._pixels == ("uploaded" if resident else None)
    out = capsys.readouterr().out.splitlines()[-1]
    assert ("kept there" in out) == resident and ("loaded from the store" in out) != resident


# ---------------------------------------------------------------------------------------------------------------------
# Store


def test_store_is_reused_and_never_stale(make_list, monkeypatch):
    pairs = read_list(make_list())
    store = open_store(pairs)
    decoded = []
    read_pair = datasets.read_pair
    monkeypatch.setattr(
        datasets,
        "read_pair",
        lambda pair, scale: decoded.append(pair.name) or read_pair(pair, scale),
    )
    assert open_store(pairs) == store and not decoded

    lr = read_pair(pairs[2])[0]
    write_image(pairs[2].lr, 255 - lr)  # the same size in pixels, other content
    other = open_store(pairs)
    assert other != store and len(decoded) == len(pairs)
    assert other.read_bytes() != store.read_bytes()
    assert open_store(pairs[:-1]) not in (store, other)


@pytest.mark.parametrize("damage", ["cut", "longer"])
def test_store_of_the_wrong_size_is_made_anew(make_list, damage):
    pairs = read_list(make_list())
    store = open_store(pairs)
    pixels = store.read_bytes()
    store.write_bytes(pixels[:-1] if damage == "cut" else pixels + b"x")
    assert open_store(pairs).read_bytes() == pixels


def test_half_made_store_is_completed_and_damaged_parts_are_decoded_again(make_list, monkeypatch):
    pairs = read_list(make_list())
    whole = open_store(pairs).read_bytes()

    folder = open_store(pairs, folder="other").parent
    (folder / "pixels.bin").rename(folder / "pixels.partial")
    offsets = datasets._offsets(pairs, 4)
    with open(folder / "pixels.partial", "r+b") as file:
        file.write(b"damaged")  # image 0, though the journal says that it is done
    crcs = [
        datasets.zlib.crc32(whole[offsets[2 * i] : offsets[2 * i + 2]]) for i in range(len(pairs))
    ]
    journal = "".join(f"{i} {crcs[i]:08x}\n" for i in (0, 1, 4))
    (folder / "journal.txt").write_text(journal + f"5 {crcs[5]:08x}")  # the last line is not whole

    decoded = []
    read_pair = datasets.read_pair
    monkeypatch.setattr(
        datasets,
        "read_pair",
        lambda pair, scale: decoded.append(pair.name) or read_pair(pair, scale),
    )
    assert open_store(pairs, folder="other").read_bytes() == whole
    assert sorted(decoded) == ["0", "2", "3", "5", "6"]


def check_kills(make_list, kills, seed):
    pairs = read_list(make_list([(8 + k, 9) for k in range(12)]))
    open_store(pairs, folder="undisturbed")
    expected = contents(datasets.Path("undisturbed"))
    lines = count_lines(lambda: open_store(pairs, folder="counted"), [datasets])
    moments = random.Random(seed)
    for k in range(kills):
        folder = f"killed{k}"
        decode = functools.partial(open_store, pairs, folder=folder)
        while run_killed(decode, [datasets], moments.randint(1, lines)):
            pass  # killed again and again, until it comes through
        decode()
        assert contents(datasets.Path(folder)) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_while_decoding_ends_in_the_same_bytes(make_list):
    check_kills(make_list, 3, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_while_decoding_at_many_moments(make_list):
    check_kills(make_list, 20, seed=1)


def test_full_disk_is_told_before_decoding(make_list, monkeypatch):
    pairs = read_list(make_list())
    usage = datasets.shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(datasets.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"need .* GB .* left.*cache=False"):
        open_store(pairs)


def test_says_how_much_it_decodes(make_list, capsys):
    PatchDataset(make_list([(100, 200)] * 5), crop_size=96)
    assert "Decoding 5 images once into data/cache/" in (out := capsys.readouterr().out)
    assert f"{5 * 100 * 200 * 3 * 17 / 1e9:.2f} GB" in out


# ---------------------------------------------------------------------------------------------------------------------
# Lists and pairs


def test_pairs_are_whole_images_cut_to_whole_lr_pixels(make_list):
    pairs = PairDataset(make_list(cut=(3, 2)))
    assert len(pairs) == len(SIZES)
    for k, (name, lr, hr) in enumerate(pairs):
        assert name == str(k) and lr.shape == (*SIZES[k], 3) and lr.dtype == hr.dtype == np.uint8
        assert np.array_equal(hr, lr.repeat(4, axis=0).repeat(4, axis=1))


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "no such list.*create_data_lists.py"),
        ("", "has the columns.*expected.*create_data_lists.py"),
        ("hr,lr,width,height\n", "lists no images"),
        ("hr,lr\na,b\n", "has the columns"),
        ("hr,lr,width,height\nimages/0_HR.png,images/0.png,40\n", "line 2"),
        ("hr,lr,width,height\nimages/0_HR.png,images/0.png,40,48,1\n", "line 2"),
        ("hr,lr,width,height\nimages/0_HR.png,images/0.png,40,many\n", "line 2"),
        ("hr,lr,width,height\nimages/0_HR.png,,40,48\n", "line 2"),
        (
            "hr,lr,width,height\nimages/9_HR.png,images/0.png,40,48\n",
            "images/9_HR.png: no such file.*bad.csv",
        ),
        (
            "hr,lr,width,height\nimages/0_HR.png,images/9.png,40,48\n",
            "images/9.png: no such file.*bad.csv",
        ),
    ],
)
@pytest.mark.parametrize("dataset", [PatchDataset, PairDataset])
def test_bad_lists_are_explained(make_list, dataset, text, message):
    make_list()
    if text is not None:
        datasets.Path("bad.csv").write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        dataset("bad.csv")


def test_changed_image_is_explained(make_list):
    list_file = make_list()
    write_image("images/3.png", np.zeros((5, 5, 3), np.uint8))
    message = "images/3.png: has 5 x 5 pixels, its list says 7 x 25.*create_data_lists.py"
    with pytest.raises(ValueError, match=message):
        PatchDataset(list_file, crop_size=28)
    with pytest.raises(ValueError, match=message):
        PairDataset(list_file)[3]


def test_damaged_image_is_named(make_list):
    list_file = make_list()
    path = datasets.Path("images/2_HR.png")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match="2_HR"):
        PatchDataset(list_file, crop_size=28)


def test_list_edited_in_a_spreadsheet(make_list):
    text = datasets.Path(make_list()).read_text()
    datasets.Path("edited.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_list("edited.csv") == read_list("list.csv")
