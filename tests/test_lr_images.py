"""LR images are those of their HR image: made here again when it changes, compared where not."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import create_data_lists as lists
from create_data_lists import create_data_lists, main
from imresize import imresize
from tools.lr_images import is_made_here, psnr_to_imresize
from utils import read_image, write_image


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def photo(seed=0, height=100, width=120):
    """A smooth random image, as different from another one as two photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def down(image, padding="symmetric"):
    height, width = image.shape[:2]
    return imresize(image[: height // 4 * 4, : width // 4 * 4], 0.25, padding=padding)


def listed(**options):
    """-> (the only set's row of the table, {file name: why it is not listed})."""
    (row,) = create_data_lists(folders=["data/my_HR"], **options)
    return row, {Path(path).name: reason for path, reason in row["skipped"].items()}


LR = Path("data/my_LR_bicubic/X4")


# --- images that were made here -------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(100, 120), (104, 96)])
def test_lr_is_made_again_when_its_hr_is_another_picture_even_an_older_one(height, width):
    write_image("data/my_HR/a.png", photo(0))
    listed()
    new = photo(1, height, width)
    write_image("data/my_HR/a.png", new)
    os.utime("data/my_HR/a.png", (0, 0))  # as `cp -p`, unzip and rsync leave it
    row, skipped = listed()
    assert (row["images"], row["made"], skipped) == (1, 1, {})
    assert np.array_equal(read_image(LR / "ax4.png"), down(new))


def test_lr_of_an_unchanged_hr_is_not_written_again_whatever_its_date():
    write_image("data/my_HR/a.png", photo())
    listed()
    os.utime(LR / "ax4.png", (1, 1))
    os.utime("data/my_HR/a.png")
    listed()
    assert (LR / "ax4.png").stat().st_mtime == 1


def test_swapped_hr_images_swap_their_lr_images():
    for name, seed in (("a", 0), ("b", 1)):
        write_image(f"data/my_HR/{name}.png", photo(seed))
    listed()
    os.rename("data/my_HR/a.png", "c")
    os.rename("data/my_HR/b.png", "data/my_HR/a.png")
    os.rename("c", "data/my_HR/b.png")
    listed()
    assert np.array_equal(read_image(LR / "ax4.png"), down(photo(1)))
    assert np.array_equal(read_image(LR / "bx4.png"), down(photo(0)))


def edit_keeping_the_text(path, pixels):
    """Save other pixels with the texts of the PNG file, as some editors do."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    for key, value in Image.open(path).info.items():
        text.add_text(key, value)
    Image.fromarray(pixels).save(path, pnginfo=text)


@pytest.mark.parametrize("edit", [write_image, edit_keeping_the_text])
def test_an_lr_image_that_was_not_made_here_or_was_changed_since_is_never_touched(edit):
    for name, seed in (("a", 0), ("b", 1)):
        write_image(f"data/my_HR/{name}.png", photo(seed))
    listed()
    edit(LR / "ax4.png", down(photo(2)))
    given = (LR / "ax4.png").read_bytes()
    assert not is_made_here(LR / "ax4.png") and is_made_here(LR / "bx4.png")
    for name, seed in (("a", 3), ("b", 4), ("new", 5)):
        write_image(f"data/my_HR/{name}.png", photo(seed))
    row, _ = listed()
    assert (row["images"], row["made"], row["compared"]) == (3, 2, 1)
    assert (LR / "ax4.png").read_bytes() == given
    assert np.array_equal(read_image(LR / "bx4.png"), down(photo(4)))
    assert np.array_equal(read_image(LR / "newx4.png"), down(photo(5)))
    assert row["warnings"]  # it belongs to another image


def test_the_lr_image_of_a_removed_hr_is_reported():
    for name in ("a", "b"):
        write_image(f"data/my_HR/{name}.png", photo())
    listed()
    Path("data/my_HR/b.png").unlink()
    row, skipped = listed()
    assert row["images"] == 1 and skipped == {"bx4.png": "no HR image of this name"}
    os.rename("data/my_HR/a.png", "data/my_HR/c.png")  # now no LR image has a partner
    row, skipped = listed()
    assert row["images"] == row["made"] == 1 and list(skipped) == ["ax4.png", "bx4.png"]


def test_a_damaged_lr_image_that_was_made_here_is_made_again():
    write_image("data/my_HR/a.png", photo())
    listed()
    whole = (LR / "ax4.png").read_bytes()
    (LR / "ax4.png").write_bytes(whole[:-40])
    listed()
    assert (LR / "ax4.png").read_bytes() == whole


def test_no_lr_image_is_made_over_that_of_another_hr_image():
    # By most names, the LR image "ax4" is that of the HR image "a".
    for name in ("a", "b"):
        write_image(f"data/my_HR/{name}.png", photo())
    listed()
    write_image("data/my_HR/ax4.png", photo(1))
    listed()
    assert np.array_equal(read_image(LR / "ax4.png"), down(photo(0)))
    assert np.array_equal(read_image(LR / "ax4x4.png"), down(photo(1)))


@pytest.mark.skipif(os.name != "posix", reason="makes a symbolic link")
def test_nothing_is_made_where_something_else_lies():
    for name in ("a", "b"):
        write_image(f"data/my_HR/{name}.png", photo())
    LR.mkdir(parents=True)
    (LR / "bx4.png").symlink_to("/nowhere/on/an/unplugged/disk")
    row, skipped = listed()
    assert row["images"] == 1 and skipped["b.png"] == "no LR image of this name"
    assert (LR / "bx4.png").is_symlink()


# --- images that were not -------------------------------------------------------------------------


def make_given(count=8, change=lambda lr: lr, padding="replicate"):
    for k in range(count):
        write_image(f"data/my_HR/{k}.png", photo(k))
        write_image(LR / f"{k}x4.png", change(down(photo(k), padding)))


@pytest.mark.parametrize("padding", ["symmetric", "replicate"])
def test_true_pairs_of_both_borders_give_no_warning(padding):
    make_given(padding=padding)
    row, _ = listed()
    assert (row["images"], row["made"], row["compared"], row["warnings"]) == (8, 0, 8, {})
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    write_image("noise.png", noise)  # its borders differ by more than rounding hides
    write_image("lr.png", down(noise, padding))
    assert psnr_to_imresize(Path("noise.png"), Path("lr.png")) == 60


def test_psnr_is_that_of_the_definition():
    make_given(1)
    write_image(LR / "0x4.png", np.clip(down(photo(0)), 5, 255) - 5)
    lr = read_image(LR / "0x4.png").astype(float)
    errors = [((down(photo(0), border) - lr) ** 2).mean() for border in ("symmetric", "replicate")]
    measured = psnr_to_imresize(Path("data/my_HR/0.png"), LR / "0x4.png")
    assert measured == pytest.approx(10 * np.log10(255**2 / min(errors)))


def test_lr_images_of_other_images_are_named_with_their_psnr(capsys):
    make_given()
    shutil.copy(LR / "1x4.png", "c")
    shutil.copy(LR / "2x4.png", LR / "1x4.png")
    shutil.move("c", LR / "2x4.png")
    row, _ = listed()
    assert row["images"] == 8  # a warning: they are listed
    assert sorted(row["warnings"]) == [(LR / f"{k}x4.png").as_posix() for k in (1, 2)]
    printed = capsys.readouterr().out
    assert f"my: warning: {(LR / '1x4.png').as_posix()}: PSNR to imresize(HR) is " in printed
    assert "dB, the median of the set 60.0 dB" in printed


def noisy(lr):
    noise = np.random.default_rng(lr.sum()).normal(0, 20, lr.shape)
    return np.clip(lr + noise, 0, 255).astype(np.uint8)


def blurred(lr):
    return np.array(Image.fromarray(lr).filter(ImageFilter.GaussianBlur(2)))


@pytest.mark.parametrize("change", [noisy, blurred, lambda lr: np.roll(lr, 1, axis=1)])
def test_another_degradation_is_said_once_and_a_false_pair_in_it_is_found(change):
    make_given(change=change)
    row, _ = listed()
    (only,) = row["warnings"]
    assert only == LR.as_posix() and "another method" in row["warnings"][only]
    shutil.copy(LR / "3x4.png", LR / "5x4.png")
    row, _ = listed()
    assert list(row["warnings"]) == [LR.as_posix(), (LR / "5x4.png").as_posix()]


def test_a_set_whose_lr_images_are_all_of_other_images_has_a_warning():
    for k in range(4):
        write_image(f"data/my_HR/{k}.png", photo(k))
        write_image(LR / f"{k}x4.png", down(photo(k + 1)))
    row, _ = listed()
    assert "belonging to other images" in row["warnings"][LR.as_posix()]


def test_a_sample_is_compared_which_is_said_and_all_with_verify(monkeypatch, capsys):
    monkeypatch.setattr(lists, "NUM_COMPARED", 3)
    make_given(8)
    shutil.copy(LR / "2x4.png", LR / "1x4.png")  # not in the sample 0, 3, 6
    row, _ = listed()
    assert row["compared"] == 3 and not row["warnings"]
    printed = capsys.readouterr().out
    assert "3 of 8 LR images were compared with imresize(HR); --verify compares all" in printed
    assert main(["data/my_HR", "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "1x4.png: PSNR to imresize" in printed and "--verify" not in printed


def test_damage_that_the_comparison_meets_is_reported():
    make_given(2)
    data = bytearray(Path("data/my_HR/1.png").read_bytes())
    data[len(data) // 2] ^= 255
    Path("data/my_HR/1.png").write_bytes(data)
    row, skipped = listed()
    assert row["images"] == 1 and "damaged" in skipped["1.png"]


# --- where they are made --------------------------------------------------------------------------


@pytest.mark.parametrize("hr", ["data/my_HR/a.png", "data/my/HR/a.png", "data/my/a_HR.png"])
def test_lr_folder_says_where_lr_images_are_made_and_found_again(hr):
    write_image(hr, photo())
    before = sorted(Path("data").rglob("*"))
    for _ in range(2):
        create_data_lists(out="lists", lr_folder="elsewhere")
        assert sorted(Path("data").rglob("*")) == before
        (lr,) = Path("elsewhere/my_LR_bicubic/X4").iterdir()
        assert np.array_equal(read_image(lr), down(photo()))
    assert Path("lists/my.csv").read_text().count("elsewhere/my_LR_bicubic/X4/") == 1


def test_given_lr_images_are_used_though_an_lr_folder_is_named():
    make_given(1)
    listed(lr_folder="elsewhere")
    assert not Path("elsewhere").exists()


def test_a_folder_that_cannot_be_written_stops_one_set_and_the_message_cures_it(capsys):
    write_image("data/my_HR/a.png", photo())
    write_image("data/other_HR/a.png", photo())
    Path("data/my_LR_bicubic").write_text("a file, so that no folder can be made")
    assert main([]) == 1
    message = capsys.readouterr().err
    assert "my_LR_bicubic/X4: LR images cannot be made there" in message
    assert os.listdir("data/lists") == ["other.csv"]
    command = "python create_data_lists.py --lr-folder FOLDER"
    assert command in message and main(["--lr-folder", "elsewhere"]) == 0
    assert Path("data/lists/my.csv").exists()
