"""Every file under data/ is in a list, or named with the reason why it is in none."""

import os
import random
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from create_data_lists import create_data_lists
from datasets import read_list
from imresize import imresize
from tools.image_sets import find_set, pair_names
from utils import write_image

SUFFIXES = (".png", ".jpg", ".bmp", ".webp", ".tif", ".gif", ".ppm", ".jp2", ".tga")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (100, 96, 3), dtype=np.uint8)


def make_pair(hr, lr, seed=0):
    write_image(hr, picture(seed))
    write_image(lr, imresize(picture(seed), 0.25))


def listed_pairs(name):
    return [(pair.hr, pair.lr) for pair in read_list(f"data/lists/{name}.csv")]


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hr, lr",
    [
        ("Set5/HR/bird_HR_x4.png", "Set5/LR/bird_HR_x4.png"),
        ("Set5/HR/bird_HR.png", "Set5/LR/bird_HR.png"),
        ("Set5/HR/bird.png", "Set5/LR/bird.png"),
        ("Set5/HR/bird.png", "Set5/LR/bird_LR.png"),
        ("Set5/HR/bird_HR.png", "Set5/LR/bird_LR.png"),
        ("Set5/HR/bird_HR_x4.png", "Set5/LR/bird_LRBI_x4.png"),
        ("Set5/HR/baby.png", "Set5/LR_bicubic/X4/babyx4.png"),
        ("Set5/HR/baby.png", "Set5/LR_bicubic/x4/babyx4.png"),
        ("Set5/HR/baby.png", "Set5/LR_bicubic/baby.png"),
        ("Set5/HR/baby.png", "Set5/LRbicx4/baby.png"),
        ("Set5/HR/baby.png", "Set5/LR/x4/baby_x4.png"),
        ("Set5/HR/ba by.v2.png", "Set5/LR/ba by.v2.png"),
        ("Set5_HR/baby.png", "Set5_LR/baby.png"),
        ("Set5_HR/baby.png", "Set5_LR_bicubic/X4/babyx4.png"),
        ("Set5_HR/baby_HR.png", "Set5_LR_bicubic/X4/babyx4.png"),
        ("Set5/baby_HR.png", "Set5/baby_LR.png"),
    ],
)
def test_known_layouts_and_names_are_pairs_and_nothing_is_made(hr, lr):
    make_pair(f"data/{hr}", f"data/{lr}")
    before = sorted(path for path in Path("data").rglob("*"))
    table = create_data_lists()
    assert listed_pairs("Set5") == [(f"data/{hr}", f"data/{lr}")]
    assert not any(row["skipped"] or row["warnings"] or row["made"] for row in table)
    assert sorted(p for p in Path("data").rglob("*") if "lists" not in p.parts) == before


def test_names_written_as_nfc_and_as_nfd_are_one_name():
    nfc, nfd = (unicodedata.normalize(form, "Zürich-日本-é") for form in ("NFC", "NFD"))
    assert nfc != nfd
    make_pair(f"data/Set5/HR/{nfd}.png", f"data/Set5/LR/{nfc}.png")
    create_data_lists()
    assert len(listed_pairs("Set5")) == 1


@pytest.mark.parametrize(
    "hr, lr, usual, expected",
    [
        (["a", "b"], ["a", "b"], ("", ""), {"a": "a", "b": "b"}),
        (["a", "ax4"], ["ax4", "ax4x4"], ("", ""), {"a": "ax4", "ax4": "ax4x4"}),
        (["a", "ax4"], ["ax4"], ("", "x4"), {"a": "ax4"}),  # usual ones before equal ones
        (["ax4"], ["ax4"], ("", "x4"), {"ax4": "ax4"}),
        (["a", "b", "c"], ["ax4", "bx4", "c"], ("", ""), {"a": "ax4", "b": "bx4", "c": "c"}),
        (["a", "a_HR"], ["a_LR"], ("", ""), {"a": "a_LR"}),  # no LR image twice
        (["a"], ["b"], ("", ""), {}),
    ],
)
def test_names_are_paired_by_the_endings_that_fit_most(hr, lr, usual, expected):
    assert pair_names(hr, lr, usual) == expected


# --- which folders are sets -----------------------------------------------------------------------


def test_the_name_of_the_folder_comes_before_the_names_in_it():
    for name in ("0001", "0002", "beach_HR"):
        write_image(f"data/DIV2K_train_HR/{name}.png", picture())
    (row,) = create_data_lists()
    assert row["images"] == 3
    assert sorted(os.listdir("data/DIV2K_train_HR")) == ["0001.png", "0002.png", "beach_HR.png"]


def test_one_name_that_ends_in_hr_does_not_make_a_folder_of_photographs_a_flat_set():
    for name in ("one", "two", "beach_HR"):
        write_image(f"data/my_photos/{name}.png", picture())
    (row,) = create_data_lists(train="data/my_photos")
    assert row["images"] == 3 and len(os.listdir("data/my_photos")) == 3


def test_results_beside_the_pairs_of_a_flat_set_are_no_images_of_it():
    make_pair("data/Urban100/img_001_SRF_4_HR.png", "data/Urban100/img_001_SRF_4_LR.png")
    write_image("data/Urban100/img_001_SRF_4_bicubic.png", picture())
    table = create_data_lists()
    assert table[0]["skipped"] == {
        "data/Urban100/img_001_SRF_4_bicubic.png": "its name ends neither in _HR nor in _LR"
    }


def test_an_lr_image_beside_its_hr_image_is_not_listed_as_hr():
    make_pair("data/photos_HR/a_HR.png", "data/photos_HR/a_LR.png")
    (row,) = create_data_lists()
    assert row["images"] == 1 and "an LR image" in row["skipped"]["data/photos_HR/a_LR.png"]


def test_what_is_not_used_under_data_is_named_with_the_reason(capsys):
    make_pair("data/Set5/HR/baby.png", "data/Set5/LR/baby.png")
    for path in (
        "Set5/LR_bicubic/X4/babyx4",  # a second folder of LR images
        "my_photos/a", "my_photos/b", "album/summer/c",
        "DIV2K_train_LR_bicubic/X4/0001x4",  # without HR images
        "loose",
        "photos_HR/a", "photos/HR/a",  # two sets of one name
        "embedded/train_HR/a",  # has its own lists
        ".hidden/x", "cache/.hidden",
    ):  # fmt: skip
        write_image(f"data/{path}.png", picture())
    create_data_lists()
    lines = [line for line in capsys.readouterr().out.splitlines() if "not used" in line]
    assert sorted(line.split(": ")[1] for line in lines) == [
        "data",
        "data/DIV2K_train_LR_bicubic",
        "data/Set5/LR_bicubic",
        "data/album",
        "data/my_photos",
        "data/photos_HR",
    ]
    text = "\n".join(lines)
    assert "data/my_photos: 2 images, " in text and "--train data/my_photos" in text
    assert "--train data/album/summer" in text
    assert "data/photos_HR: 1 images, another set has the same name" in text


def test_named_folders_of_one_name_are_refused_not_dropped():
    for folder in ("one/my_HR", "two/my_HR", "one/train_HR"):
        write_image(f"{folder}/a.png", picture())
    with pytest.raises(ValueError, match=r"(one|two)/my_HR: another set has the same name, my;"):
        create_data_lists(folders=["one/my_HR", "two/my_HR"])
    with pytest.raises(ValueError, match=r"one/train_HR: another set has the same name"):
        create_data_lists(folders=["one/train_HR"], train="two/my_HR")
    assert len(create_data_lists(folders=["one/my_HR", "one/my_HR"])) == 1


def test_find_set_names_a_folder_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_set("nowhere")


# --- two thousand odd names -----------------------------------------------------------------------


def odd_names(count):
    """Distinct names as people, cameras, systems and programs make them; without their suffix."""
    words = [
        "a", "IMG_0001", "IMG_0001 (1)", "Zürich", unicodedata.normalize("NFD", "Zürich"), "日本",
        "😀", " leading", "trailing ", "a.b.c", "-rf", "--help", "~a", "#1", "100%", "a,b", 'a"b',
        "a'b", "a;b", "$HOME", "=1+1", "[a]", "*", "x\ny", "x\r\ny", "tab\there", "back\\slash",
        "bell\a", "\x1b[31mred", "x" * 200, "beach_HR", "beach_LR", "0001x4", "bird_HR_x4", "HR",
        "CON", "\u202egnp", "a\u200bb", "İstanbul", "ß", "..a", "_", "%s%n", "null", "a b  c",
    ]  # fmt: skip
    draw = random.Random(0)
    names = dict.fromkeys(words)
    while len(names) < count:
        names[
            draw.choice(words) + draw.choice(["", "_", " ", "-"]) + str(draw.randrange(10**6))
        ] = 0
    return list(names)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of files that are cut short
@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse some of the names")
def test_of_a_folder_with_2000_odd_names_every_file_is_in_the_list_or_in_the_report(capsys):
    folder, draw = Path("data/odd_HR"), random.Random(1)
    folder.mkdir(parents=True)
    image = Image.fromarray(picture()[:32, :32])
    content = {}
    for suffix in SUFFIXES:
        image.save(f"whole{suffix}")
        content[suffix] = Path(f"whole{suffix}").read_bytes()
    Path("elsewhere").mkdir()

    def write(name):
        kind, suffix = draw.random(), draw.choice(SUFFIXES)
        written = draw.choice([suffix, suffix, suffix.upper(), suffix.title()])
        path = folder / f"{name}{written}"
        if kind < 0.7:
            path.write_bytes(content[suffix])
        elif kind < 0.73:
            path.write_bytes(b"")
        elif kind < 0.76:
            path.write_bytes(content[suffix][:40])
        elif kind < 0.79:
            path.write_bytes(b"not an image")
        elif kind < 0.82:
            (folder / f"{name}{draw.choice(['.txt', '', '.png.part', '.db'])}").touch()
        elif kind < 0.85:
            path.mkdir()
            (path / "inside.png").write_bytes(content[".png"])
        elif kind < 0.87:
            path.symlink_to("nowhere")
        elif kind < 0.89:
            path.symlink_to(Path("whole.png").absolute())
        elif kind < 0.91:
            path.symlink_to(Path("elsewhere").absolute())
        elif kind < 0.93:
            os.mkfifo(path)  # would wait for ever when it is opened
        elif kind < 0.96:
            for suffix in (".png", ".bmp"):  # one stem, two files
                (folder / f"{name}{suffix}").write_bytes(content[suffix])
        else:
            (folder / f".{name}{written}").write_bytes(content[suffix])

    for name in odd_names(1900):
        write(name)
    for k in range(100):
        write(os.fsdecode(b"caf\xe9 %d" % k))

    (row,) = create_data_lists(folders=[folder], crop_size=32)
    found = {os.fsencode(folder / name) for name in os.listdir(folder)}
    in_list = {os.fsencode(pair.hr) for pair in read_list("data/lists/odd.csv")}
    reported = {os.fsencode(path) for path in row["skipped"]}
    hidden = {path for path in found if os.path.basename(path).startswith(b".")}
    assert len(found) >= 2000 and row["images"] == len(in_list) > 1000
    assert not in_list & reported and not hidden & (in_list | reported)
    assert reported - found == {os.fsencode(folder / ".*")}
    assert row["skipped"][(folder / ".*").as_posix()] == f"{len(hidden)} hidden files"
    assert found == in_list | (reported & found) | hidden
    assert all(row["skipped"].values())

    # The file beside the list has them all; the screen has some, and says where the others are.
    report = Path("data/lists/odd.report.txt").read_text(encoding="utf-8").splitlines()
    assert len(report) == len(reported) > 20
    printed = capsys.readouterr().out
    assert printed.count("odd: skipped: ") == 20
    assert f"odd: ... and {len(report) - 20} more, see data/lists/odd.report.txt" in printed
    after_the_bar = printed[printed.index("odd: skipped: ") :]
    assert after_the_bar.replace("\n", "").isprintable()
    names = os.linesep.join(report)
    assert r"caf\udce9 " in names and "its path is not UTF-8" in names
    assert row["images"] == len(os.listdir("data/odd_LR_bicubic/X4"))
