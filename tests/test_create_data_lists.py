"""Which pairs are listed, which are not and why, LR images made where there are none, and scikit-image's photographs."""

import functools
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from killing import contents, count_lines, run_killed
from PIL import Image

import create_data_lists as lists
from create_data_lists import create_data_lists, embedded_photographs, find_set, main, natural_order
from datasets import PairDataset, read_list
from imresize import imresize
from utils import read_image, write_image


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(height=100, width=120, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_pair(hr, lr, height=100, width=120):
    write_image(hr, picture(height, width))
    write_image(lr, picture(height // 4, width // 4))


def names(table, name):
    row = next(row for row in table if row["set"] == name)
    return [pair.name for pair in read_list(row["list"])], {
        Path(k).name: v for k, v in row["skipped"].items()
    }


def quiet(*arguments, **keywords):
    return create_data_lists(*arguments, progress=False, **keywords)


# ---------------------------------------------------------------------------------------------------------------------
# Finding sets and pairs


def test_official_layouts_are_found():
    for k in ("0001", "0002", "0010"):
        make_pair(f"data/DIV2K_train_HR/{k}.png", f"data/DIV2K_train_LR_bicubic/X4/{k}x4.png")
    make_pair("data/DIV2K_valid_HR/0801.png", "data/DIV2K_valid_LR_bicubic/X4/0801x4.png")
    make_pair("data/Set5/HR/baby.png", "data/Set5/LR/baby.png")
    for k in (1, 2, 10):
        make_pair(f"data/Urban100/img_{k}_SRF_4_HR.png", f"data/Urban100/img_{k}_SRF_4_LR.png")
    make_pair("data/photos_HR/a.png", "data/photos_LR_bicubic/X4/ax4.png")
    Path("data/cache/0123").mkdir(parents=True)
    Path("data/.ipynb_checkpoints").mkdir()

    table = quiet()
    assert {row["set"]: row["images"] for row in table} == {
        "DIV2K_valid": 1,
        "Set5": 1,
        "Urban100": 3,
        "photos": 1,
        "train": 3,
        "valid": 1,
    }
    assert not any(row["skipped"] for row in table)
    text = Path("data/lists/train.csv").read_text().splitlines()
    assert text[0] == "hr,lr,width,height"
    assert (
        text[1] == "data/DIV2K_train_HR/0001.png,data/DIV2K_train_LR_bicubic/X4/0001x4.png,120,100"
    )
    assert names(table, "Urban100")[0] == [
        "img_1_SRF_4",
        "img_2_SRF_4",
        "img_10_SRF_4",
    ]  # natural order
    assert sorted(os.listdir("data/lists")) == sorted(f"{row['set']}.csv" for row in table)


def test_trains_on_photos_and_validates_on_set5_where_div2k_is_absent():
    make_pair("data/photos_HR/a.png", "data/photos_LR_bicubic/X4/ax4.png")
    make_pair("data/Set5/HR/baby.png", "data/Set5/LR/baby.png")
    table = {row["set"]: row["folder"] for row in quiet()}
    assert table == {"train": "data/photos_HR", "valid": "data/Set5/HR", "Set5": "data/Set5/HR"}


def test_named_folders():
    make_pair("data/photos_HR/a.png", "data/photos_LR_bicubic/X4/ax4.png")
    make_pair("data/Set5/HR/baby.png", "data/Set5/LR/baby.png")
    make_pair("mine/one_HR.png", "mine/one_LR.png")
    assert [row["set"] for row in quiet(folders=["mine", "data/Set5"])] == ["mine", "Set5"]
    assert {row["set"]: row["folder"] for row in quiet(train="mine")}["train"] == "mine"
    assert {row["set"] for row in quiet(train="data/photos_HR")} == {"Set5", "train", "valid"}
    assert {row["set"]: row["folder"] for row in quiet(valid="mine", out="else")}["valid"] == "mine"
    assert read_list("else/valid.csv")[0].hr == "mine/one_HR.png"


@pytest.mark.parametrize(
    "folder, here, name",
    [
        ("flat", ".", "flat"),
        ("set/HR", ".", "set"),
        ("set", ".", "set"),
        ("mine_HR", ".", "mine"),
        (".", "mine_HR", "mine"),
    ],
)
def test_a_folder_and_its_set(monkeypatch, folder, here, name):
    for path in ("flat/x_HR.png", "set/HR/x.png", "mine_HR/x.png"):
        write_image(path, picture(8, 8))
    monkeypatch.chdir(here)
    assert find_set(folder).name == name
    assert {path.name for path in find_set(folder).hr_folder.iterdir()} <= {"x.png", "x_HR.png"}


def test_lists_of_images_elsewhere_have_relative_paths(monkeypatch):
    make_pair("pictures/set/HR/a.png", "pictures/set/LR/a.png")
    Path("project").mkdir()
    monkeypatch.chdir("project")
    quiet(folders=[Path("../pictures/set").absolute()])
    assert read_list("data/lists/set.csv")[0].hr == "../pictures/set/HR/a.png"


def test_natural_order():
    ordered = [
        "2.png",
        "10.png",
        "a.png",
        "img1.png",
        "img01.png",
        "img2.png",
        "img10.png",
        "img10b.png",
    ]
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert [name for name in sorted(shuffled, key=natural_order) if "01" not in name] == [
        name for name in ordered if "01" not in name
    ]


# ---------------------------------------------------------------------------------------------------------------------
# What is left out, and why


def test_what_cannot_be_used_is_listed_with_its_reason():
    for name in ("good", "lr_of_other_size", "no_lr", "small", "odd"):
        size = {"small": (95, 200), "odd": (103, 122)}.get(name, (100, 120))
        make_pair(f"data/set/HR/{name}.png", f"data/set/LR/{name}.png", *size)
    write_image("data/set/LR/lr_of_other_size.png", picture(26, 30))
    Path("data/set/LR/no_lr.png").unlink()
    write_image("data/set/LR/no_hr.png", picture(25, 30))
    Path("data/set/HR/notes.txt").write_text("no image")
    Path("data/set/HR/text.png").write_text("no image either")
    Path("data/set/HR/empty.png").touch()
    whole = Path("data/set/HR/good.png").read_bytes()
    Path("data/set/HR/truncated.png").write_bytes(whole[: len(whole) // 2])
    Path("data/set/HR/header_only.png").write_bytes(whole[:20])
    Image.fromarray(picture()).save("data/set/HR/good.bmp")
    Image.fromarray(picture()[..., 0].astype(np.float32)).save("data/set/HR/float.tif")
    Image.fromarray(picture()).save(
        "data/set/HR/moving.gif", save_all=True, append_images=[Image.fromarray(picture(seed=1))]
    )
    (Path("data/set/HR") / "folder.png").mkdir()
    for name in ("text", "empty", "truncated", "header_only", "float", "moving"):
        write_image(f"data/set/LR/{name}.png", picture(25, 30))

    found, skipped = names(quiet(), "set")
    assert found == ["good", "odd"] or found == ["odd", "good"]
    for name, reason in {
        "lr_of_other_size.png": "30 x 26 pixels, 30 x 25 belong to lr_of_other_size.png",
        "no_lr.png": "no LR image of this name in data/set/LR",
        "no_hr.png": "no HR image of this name",
        "small.png": "200 x 95 pixels, smaller than a patch of 96 x 96",
        "notes.txt": "not an image, going by its name",
        "text.png": "cannot identify",
        "empty.png": "the file is empty",
        "truncated.png": "damaged or incomplete",
        "header_only.png": "",
        "float.tif": "floating-point",
        "moving.gif": "2 frames",
    }.items():
        assert reason in skipped.pop(name)
    good = skipped.popitem()  # good.bmp or good.png, whichever comes second
    assert "has the same name as good." in good[1] and not skipped


def test_damage_inside_a_file_is_found_by_verify():
    make_pair("data/set/HR/a.png", "data/set/LR/a.png")
    make_pair("data/set/HR/b.png", "data/set/LR/b.png")
    data = bytearray(Path("data/set/HR/b.png").read_bytes())
    data[len(data) // 2] ^= 255
    Path("data/set/HR/b.png").write_bytes(data)
    assert names(quiet(), "set") == (["a", "b"], {})
    found, skipped = names(quiet(verify=True), "set")
    assert found == ["a"] and "damaged" in skipped["b.png"]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_every_kind_of_pixel_gives_a_pair(mode):
    if mode == "I;16":
        image = Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(picture()).convert(mode)
    Path("data/set_HR").mkdir(parents=True)
    image.save(f"data/set_HR/x.{'tif' if mode == 'CMYK' else 'png'}")
    quiet()
    _, lr, hr = PairDataset("data/lists/set.csv")[0]
    assert hr.shape == (100, 120, 3) and np.array_equal(lr, imresize(hr, 0.25))


def test_orientation_of_a_camera_is_followed():
    Path("data/set_HR").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.fromarray(picture(100, 121)).save("data/set_HR/turned.jpg", exif=exif)
    Image.fromarray(picture(100, 121)).save("data/set_HR/turned_too.png", exif=exif)
    quiet()
    for pair, (_, lr, hr) in zip(
        read_list("data/lists/set.csv"), PairDataset("data/lists/set.csv"), strict=True
    ):
        assert (pair.width, pair.height) == (100, 121)
        assert hr.shape == (120, 100, 3) and lr.shape == (30, 25, 3)


def test_empty_set_is_an_error_but_the_others_are_listed():
    Path("data/Set5/HR").mkdir(parents=True)
    write_image("data/small_HR/a.png", picture(50, 50))
    make_pair("data/Set14/HR/a.png", "data/Set14/LR/a.png")
    with pytest.raises(
        ValueError,
        match=r"Set5/HR: no image of it can be used, it has none(.|\n)*small(.|\n)*50 x 50",
    ):
        quiet()
    assert os.listdir("data/lists") == ["Set14.csv"]
    assert names(quiet(folders=["data/small_HR"], crop_size=48), "small")[0] == ["a"]


def test_nothing_to_list_is_an_error():
    with pytest.raises(FileNotFoundError, match="data: no such folder"):
        quiet()
    Path("data").mkdir()
    with pytest.raises(FileNotFoundError, match=r"--download.*--train FOLDER"):
        quiet()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        quiet(folders=["nowhere"])


def test_a_list_is_replaced_whole(monkeypatch):
    make_pair("data/set/HR/a.png", "data/set/LR/a.png")
    quiet()
    before = Path("data/lists/set.csv").read_bytes()
    make_pair("data/set/HR/b.png", "data/set/LR/b.png")
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        quiet()
    assert Path("data/lists/set.csv").read_bytes() == before


def test_only_headers_are_read(monkeypatch):
    make_pair("data/set/HR/a.png", "data/set/LR/a.png")
    monkeypatch.setattr(lists, "read_image", lambda path: pytest.fail(f"decoded {path}"))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert names(quiet(), "set")[0] == ["a"]


# ---------------------------------------------------------------------------------------------------------------------
# Making LR images


def test_lr_images_are_made_from_the_whole_image_cut_to_a_multiple_of_4():
    write_image("data/photos_HR/a.png", picture(103, 121))
    write_image("data/Set5/HR/b.png", picture(100, 98))
    write_image("data/flat/c_HR.png", picture(100, 100))
    quiet()
    for list_name, lr in {
        "train": "data/photos_LR_bicubic/X4/ax4.png",
        "Set5": "data/Set5/LR/b.png",
        "flat": "data/flat/c_LR.png",
    }.items():
        (pair,) = read_list(f"data/lists/{list_name}.csv")
        hr = read_image(pair.hr)
        expected = imresize(
            hr[: len(hr) // 4 * 4, : hr.shape[1] // 4 * 4], 0.25, padding="symmetric"
        )
        assert pair.lr == lr and np.array_equal(read_image(lr), expected)
        assert (pair.width, pair.height) == (hr.shape[1], hr.shape[0])


def test_lr_images_are_made_once_and_again_when_their_hr_image_changes(monkeypatch):
    for name in ("a", "b"):
        write_image(f"data/photos_HR/{name}.png", picture())
    quiet()
    made = []
    write = lists.write_image
    monkeypatch.setattr(
        lists, "write_image", lambda path, array: made.append(path.name) or write(path, array)
    )
    quiet()
    assert not made
    later = Path("data/photos_LR_bicubic/X4/ax4.png").stat().st_mtime_ns + 10**9
    write_image("data/photos_HR/a.png", picture(seed=1))
    os.utime("data/photos_HR/a.png", ns=(later, later))
    write_image("data/photos_HR/new.png", picture())
    assert names(quiet(), "train")[0] == ["a", "b", "new"] and sorted(made) == [
        "ax4.png",
        "newx4.png",
    ]
    assert np.array_equal(
        read_image("data/photos_LR_bicubic/X4/ax4.png"), imresize(picture(seed=1), 0.25)
    )


def test_given_lr_images_are_never_written_over():
    make_pair("data/set/HR/a.png", "data/set/LR/a.png")
    write_image("data/set/HR/b.png", picture())
    given = Path("data/set/LR/a.png").read_bytes()
    later = Path("data/set/LR/a.png").stat().st_mtime_ns + 10**9
    os.utime("data/set/HR/a.png", ns=(later, later))
    found, skipped = names(quiet(), "set")
    assert found == ["a"] and "no LR image" in skipped["b.png"]
    assert (
        os.listdir("data/set/LR") == ["a.png"] and Path("data/set/LR/a.png").read_bytes() == given
    )


def test_damaged_hr_image_gets_no_lr_image():
    write_image("data/set_HR/a.png", picture())
    write_image("data/set_HR/b.png", picture())
    data = bytearray(Path("data/set_HR/b.png").read_bytes())
    data[len(data) // 2] ^= 255
    Path("data/set_HR/b.png").write_bytes(data)
    found, skipped = names(quiet(), "set")
    assert found == ["a"] and "damaged" in skipped["b.png"]
    assert not Path("data/set_LR_bicubic/X4/bx4.png").exists()


def check_kills(kills, seed):
    for k in range(8):
        write_image(f"hr/{k}.png", picture(100 + k, 96, seed=k))

    def run(folder):
        os.makedirs(folder, exist_ok=True)
        os.chdir(folder)
        if not os.path.exists("data/photos_HR"):
            os.makedirs("data")
            os.symlink("../../hr", "data/photos_HR")
        quiet()

    here = Path.cwd()

    def outcome(folder):
        os.chdir(here)
        run(folder)
        os.chdir(here)
        return {
            path: data for path, data in contents(Path(folder)).items() if "photos_HR" not in path
        }

    expected = outcome("undisturbed")
    assert len(expected) == 8 + 2  # the LR images, the marker beside them, the list
    modules = [lists, sys.modules["utils"]]
    lines = count_lines(functools.partial(run, "counted"), modules)
    os.chdir(here)
    moments = random.Random(seed)
    for k in range(kills):
        while run_killed(functools.partial(run, f"killed{k}"), modules, moments.randint(1, lines)):
            pass
        assert outcome(f"killed{k}") == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_while_making_lr_images_ends_in_the_same_bytes():
    check_kills(3, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_while_making_lr_images_at_many_moments():
    check_kills(20, seed=1)


# ---------------------------------------------------------------------------------------------------------------------
# Photographs in scikit-image, command line


def test_embedded_photographs():
    table = embedded_photographs(progress=False)
    assert {row["set"]: row["images"] for row in table} == {
        "train": 10,
        "valid": 1,
        "embedded_test": 2,
    }
    held_out = {
        pair.name
        for name in ("valid", "embedded_test")
        for pair in read_list(f"data/embedded/lists/{name}.csv")
    }
    assert held_out == {"rocket", "chelsea", "coffee"}
    train = {pair.name for pair in read_list("data/embedded/lists/train.csv")}
    assert not held_out & train and {"motorcycle_left", "motorcycle_right"} <= train
    for name, lr, hr in PairDataset("data/embedded/lists/embedded_test.csv"):
        assert np.array_equal(lr, imresize(hr, 0.25)) and name in held_out
    before = contents(Path("data"))
    embedded_photographs(progress=False)
    assert contents(Path("data")) == before


def test_command_line(capsys):
    write_image("data/photos_HR/a.png", picture())
    write_image("data/photos_HR/b.png", picture(50, 50))
    assert main([]) == 0
    out = capsys.readouterr().out
    assert (
        "data/lists/train.csv" in out and "skipped in train: data/photos_HR/b.png: 50 x 50" in out
    )
    assert main(["nowhere"]) == 1
    assert "error: nowhere: no such folder" in capsys.readouterr().err
    assert main(["data/photos_HR", "--crop-size", "48", "--out", "other", "--verify"]) == 0
    assert [pair.name for pair in read_list("other/photos.csv")] == ["a", "b"]
