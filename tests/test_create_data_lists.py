"""Which pairs are listed, which are not and why, and how missing LR images are made."""

import functools
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from killing import contents, count_lines, run_killed
from PIL import Image

import create_data_lists as lists
import metrics
from create_data_lists import create_data_lists, embedded_photographs, find_set, main
from datasets import PairDataset, PatchDataset, read_list
from imresize import imresize
from tools import lr_images
from utils import read_image, write_image


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(height=100, width=120, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_pair(hr, lr, height=100, width=120, seed=0):
    image = picture(height, width, seed)
    write_image(hr, image)
    write_image(lr, imresize(image[: height // 4 * 4, : width // 4 * 4], 0.25))


def damage(path):
    """Flip bits in the middle of a file."""
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 255
    Path(path).write_bytes(data)


def names(table, name):
    """-> (names of the listed pairs of a set, {file name: why it is not listed})."""
    row = next(row for row in table if row["set"] == name)
    skipped = {Path(path).name: reason for path, reason in row["skipped"].items()}
    return [pair.name for pair in read_list(row["list"])], skipped


# --- finding sets and pairs -----------------------------------------------------------------------


def test_official_layouts_are_found():
    for k in ("0001", "0002", "0010"):
        make_pair(f"data/DIV2K_train_HR/{k}.png", f"data/DIV2K_train_LR_bicubic/X4/{k}x4.png")
    make_pair("data/DIV2K_valid_HR/0801.png", "data/DIV2K_valid_LR_bicubic/X4/0801x4.png")
    make_pair("data/Set5/HR/baby.png", "data/Set5/LR/baby.png")
    for k in ("img_001", "img_002", "img_010"):
        make_pair(f"data/Urban100/{k}_SRF_4_HR.png", f"data/Urban100/{k}_SRF_4_LR.png")
    make_pair("data/photos_HR/a.png", "data/photos_LR_bicubic/X4/ax4.png")
    Path("data/cache/0123").mkdir(parents=True)
    Path("data/.ipynb_checkpoints").mkdir()

    table = create_data_lists()
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
    urban = ["img_001_SRF_4", "img_002_SRF_4", "img_010_SRF_4"]
    assert names(table, "Urban100") == (urban, {})
    assert sorted(os.listdir("data/lists")) == sorted(f"{row['set']}.csv" for row in table)


def test_photos_are_trained_on_and_set5_validates_where_div2k_is_absent():
    make_pair("data/photos_HR/a.png", "data/photos_LR_bicubic/X4/ax4.png")
    make_pair("data/Set5/HR/baby.png", "data/Set5/LR/baby.png")
    table = {row["set"]: row["folder"] for row in create_data_lists()}
    assert table == {"train": "data/photos_HR", "valid": "data/Set5/HR", "Set5": "data/Set5/HR"}


def test_named_folders_are_listed_instead_of_the_usual_ones():
    make_pair("data/photos_HR/a.png", "data/photos_LR_bicubic/X4/ax4.png")
    make_pair("data/Set5/HR/baby.png", "data/Set5/LR/baby.png")
    make_pair("mine/one_HR.png", "mine/one_LR.png")

    def listed(**options):
        return {row["set"]: row["folder"] for row in create_data_lists(**options)}

    assert list(listed(folders=["mine", "data/Set5"])) == ["mine", "Set5"]
    assert listed(train="mine")["train"] == "mine"
    assert set(listed(train="data/photos_HR")) == {"Set5", "train", "valid"}
    assert listed(valid="mine", out="else")["valid"] == "mine"
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
def test_the_set_of_a_folder_is_found_from_any_of_its_paths(monkeypatch, folder, here, name):
    for path in ("flat/x_HR.png", "set/HR/x.png", "mine_HR/x.png"):
        write_image(path, picture(8, 8))
    monkeypatch.chdir(here)
    assert find_set(folder).name == name
    assert {path.name for path in find_set(folder).hr_folder.iterdir()} <= {"x.png", "x_HR.png"}


def test_lists_of_images_elsewhere_have_relative_paths(monkeypatch):
    make_pair("pictures/set/HR/a.png", "pictures/set/LR/a.png")
    Path("project").mkdir()
    monkeypatch.chdir("project")
    create_data_lists(folders=[Path("../pictures/set").absolute()])
    assert read_list("data/lists/set.csv")[0].hr == "../pictures/set/HR/a.png"


# --- what is left out, and why --------------------------------------------------------------------


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
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(2)]
    for name in ("moving.gif", "animated.png"):
        frames[0].save(f"data/set/HR/{name}", save_all=True, append_images=frames[1:])
    (Path("data/set/HR") / "folder.png").mkdir()
    for name in ("text", "empty", "truncated", "header_only", "float", "moving", "animated"):
        write_image(f"data/set/LR/{name}.png", picture(25, 30))

    found, skipped = names(create_data_lists(), "set")
    assert found == ["good", "odd"]
    for name, reason in {
        "lr_of_other_size.png": "has width and height (30, 26), expected (30, 25)",
        "no_lr.png": "no LR image of this name",
        "no_hr.png": "no HR image of this name",
        "small.png": "200 x 95 pixels, smaller than a patch of 96",
        "notes.txt": "not an image, going by its name",
        "text.png": "not an image, or of a kind that is not read",
        "empty.png": "not an image",
        "truncated.png": "damaged or incomplete",
        "header_only.png": "damaged or incomplete",
        "float.tif": "floating-point",
        "moving.gif": "2 frames",
        "animated.png": "2 frames",
        "good.png": "has the same name as good.bmp",
        "folder.png": "an empty folder",
    }.items():
        assert reason in skipped.pop(name)
    assert not skipped


def test_only_verify_decodes_every_png_file_and_finds_damage_inside_it(monkeypatch):
    monkeypatch.setattr(lists, "NUM_COMPARED", 1)
    make_pair("data/set/HR/a.png", "data/set/LR/a.png")
    make_pair("data/set/HR/b.png", "data/set/LR/b.png")
    damage("data/set/HR/b.png")
    assert names(create_data_lists(), "set") == (["a", "b"], {})
    found, skipped = names(create_data_lists(verify=True), "set")
    assert found == ["a"] and "damaged" in skipped["b.png"]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_every_kind_of_pixel_gives_a_pair(mode):
    if mode == "I;16":
        image = Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(picture()).convert(mode)
    Path("data/set_HR").mkdir(parents=True)
    image.save(f"data/set_HR/x.{'tif' if mode == 'CMYK' else 'png'}")
    create_data_lists()
    _, lr, hr = PairDataset("data/lists/set.csv")[0]
    assert hr.shape == (100, 120, 3) and np.array_equal(lr, imresize(hr, 0.25))


def test_the_orientation_of_a_camera_is_followed():
    Path("data/set_HR").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.fromarray(picture(100, 121)).save("data/set_HR/turned.jpg", exif=exif)
    Image.fromarray(picture(100, 121)).save("data/set_HR/turned_too.png", exif=exif)
    create_data_lists()
    for pair, (_, lr, hr) in zip(
        read_list("data/lists/set.csv"), PairDataset("data/lists/set.csv"), strict=True
    ):
        assert (pair.width, pair.height) == (100, 121)
        assert hr.shape == (120, 100, 3) and lr.shape == (30, 25, 3)


def test_a_set_without_images_is_an_error_but_the_others_are_listed():
    Path("data/Set5/HR").mkdir(parents=True)
    write_image("data/small_HR/a.png", picture(50, 50))
    make_pair("data/Set14/HR/a.png", "data/Set14/LR/a.png")
    with pytest.raises(
        ValueError, match=r"Set5/HR: no image can be used, there is none\n.*small(.|\n)*50 x 50"
    ):
        create_data_lists()
    assert sorted(os.listdir("data/lists")) == ["Set14.csv", "small.report.txt"]
    assert names(create_data_lists(folders=["data/small_HR"], crop_size=48), "small")[0] == ["a"]


def test_nothing_to_list_is_an_error():
    with pytest.raises(FileNotFoundError, match=r"data: no sets .*--download.*--train FOLDER"):
        create_data_lists()
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        create_data_lists(folders=["nowhere"])


# --- making lr images -----------------------------------------------------------------------------


def test_lr_images_are_made_from_the_whole_image_cut_to_a_multiple_of_4():
    write_image("data/photos_HR/a.png", picture(103, 121))
    write_image("data/Set5/HR/b.png", picture(100, 98))
    write_image("data/flat/c_HR.png", picture(100, 100))
    create_data_lists()
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


def test_given_lr_images_are_never_written_over():
    make_pair("data/set/HR/a.png", "data/set/LR/a.png")
    write_image("data/set/HR/b.png", picture())
    given = Path("data/set/LR/a.png").read_bytes()
    later = Path("data/set/LR/a.png").stat().st_mtime_ns + 10**9
    os.utime("data/set/HR/a.png", ns=(later, later))
    found, skipped = names(create_data_lists(), "set")
    assert found == ["a"] and "no LR image" in skipped["b.png"]
    assert (
        os.listdir("data/set/LR") == ["a.png"] and Path("data/set/LR/a.png").read_bytes() == given
    )


def test_a_damaged_hr_image_gets_no_lr_image():
    write_image("data/set_HR/a.png", picture())
    write_image("data/set_HR/b.png", picture())
    damage("data/set_HR/b.png")
    found, skipped = names(create_data_lists(), "set")
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
        create_data_lists()

    here = Path.cwd()

    def outcome(folder):
        os.chdir(here)
        run(folder)
        os.chdir(here)
        return {
            path: data for path, data in contents(Path(folder)).items() if "photos_HR" not in path
        }

    expected = outcome("undisturbed")
    assert len(expected) == 8 + 1  # the LR images and the list
    modules = [lists, lr_images, sys.modules["utils"]]
    lines = count_lines(functools.partial(run, "counted"), modules)
    os.chdir(here)
    moments = random.Random(seed)
    for k in range(kills):
        while run_killed(functools.partial(run, f"killed{k}"), modules, moments.randint(1, lines)):
            pass
        assert outcome(f"killed{k}") == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_run_killed_while_making_lr_images_and_run_again_ends_in_the_same_bytes():
    check_kills(3, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_while_making_lr_images_at_many_moments():
    check_kills(20, seed=1)


# --- training and validation ----------------------------------------------------------------------


def folders(table):
    return {row["set"]: row["folder"] for row in table}


def test_a_set_is_chosen_to_validate_on_that_is_not_trained_on():
    make_pair("data/DIV2K_valid_HR/0801.png", "data/DIV2K_valid_LR_bicubic/X4/0801x4.png")
    make_pair("data/Set5/HR/baby.png", "data/Set5/LR/baby.png")
    table = folders(create_data_lists(train="data/DIV2K_valid_HR"))
    assert table["train"] == "data/DIV2K_valid_HR" and table["valid"] == "data/Set5/HR"
    table = folders(create_data_lists(train="data/Set5/HR"))
    assert table["train"] == "data/Set5/HR" and table["valid"] == "data/DIV2K_valid_HR"


def test_a_set_is_chosen_to_train_on_that_is_not_validated_on():
    make_pair("data/photos_HR/a.png", "data/photos_LR_bicubic/X4/ax4.png")
    make_pair("data/Set5/HR/baby.png", "data/Set5/LR/baby.png")
    assert folders(create_data_lists(valid="data/photos_HR")) == {
        "Set5": "data/Set5/HR",
        "photos": "data/photos_HR",
        "valid": "data/photos_HR",
    }


def test_folders_called_train_and_valid_come_first():
    for name in ("train", "valid", "DIV2K_train", "DIV2K_valid"):
        make_pair(f"data/{name}_HR/a.png", f"data/{name}_LR_bicubic/X4/ax4.png")
    table = folders(create_data_lists())
    assert table == {name: f"data/{name}_HR" for name in table} and len(table) == 4


def test_images_too_small_to_score_are_in_no_list_but_that_to_train_on():
    for name in ("photos", "Set5"):
        for side in (16, 19, 20):
            write_image(f"data/{name}_HR/{side}.png", picture(side, side))
    table = create_data_lists(crop_size=16)
    assert names(table, "train") == (["16", "19", "20"], {})
    found, skipped = names(table, "valid")
    assert found == ["20"] and "19 x 19 pixels, at least 20 a side" in skipped["19.png"]
    for _, lr, hr in PairDataset("data/lists/valid.csv"):
        metrics.ssim(
            np.kron(lr, np.ones((4, 4, 1), np.uint8)), hr
        )  # raises ValueError if too small


# --- every message's command cures what it says ---------------------------------------------------


def run_commands(text, monkeypatch, **words):
    """Run each command in a message, with `words` for the placeholders; -> how many there were."""

    def fake_download(sets, data, mirrors):
        for name in sets or ["DIV2K_train", "Set5"]:
            make_pair(f"{data}/{name}/HR/x.png", f"{data}/{name}/LR/x.png")

    monkeypatch.setattr(lists, "download", fake_download)
    commands = re.findall(r"python create_data_lists\.py((?: --?[\w-]+| [\w./]+|)*)", text)
    before = contents(Path())
    assert commands
    for command in commands:
        for path in sorted(Path().rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        for path, data in before.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(data)
        arguments = [words.get(word, word) for word in shlex.split(command)]
        assert main(arguments) == 0, arguments
        yield arguments


def test_the_commands_for_an_empty_folder_of_data(monkeypatch, capsys):
    write_image("pictures/a.png", picture())
    write_image("other/b.png", picture())
    Path("data").mkdir()
    assert main([]) == 1
    message = capsys.readouterr().err.replace("--valid FOLDER", "--valid OTHER")
    tried = list(run_commands(message, monkeypatch, FOLDER="pictures", OTHER="other"))
    assert tried == [["--download"], ["--train", "pictures", "--valid", "other"], ["--embedded"]]


def test_the_commands_for_a_missing_validation_list(monkeypatch, capsys):
    write_image("data/my/a.png", picture())
    write_image("other/b.png", picture())
    assert main(["--train", "data/my", "--crop-size", "48"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "no valid.csv" in line]
    tried = 0
    for arguments in run_commands(lines[0], monkeypatch, FOLDER="other"):
        tried += 1
        assert read_list("data/lists/valid.csv") and read_list("data/lists/train.csv")
        assert arguments[:4] == ["--crop-size", "48", "--train", "data/my"]
    assert tried == 2


def test_the_command_where_set5_is_trained_on_fetches_another_set(monkeypatch, capsys):
    make_pair("data/Set5/HR/a.png", "data/Set5/LR/a.png")
    assert main(["--train", "data/Set5"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "no valid.csv" in line]
    write_image("other/b.png", picture())
    for _ in run_commands(lines[0], monkeypatch, FOLDER="other"):
        assert read_list("data/lists/valid.csv")


def test_validating_on_the_training_images_is_refused_and_the_command_cures_it(monkeypatch, capsys):
    make_pair("data/Set5/HR/a.png", "data/Set5/LR/a.png")
    write_image("other/b.png", picture())
    assert main(["--train", "data/Set5", "--valid", "data/Set5/HR"]) == 1
    message = capsys.readouterr().err
    assert "data/Set5/HR are the images to train on" in message
    (arguments,) = run_commands(message, monkeypatch, FOLDER="other")
    assert arguments == ["--train", "data/Set5", "--valid", "other"]
    assert read_list("data/lists/valid.csv")[0].hr == "other/b.png"


def test_the_command_for_photographs_that_are_not_used(monkeypatch, capsys):
    write_image("elsewhere/my photos/a.png", picture())
    make_pair("elsewhere/Set5/HR/a.png", "elsewhere/Set5/LR/a.png")
    assert main(["--data", "elsewhere"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("not used")]
    command = line.partition("create_data_lists.py ")[2]
    assert command == "--data elsewhere --train 'elsewhere/my photos'"
    assert main(shlex.split(command)) == 0
    assert read_list("elsewhere/lists/train.csv")[0].hr == "elsewhere/my photos/a.png"


def test_the_option_for_images_that_are_too_small(capsys):
    write_image("data/small_HR/a.png", picture(51, 60))
    assert main([]) == 1
    message = capsys.readouterr().err
    assert "60 x 51 pixels, smaller than a patch of 96; to list it: --crop-size 48" in message
    assert main(["--crop-size", "48"]) == 0


def test_the_command_for_images_in_a_subfolder(monkeypatch, capsys):
    write_image("data/photos_HR/a.png", picture())
    write_image("data/photos_HR/trip/b.png", picture())
    assert main([]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "HR/trip" in line]
    for _ in run_commands(line, monkeypatch):
        assert read_list("data/lists/trip.csv")


def test_the_command_where_lists_cannot_be_written(monkeypatch, capsys):
    make_pair("data/Set5/HR/a.png", "data/Set5/LR/a.png")
    Path("data/lists").write_text("a file, so that no folder can be made")
    assert main(["data/Set5"]) == 1
    message = capsys.readouterr().err
    assert "data/lists/Set5.csv: cannot be written" in message
    for _ in run_commands(message, monkeypatch, FOLDER="other"):
        assert read_list("other/Set5.csv")


@pytest.mark.parametrize("folder", ["data/lists", "data/embedded/lists"])
@pytest.mark.parametrize("name", ["train.csv", "valid.csv"])
def test_the_command_for_a_list_that_is_not_there_makes_it(monkeypatch, folder, name):
    write_image("data/photos_HR/a.png", picture())
    make_pair("data/Set5/HR/a.png", "data/Set5/LR/a.png")
    with pytest.raises(FileNotFoundError, match="no such list") as error:
        read_list(f"{folder}/{name}")
    (_,) = run_commands(str(error.value), monkeypatch)
    assert read_list(f"{folder}/{name}")


def test_the_command_of_images_too_small_for_the_patches(monkeypatch):
    write_image("data/photos_HR/a.png", picture(100, 120))
    write_image("data/photos_HR/b.png", picture(140, 160))
    create_data_lists()
    with pytest.raises(ValueError, match="too few for patches of 128") as error:
        PatchDataset("data/lists/train.csv", crop_size=128)
    for _ in run_commands(str(error.value), monkeypatch):
        assert len(PatchDataset("data/lists/train.csv", crop_size=128).pairs) == 1


@pytest.mark.parametrize("crop_size", [0, -4, 95])
def test_a_crop_size_that_gives_no_patches_is_refused(crop_size, capsys):
    write_image("data/photos_HR/a.png", picture())
    assert main(["--crop-size", str(crop_size)]) == 1
    assert "positive multiple of 4" in capsys.readouterr().err


def test_embedded_refuses_what_it_would_ignore(capsys):
    for ignored in (["--train", "x"], ["--out", "x"], ["x"], ["--download"], ["--check"]):
        with pytest.raises(SystemExit):
            main(["--embedded", *ignored])
        assert "--embedded goes with --data and --crop-size only" in capsys.readouterr().err


# --- names that a console or a list cannot hold ---------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_name_that_is_not_utf8_is_named_and_the_others_are_listed(capsys):
    write_image("data/photos_HR/a.png", picture())
    write_image(Path("data/photos_HR", os.fsdecode(b"caf\xe9.png")), picture())
    assert main([]) == 0
    assert [pair.name for pair in read_list("data/lists/train.csv")] == ["a"]
    line = r"train: skipped: data/photos_HR/caf\udce9.png: its path is not UTF-8"
    assert line in capsys.readouterr().out
    assert line.partition(": ")[2] in Path("data/lists/train.report.txt").read_text("utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_folder_whose_name_is_not_utf8_leaves_the_other_sets_alone(capsys):
    write_image("data/photos_HR/a.png", picture())
    write_image(Path(os.fsdecode(b"data/caf\xe9_HR/a.png")), picture())
    assert main([]) == 1
    assert "its path is not UTF-8" in capsys.readouterr().err
    assert read_list("data/lists/train.csv")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "gbk"])
def test_a_console_that_lacks_the_letters_of_a_name_gets_backslashes(encoding):
    write_image("data/日本é_HR/a.png", picture())
    write_image("data/日本é_HR/små😀.png", picture(8, 8))
    (Path("data") / "photos é😀").mkdir()
    write_image("data/photos é😀/a.png", picture())
    run = subprocess.run(
        [sys.executable, Path(lists.__file__)],
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr
    assert b"_HR/sm" in run.stdout and b"not used" in run.stdout
    assert read_list("data/lists/日本é.csv")


def test_no_report_is_left_that_is_out_of_date():
    write_image("data/photos_HR/a.png", picture())
    Path("data/photos_HR/notes.txt").touch()
    create_data_lists()
    report = Path("data/lists/train.report.txt")
    assert report.read_text() == (
        "skipped: data/photos_HR/notes.txt: not an image, going by its name\n"
    )
    Path("data/photos_HR/notes.txt").unlink()
    create_data_lists()
    assert not report.exists()


# --- photographs in scikit-image, command line ----------------------------------------------------


def test_embedded_photographs_are_listed_with_the_held_out_ones_apart():
    table = embedded_photographs()
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
    embedded_photographs()
    assert contents(Path("data")) == before


def test_the_command_line_lists_and_says_what_is_left_out(capsys):
    write_image("data/photos_HR/a.png", picture())
    write_image("data/photos_HR/b.png", picture(50, 50))
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "data/lists/train.csv" in out and "train: skipped: data/photos_HR/b.png: 50 x 50" in out
    assert main(["nowhere"]) == 1
    assert "error: nowhere: no such folder" in capsys.readouterr().err
    assert main(["data/photos_HR", "--crop-size", "48", "--out", "other", "--verify"]) == 0
    assert [pair.name for pair in read_list("other/photos.csv")] == ["a", "b"]
