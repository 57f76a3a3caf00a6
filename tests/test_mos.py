"""The rating page's contents, and the statistics against simulated raters whose opinions are known."""

import base64
import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imresize import imresize
from tools import mos
from utils import write_image

IMAGES = ["baby", "bird", "butterfly", "head", "woman"]


def picture(seed, height=16, width=20):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_results(folder, methods=("SRGAN", "SRResNet", "HR"), images=IMAGES, start=0):
    for k, (method, image) in enumerate(itertools.product(methods, images), start):
        write_image(folder / method / f"{image}.png", picture(k))
    return folder


def data_of(page):
    return json.loads(
        re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)[1]
    )


def versions_of(data):
    """{code: (method, image)}, as the key says."""
    return {
        code: tuple(version)
        for code, version in json.loads(base64.b64decode(data["key"]))["images"].items()
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = make_results(tmp_path_factory.mktemp("results") / "Set5")
    return data_of(mos.make_page(folder, folder.parent / "rating.html"))


def good_scores(method, image=None):
    return {"nearest": 1, "SRResNet": 3, "SRGAN": 4, "HR": 5}[method]


def write_result(path, data, rater="Anna", seed=1, opinion=good_scores, **changes):
    """A file as the page makes it; `opinion(method, image)` gives the scores."""
    scores = [[code, int(opinion(*version))] for code, version in versions_of(data).items()]
    finished = "2026-01-02T03:04:05.678Z"
    result = {
        "page": data["page"],
        "key": data["key"],
        "rater": rater,
        "seed": seed,
        "finished": finished,
        "scores": scores,
    }
    path.write_text(json.dumps(result | changes), encoding="utf-8")
    return path


# -- the page ---------------------------------------------------------------------------------------------------------


def test_page_holds_every_version_pixel_by_pixel(tmp_path):
    folder = make_results(tmp_path / "Set5", images=["baby", "head"])
    data = data_of(mos.make_page(folder, tmp_path / "rating.html"))
    versions = versions_of(data)
    assert sorted(versions.values()) == sorted(
        itertools.product(["HR", "SRGAN", "SRResNet", "nearest"], ["baby", "head"])
    )
    assert data["images"].keys() == versions.keys()
    for code, (method, image) in versions.items():
        shown = np.array(Image.open(io.BytesIO(base64.b64decode(data["images"][code]))))
        source = folder / ("HR" if method == "nearest" else method) / f"{image}.png"
        expected = np.array(Image.open(source))
        if method == "nearest":
            expected = imresize(expected, 0.25).repeat(4, axis=0).repeat(4, axis=1)
        assert np.array_equal(shown, expected)


def test_page_names_no_method_and_no_image_and_needs_no_network(tmp_path):
    images = ["lighthouse", "my_cat"]
    folder = make_results(tmp_path / "Set5", methods=["SRGAN", "my_network", "HR"], images=images)
    text = mos.make_page(folder, tmp_path / "rating.html").read_text(encoding="utf-8")
    for name in ["SRGAN", "my_network", "nearest", "Set5", *images, "http:", "https:"]:
        assert name.lower() not in re.sub(r'"[A-Za-z0-9+/=]{200,}"', "", text).lower(), name
    codes = list(data_of(tmp_path / "rating.html")["images"])
    assert codes == sorted(codes), "their order tells something"


def test_page_depends_on_the_images_alone(tmp_path):
    first = make_results(tmp_path / "a" / "Set5")
    again = make_results(tmp_path / "b" / "Set5")
    pages = [
        mos.make_page(folder, tmp_path / f"{k}.html") for k, folder in enumerate((first, again))
    ]
    assert pages[0].read_bytes() == pages[1].read_bytes()
    changed = picture(0)
    changed[3, 4, 1] ^= 1
    write_image(again / "SRGAN" / "baby.png", changed)
    assert data_of(mos.make_page(again, tmp_path / "2.html"))["page"] != data_of(pages[0])["page"]


def test_own_nearest_methods_and_originals_elsewhere_are_used(tmp_path):
    folder = make_results(tmp_path / "Set5", methods=["SRGAN", "nearest", "junk"], images=["a"])
    write_image(
        tmp_path / "HR" / "a.png", picture(9, 18, 23)
    )  # of no multiple of 4: cut at the top left
    data = data_of(
        mos.make_page(
            folder, tmp_path / "rating.html", methods=["SRGAN", "nearest"], hr=tmp_path / "HR"
        )
    )
    shown = {version: np.array(Image.open(io.BytesIO(base64.b64decode(data["images"][code]))))
             for code, version in versions_of(data).items()}  # fmt: skip
    assert {method for method, _ in shown} == {"SRGAN", "nearest", "HR"}
    assert np.array_equal(shown["nearest", "a"], picture(1))
    assert np.array_equal(shown["HR", "a"], picture(9, 18, 23)[:16, :20])


def test_what_cannot_be_rated_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        mos.make_page(tmp_path / "nowhere")
    folder = make_results(tmp_path / "Set5", methods=["SRGAN"])
    with pytest.raises(FileNotFoundError, match="HR: no original images"):
        mos.make_page(folder)
    make_results(tmp_path / "bare", methods=["HR"])
    with pytest.raises(ValueError, match="no method to rate"):
        mos.make_page(tmp_path / "bare")
    make_results(folder, methods=["HR"])
    (folder / "SRGAN" / "bird.png").unlink()
    with pytest.raises(ValueError, match="SRGAN: has no image bird"):
        mos.make_page(folder)
    write_image(folder / "SRGAN" / "bird.png", picture(1, 16, 24))
    with pytest.raises(ValueError, match=r"bird.png: 24 x 16 pixels, but .*bird.png has 20 x 16"):
        mos.make_page(folder)
    assert not list(tmp_path.glob("*.html"))


# -- the statistics ---------------------------------------------------------------------------------------------------

# What the simulated raters think: how likely each score from 1 to 5 is, for strict and for lenient people, half of each.
OPINIONS = {
    "nearest": ([0.95, 0.05, 0, 0, 0], [0.8, 0.2, 0, 0, 0]),
    "SRResNet": ([0.2, 0.5, 0.3, 0, 0], [0, 0.1, 0.5, 0.4, 0]),
    "SRGAN": ([0, 0.2, 0.5, 0.3, 0], [0, 0, 0.2, 0.5, 0.3]),
    "HR": ([0, 0, 0, 0.2, 0.8], [0, 0, 0, 0.05, 0.95]),
}
TRUE_MEANS = {
    method: np.mean(chances, axis=0) @ [1, 2, 3, 4, 5] for method, chances in OPINIONS.items()
}


def test_500_simulated_raters_are_recovered(tmp_path, data):
    rng = np.random.default_rng(0)
    for k in range(500):
        chances = {method: of_kinds[rng.integers(2)] for method, of_kinds in OPINIONS.items()}
        opinion = {method: rng.choice(5, 5, p=p) + 1 for method, p in chances.items()}
        scores = [
            [code, int(opinion[m][IMAGES.index(image)])]
            for code, (m, image) in versions_of(data).items()
        ]
        write_result(tmp_path / f"{k}.json", data, f"rater {k}", k, scores=scores)
    table = mos.score(tmp_path)
    assert [row["method"] for row in table.rows] == ["HR", "SRGAN", "SRResNet", "nearest"]
    assert (table.raters, table.images, table.failed, table.refused) == (500, 5, {}, {})
    for row in table.rows:
        assert row["low"] < TRUE_MEANS[row["method"]] < row["high"]
        assert row["low"] < row["mos"] < row["high"] < row["low"] + 0.15
        assert sum(row["counts"]) == 2500
        assert np.dot(row["counts"], [1, 2, 3, 4, 5]) / 2500 == pytest.approx(row["mos"])
    for row, below in itertools.pairwise(table.rows):
        true = TRUE_MEANS[row["method"]] - TRUE_MEANS[below["method"]]
        assert row["ahead"] == pytest.approx(row["mos"] - below["mos"])
        assert row["ahead_low"] < true < row["ahead_high"]
    assert table.rows[-1]["ahead"] is None
    text = str(table)
    assert "500 raters" in text and f"{table.rows[1]['mos']:.2f}" in text and "SRResNet" in text


@pytest.mark.parametrize("raters", [5, 26])
def test_interval_covers_the_true_mean_as_often_as_it_says(raters):
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(400):
        kinds = rng.integers(2, size=raters)
        means = [
            rng.choice(5, 5, p=OPINIONS["SRGAN"][kind]).mean() + 1 for kind in kinds
        ]  # five images each
        low, high = mos.bootstrap_interval(means, seed=trial)
        hits += low <= TRUE_MEANS["SRGAN"] <= high
    assert 0.9 <= hits / 400 <= 0.98  # plain percentiles: 0.85 for five raters


def test_a_difference_is_judged_within_raters(tmp_path, data):
    """Raters of very different strictness who all put SRGAN one above SRResNet: the means are vague, the difference is not."""
    for k in range(12):
        shift = k % 2
        opinion = {"nearest": 1, "SRResNet": 2 + shift, "SRGAN": 3 + shift, "HR": 5}
        write_result(
            tmp_path / f"{k}.json",
            data,
            f"rater {k}",
            k,
            lambda method, _, opinion=opinion: opinion[method],
        )
    rows = {row["method"]: row for row in mos.score(tmp_path).rows}
    assert rows["SRGAN"]["high"] - rows["SRGAN"]["low"] > 0.4
    assert (rows["SRGAN"]["ahead_low"], rows["SRGAN"]["ahead_high"]) == (1, 1)


def alpha_by_pairs(table):
    """Krippendorff's alpha as it is defined: disagreement of pairs within units over disagreement of all pairs."""
    raters, units = table.shape
    within = [
        (table[i, u] - table[j, u]) ** 2
        for u in range(units)
        for i in range(raters)
        for j in range(raters)
        if i != j
    ]
    values = table.ravel()
    every = [(a - b) ** 2 for i, a in enumerate(values) for j, b in enumerate(values) if i != j]
    return 1 - np.mean(within) / np.mean(every)


def test_krippendorff_alpha():
    # The worked example of Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section A: alpha = 0.095.
    meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert mos.krippendorff_alpha([meg, owen]) == pytest.approx(0.095, abs=0.0005)
    table = np.random.default_rng(2).integers(1, 6, (4, 7))
    assert mos.krippendorff_alpha(table) == pytest.approx(alpha_by_pairs(table))
    assert mos.krippendorff_alpha([[1, 3, 5]] * 3) == 1
    assert np.isnan(mos.krippendorff_alpha([[1, 3, 5]]))
    assert np.isnan(mos.krippendorff_alpha([[3, 3], [3, 3]]))


def test_who_fails_the_calibration_is_named_and_left_out(tmp_path, data):
    rng = np.random.default_rng(3)
    write_result(tmp_path / "good.json", data, "Good", 1)
    write_result(
        tmp_path / "just.json", data, "Just", 2, lambda method, _: 4 if method == "HR" else 2
    )
    write_result(tmp_path / "same.json", data, "Same", 3, lambda *_: 3)
    write_result(
        tmp_path / "upside.json", data, "Upside", 4, lambda method, _: 6 - good_scores(method)
    )
    for k in range(40):
        write_result(
            tmp_path / f"random{k}.json", data, f"Random {k}", 10 + k, lambda *_: rng.integers(1, 6)
        )
    table = mos.score(tmp_path)
    failed = {Path(path).name for path in table.failed}
    assert {"same.json", "upside.json"} <= failed
    assert not {"good.json", "just.json"} & failed
    assert len(failed) >= 2 + 37
    assert "Same gave nearest 3.00 and HR 3.00" in str(table)
    assert table.raters == 42 + 2 - len(failed)
    everyone = mos.score(tmp_path, keep_all=True)
    assert everyone.raters == 44 and everyone.failed == table.failed
    assert everyone.rows != table.rows


def test_one_rater_has_a_mean_and_no_interval(tmp_path, data):
    table = mos.score([write_result(tmp_path / "a.json", data)])
    assert [row["mos"] for row in table.rows] == [5, 4, 3, 1]
    assert all(np.isnan(row["low"]) for row in table.rows)
    mos.plot_scores(table).savefig(io.BytesIO())


# -- result files -----------------------------------------------------------------------------------------------------


def broken(data):
    """{what is wrong: (changes of a good result, what must be said)}"""
    codes = list(versions_of(data))
    good = [[code, 3] for code in codes]
    nested = json.loads(base64.b64decode(data["key"]))
    no_hr = mos._pack(
        {"set": "Set5", "images": {c: v for c, v in nested["images"].items() if v[0] != "HR"}}
    )
    escape = mos._pack(nested | {"set": "\x1b[2J"})
    return {
        "page": ({"page": 7}, "key is damaged"),
        "page of another key": ({"page": "0" * 16}, "key is damaged"),
        "key type": ({"key": None}, "key is damaged"),
        "key without HR": ({"key": no_hr, "page": mos._page_name(no_hr)}, "key is damaged"),
        "key with an escape code": (
            {"key": escape, "page": mos._page_name(escape)},
            "key is damaged",
        ),
        "key no JSON": ({"key": "AAAA", "page": mos._page_name("AAAA")}, "key is damaged"),
        "key a list": ({"key": "W10=", "page": mos._page_name("W10=")}, "key is damaged"),
        "scores type": ({"scores": {"a": 1}}, "not a list"),
        "score too high": ({"scores": [[codes[0], 6], *good[1:]]}, "not 1, 2, 3, 4 or 5: 6"),
        "score zero": ({"scores": [[codes[0], 0], *good[1:]]}, "not 1, 2, 3, 4 or 5: 0"),
        "score text": ({"scores": [[codes[0], "3"], *good[1:]]}, "not 1, 2, 3, 4 or 5"),
        "score true": ({"scores": [[codes[0], True], *good[1:]]}, "not 1, 2, 3, 4 or 5: True"),
        "score fraction": ({"scores": [[codes[0], 3.5], *good[1:]]}, "not 1, 2, 3, 4 or 5: 3.5"),
        "score NaN": (
            {"scores": [[codes[0], float("nan")], *good[1:]]},
            "not 1, 2, 3, 4 or 5: nan",
        ),
        "no score": ({"scores": [[codes[0], None], *good[1:]]}, "not 1, 2, 3, 4 or 5: None"),
        "image missing": ({"scores": good[1:]}, "19 of 20 images"),
        "image unknown": ({"scores": [["x", 3], *good[1:]]}, "no image of the page"),
        "image twice": ({"scores": [*good, good[0]]}, "for one twice"),
        "entry no pair": ({"scores": [3]}, "no image of the page"),
        "code a list": ({"scores": [[[], 3]]}, "no image of the page"),
        "rater type": ({"rater": ["Anna"]}, "rater's name"),
        "rater empty": ({"rater": ""}, "rater's name"),
        "rater long": ({"rater": "A" * 41}, "rater's name"),
        "rater HTML": ({"rater": "<img src=x onerror=alert(1)>"}, "rater's name"),
        "rater script": ({"rater": '";alert(1)//'}, "rater's name"),
        "rater escape code": ({"rater": "\x1b[31mAnna"}, "rater's name"),
        "rater surrogate": ({"rater": "\ud800"}, "rater's name"),
        "seed": ({"seed": "1"}, "seed"),
        "finished": ({"finished": None}, "finished"),
        "finished text": ({"finished": "yesterday"}, "finished"),
    }


@pytest.mark.parametrize(
    "what", broken({"key": mos._pack({"set": "", "images": {"a": ["HR", "b"]}})})
)
def test_malformed_results_are_named_and_not_counted(tmp_path, data, what):
    good = write_result(tmp_path / "good.json", data)
    changes, said = broken(data)[what]
    bad = write_result(tmp_path / "bad.json", data, **({"rater": "Bob", "seed": 2} | changes))
    table = mos.score([good, bad])
    assert table.raters == 1
    assert list(table.refused) == [str(bad)] and said in table.refused[str(bad)]
    assert (
        str(bad) in str(table)
        and "\x1b" not in str(table)
        and "<" not in table.refused[str(bad)].split("none that")[0]
    )
    with pytest.raises(ValueError, match="no ratings left"):
        mos.score([bad])


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "damaged"),
        (b"[]", "not a result"),
        (b'"text"', "not a result"),
        (b"{}", "not a result"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[" * 100_000, ""),
        (b"1" * 5000, ""),
        (b" " * 10_000_001, "too large"),
        (b"\x89PNG\r\n", "damaged"),
    ],
)
def test_files_that_are_no_results_are_named(tmp_path, data, content, said):
    good, bad = write_result(tmp_path / "good.json", data), tmp_path / "bad.json"
    bad.write_bytes(content)
    table = mos.score([good, bad])
    assert table.raters == 1 and said in table.refused[str(bad)]


def test_every_truncation_is_named(tmp_path, data):
    good = write_result(tmp_path / "good.json", data)
    content = good.read_bytes()
    for length in range(0, len(content), 97):
        cut = tmp_path / "cut.json"
        cut.write_bytes(content[:length])
        assert str(cut) in mos.score([good, cut]).refused


def test_a_result_copied_as_text_with_a_byte_order_mark_counts(tmp_path, data):
    path = write_result(tmp_path / "a.txt", data, rater="王小明 Ünal-O'Neill 3.")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert mos.score([path]).raters == 1


def test_missing_files_folders_and_patterns(tmp_path, data):
    good = write_result(tmp_path / "good.json", data)
    table = mos.score([good, tmp_path / "none.json"])
    assert "No such file" in table.refused[str(tmp_path / "none.json")]
    assert (
        mos.score(tmp_path).raters
        == mos.score([tmp_path / "g*.json"]).raters
        == mos.score(str(good)).raters
        == 1
    )
    assert mos.score([good, good]).refused == {}
    with pytest.raises(ValueError, match="no ratings left to count; name the files"):
        mos.score([])


def test_the_latest_file_of_a_rater_counts(tmp_path, data):
    early, late = "2026-01-02T03:04:05.678Z", "2026-01-02T03:04:06.001Z"
    better = {"nearest": 1, "SRResNet": 2, "SRGAN": 5, "HR": 5}
    for first, second in (("a", "b"), ("b", "a")):  # whatever the files are called
        old = write_result(tmp_path / f"{first}.json", data, "Ann", 1, finished=early)
        new = write_result(
            tmp_path / f"{second}.json", data, "ann ", 2, lambda m, _: better[m], finished=late
        )
        table = mos.score([old, new])
        assert table.raters == 1 and list(table.refused) == [str(old)]
        assert f"same rater as {new}" in table.refused[str(old)]
        assert {row["method"]: row["mos"] for row in table.rows} == better
    renamed = write_result(tmp_path / "c.json", data, "Carol", 2, finished=early)
    assert (
        "same rater as" in mos.score([new, renamed]).refused[str(renamed)]
    )  # one seed: one and the same session
    other = write_result(tmp_path / "d.json", data, "Dora", 3)
    assert mos.score([new, other]).raters == 2


def test_files_of_another_page_are_named_and_refused(tmp_path, data):
    folder = make_results(tmp_path / "Set14", start=50)
    other = data_of(mos.make_page(folder, tmp_path / "other.html"))
    mine = [write_result(tmp_path / f"{k}.json", data, f"rater {k}", k) for k in (1, 2)]
    stray = write_result(tmp_path / "0.json", other, "rater 1", 1)  # who also rated the other page
    table = mos.score([stray, *mine])
    assert table.name == "Set5" and table.raters == 2
    assert "another page (Set14" in table.refused[str(stray)]


# -- the picture and the command line ---------------------------------------------------------------------------------


def test_plot_shows_the_shares_and_the_means(tmp_path, data):
    for k in range(4):
        opinion = {"nearest": 1, "SRResNet": 3, "SRGAN": 3 + k % 2, "HR": 5}
        write_result(
            tmp_path / f"{k}.json",
            data,
            f"rater {k}",
            k,
            lambda method, _, opinion=opinion: opinion[method],
        )
    axes = mos.plot_scores(mos.score(tmp_path)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "nearest",
        "SRResNet",
        "SRGAN",
        "HR",
    ]
    shares = np.asarray(axes.images[0].get_array())
    assert shares.T.tolist() == [
        [1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0.5, 0.5, 0],
        [0, 0, 0, 0, 1],
    ]
    assert axes.images[0].get_extent() == [-0.5, 3.5, 0.5, 5.5] and axes.images[0].origin == "lower"
    assert axes.lines[0].get_ydata().tolist() == [1, 3, 3.5, 5]


def test_command_line(tmp_path, data, capsys):
    folder = make_results(tmp_path / "Set5")
    assert mos.main(["page", str(folder), "-o", str(tmp_path / "rating.html")]) == 0
    assert "rating.html" in capsys.readouterr().out
    assert data_of(tmp_path / "rating.html")["page"] == data["page"]
    write_result(tmp_path / "a.json", data, "Ann", 1)
    write_result(tmp_path / "b.json", data, "Bob", 2, lambda *_: 3)
    assert mos.main(["score", str(tmp_path / "*.json"), "--plot", str(tmp_path / "mos.png")]) == 0
    assert "1 raters" in capsys.readouterr().out and Image.open(tmp_path / "mos.png").width > 300
    assert mos.main(["score", "--keep-all", str(tmp_path)]) == 0
    assert "2 raters" in capsys.readouterr().out
    assert mos.main(["score", str(tmp_path / "none.json")]) == 1
    assert mos.main(["page", str(tmp_path / "none")]) == 1
    assert "error: " in capsys.readouterr().err
