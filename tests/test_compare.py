"""The comparison page's contents: pixels, scores, order of methods, and what is refused."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from test_mos import data_of, make_results, picture

from metrics import psnr, ssim
from tools import compare
from utils import read_image, write_image

METHODS = ["SRGAN", "HR", "bicubic", "base_mode"]
ORDER = ["bicubic", "base_mode", "SRGAN", "HR"]


def versions_in(page):
    """{(image, method): its entry}, in the order of the page."""
    images = data_of(page)["images"]
    return {(image["name"], v["method"]): v for image in images for v in image["versions"]}


def pixels(version):
    return np.array(Image.open(io.BytesIO(base64.b64decode(version["png"]))))


@pytest.fixture
def folder(tmp_path):
    for k, (method, image) in enumerate((m, i) for m in METHODS for i in ("baby", "bird")):
        write_image(tmp_path / "Set2" / method / f"{image}.png", picture(k, 20, 24))
    return tmp_path / "Set2"


def test_page_holds_every_version_pixel_by_pixel_with_its_scores(tmp_path, folder):
    write_image(folder / ".ipynb_checkpoints" / "baby.png", picture(0))  # is no method
    page = compare.write_page(folder, tmp_path / "compare.html")
    versions = versions_in(page)
    assert list(versions) == [(image, method) for image in ("baby", "bird") for method in ORDER]
    for (image, method), version in versions.items():
        array, hr = (read_image(folder / m / f"{image}.png") for m in (method, "HR"))
        assert np.array_equal(pixels(version), array)
        scores = (None, None) if method == "HR" else (psnr(array, hr), ssim(array, hr))
        assert (version["psnr"], version["ssim"]) == scores
    assert data_of(page)["title"] == "Set2"


def test_chosen_methods_come_in_their_order_and_the_original_last(tmp_path, folder):
    out = tmp_path / "compare.html"
    page = compare.write_page(folder, out, "Ours", methods=["SRGAN", "HR", "bicubic"])
    assert [method for _, method in versions_in(page)][:3] == ["SRGAN", "bicubic", "HR"]
    assert data_of(page)["title"] == "Ours"


def test_images_are_cropped_to_multiples_of_4_so_that_the_original_fits(tmp_path, folder):
    larger = picture(9, 23, 26)
    write_image(folder / "HR" / "baby.png", larger)
    page = compare.write_page(folder, tmp_path / "compare.html")
    assert np.array_equal(pixels(versions_in(page)["baby", "HR"]), larger[:20, :24])


def test_ones_own_picture_has_no_scores(tmp_path):
    arrays = {"bicubic": picture(0, 8, 12), "SRGAN": picture(1, 8, 12)}
    page = compare.write_page({"my cat": arrays}, tmp_path / "own.html")
    assert data_of(page)["title"] == "my cat"
    for (_, method), version in versions_in(page).items():
        assert np.array_equal(pixels(version), arrays[method])
        assert version["psnr"] is version["ssim"] is None


def test_a_folder_of_one_image_names_its_files_by_method(tmp_path):
    for k, method in enumerate(METHODS):
        write_image(tmp_path / "one_image" / f"{method}.png", picture(k, 20, 24))
    page = compare.write_page(tmp_path / "one_image", tmp_path / "own.html")
    assert list(versions_in(page)) == [("one_image", method) for method in ORDER]


def test_page_needs_no_network_and_names_cannot_break_it(tmp_path):
    name = "</script><b>{{DATA}}"
    page = compare.write_page({name: {"<i>": picture(0)}}, tmp_path / "compare.html", title=name)
    assert data_of(page)["images"][0]["name"] == data_of(page)["title"] == name
    text = re.sub(r'"[A-Za-z0-9+/=]{200,}"', "", page.read_text(encoding="utf-8"))
    assert not re.search(r"https?:|//[a-z]+\.|<script[^>]+src|<link[^>]+stylesheet|@import", text)
    assert text.count("</script>") == 2


def test_what_cannot_be_compared_is_named(tmp_path, folder):
    out = tmp_path / "compare.html"

    def refused(images, match, **options):
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            compare.write_page(images, out, **options)
        assert not out.exists()

    refused(tmp_path / "nowhere", r"nowhere: no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty: no images; expected <method>/<image>.png")
    refused(folder, r"SRGUN: no such folder", methods=["SRGUN"])
    (folder / "junk").mkdir()
    refused(folder, r"junk: no images in this folder", methods=["junk", "SRGAN"])
    write_image(folder / "SRGAN" / "owl.png", picture(0, 20, 24))
    write_image(folder / "SRGAN" / "bird.png", picture(0, 20, 28))
    refused(folder, r"SRGAN: bird, owl: not in both SRGAN and HR, or of different sizes")
    Image.fromarray(picture(0, 20, 24)).save(folder / "SRGAN" / "bird.bmp")
    refused(folder, r"bird.png: a second file of image 'bird'")
    refused({}, "no images to compare")
    refused({"a": {}}, "no images to compare")
    refused({"a": {"x": picture(0)}, "b": {"y": picture(0)}}, "b: has other methods than a")
    refused({"a": {"x": picture(0), "y": picture(0, 16, 24)}}, r"a, y: uint8 \(16, 24, 3\), but x")
    refused({"a": {"x": picture(0) / 255}}, r"a, x: float64 .* expected uint8 RGB")
    refused({"a": {"x": picture(0)[..., 0]}}, r"a, x: uint8 \(16, 20\); expected uint8 RGB")
    refused({"a": {"x": picture(0), "HR": picture(0)}}, r"a, x: 16 x 20 pixels are too few")


def test_command_line(tmp_path, capsys):
    folder = make_results(tmp_path / "Set5", images=["baby"])
    out = tmp_path / "page.html"
    with pytest.raises(SystemExit, match=r"error: baby, SRGAN: 16 x 20 pixels are too few"):
        compare.main([str(folder), "-o", str(out)])
    for method in ("SRGAN", "SRResNet", "HR"):
        write_image(folder / method / "baby.png", picture(1, 20, 24))
    compare.main([str(folder), "-o", str(out), "--title", "Ours", "--methods", "SRGAN"])
    assert re.search(r"page.html: 0.\d MB; open it in a browser", capsys.readouterr().out)
    assert list(versions_in(out)) == [("baby", "SRGAN"), ("baby", "HR")]
    assert data_of(out)["title"] == "Ours"
