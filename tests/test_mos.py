"""The rating page's contents; the statistics against simulated raters with known opinions."""

import base64
import hashlib
import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from imresize import imresize
from tools import mos
from tools.compare import write_page
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


def score_folder(folder):
    return mos.score(folder.glob("*.json"))


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


# --- the page ------------------------------------------------------------------------------------


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


def test_chosen_methods_and_an_own_nearest_are_used_and_sizes_cropped_to_multiples_of_4(tmp_path):
    folder = make_results(tmp_path / "Set5", methods=["SRGAN", "nearest", "junk"], images=["a"])
    write_image(folder / "HR" / "a.png", picture(9, 18, 23))
    (folder / "SRGAN" / "._a.png").write_bytes(b"what macOS puts into archives")
    page = mos.make_page(folder, tmp_path / "rating.html", methods=["SRGAN", "nearest"])
    data = data_of(page)
    shown = {
        version: np.array(Image.open(io.BytesIO(base64.b64decode(data["images"][code]))))
        for code, version in versions_of(data).items()
    }
    assert {method for method, _ in shown} == {"SRGAN", "nearest", "HR"}
    assert np.array_equal(shown["nearest", "a"], picture(1))
    assert np.array_equal(shown["HR", "a"], picture(9, 18, 23)[:16, :20])


def test_what_cannot_be_rated_is_named(tmp_path):
    out = tmp_path / "rating.html"
    with pytest.raises(FileNotFoundError, match=r"nowhere.*: no such folder"):
        mos.make_page(tmp_path / "nowhere", out)
    folder = make_results(tmp_path / "Set5", methods=["SRGAN"])
    with pytest.raises(FileNotFoundError, match="HR: no images"):
        mos.make_page(folder, out)
    make_results(tmp_path / "bare", methods=["HR"])
    with pytest.raises(ValueError, match="no method to rate"):
        mos.make_page(tmp_path / "bare", out)
    make_results(folder, methods=["HR"])
    with pytest.raises(FileNotFoundError, match="SRGUN: no such folder"):
        mos.make_page(folder, out, methods=["SRGUN"])
    (folder / "SRGAN" / "bird.png").unlink()
    with pytest.raises(ValueError, match="SRGAN: bird: not in both"):
        mos.make_page(folder, out)
    write_image(folder / "SRGAN" / "bird.png", picture(1, 16, 24))
    write_image(folder / "SRGAN" / "owl.png", picture(1))
    with pytest.raises(ValueError, match=r"SRGAN: bird, owl: not in both .* or of different sizes"):
        mos.make_page(folder, out)
    assert not out.exists()


# --- the statistics ------------------------------------------------------------------------------

# How likely each score from 1 to 5 is: for strict and for lenient raters, half of each.
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
    scores = score_folder(tmp_path)
    table = scores.table
    assert list(table.index) == list(scores.counts.index) == ["HR", "SRGAN", "SRResNet", "nearest"]
    assert (scores.name, scores.raters, scores.refused) == ("Set5", 500, {})
    for method, row in table.iterrows():
        assert row["low"] < TRUE_MEANS[method] < row["high"]
        assert row["low"] < row["MOS"] < row["high"] < row["low"] + 0.15
        counts = scores.counts.loc[method]
        assert counts.sum() == 2500 and list(counts.index) == [1, 2, 3, 4, 5]
        assert counts @ [1, 2, 3, 4, 5] / 2500 == pytest.approx(row["MOS"])
    for method, below in itertools.pairwise(table.index):
        true = TRUE_MEANS[method] - TRUE_MEANS[below]
        assert table.loc[method, "ahead"] == pytest.approx(
            table.loc[method, "MOS"] - table.loc[below, "MOS"]
        )
        assert table.loc[method, "ahead low"] < true < table.loc[method, "ahead high"]
    assert np.isnan(table.loc["nearest", "ahead"])
    text = str(scores)
    assert "500 raters" in text and f"{table.loc['SRGAN', 'MOS']:.2f}" in text
    assert "SRResNet" in text and "nan" not in text.lower()


def test_the_same_scores_give_the_same_interval():
    values = np.random.default_rng(5).normal(size=12)
    assert mos.bootstrap_interval(values) == mos.bootstrap_interval(values)


@pytest.mark.parametrize("raters", [10, 26])
def test_interval_of_normal_values_is_students(raters):
    values = stats.norm.ppf((np.arange(raters) + 0.5) / raters, loc=3)  # normal without chance
    error = values.std(ddof=1) / np.sqrt(raters)
    expected = stats.t.interval(0.95, raters - 1, loc=3, scale=error)
    # Plain percentiles would be wrong by 0.4 and 0.14 of the standard error.
    assert mos.bootstrap_interval(values) == pytest.approx(expected, abs=0.1 * error)


@pytest.mark.parametrize("raters", [5, 26])
def test_interval_covers_the_true_mean_as_often_as_it_says(raters):
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        kinds = rng.integers(2, size=raters)
        means = [
            rng.choice(5, 5, p=OPINIONS["SRGAN"][kind]).mean() + 1 for kind in kinds
        ]  # five images each
        low, high = mos.bootstrap_interval(means)
        hits += low <= TRUE_MEANS["SRGAN"] <= high
    assert 0.9 <= hits / 400 <= 0.98  # plain percentiles: 0.85 for five raters


def test_a_difference_is_judged_within_raters(tmp_path, data):
    """Strict and lenient raters all put SRGAN one above SRResNet: only the means are vague."""
    for k in range(12):
        shift = k % 2
        opinion = {"nearest": 1, "SRResNet": 2 + shift, "SRGAN": 3 + shift, "HR": 5}
        scores_of = lambda method, _, opinion=opinion: opinion[method]  # noqa: E731
        write_result(tmp_path / f"{k}.json", data, f"rater {k}", k, scores_of)
    srgan = score_folder(tmp_path).table.loc["SRGAN"]
    assert srgan["high"] - srgan["low"] > 0.4
    assert (srgan["ahead low"], srgan["ahead high"]) == (1, 1)


def alpha_by_pairs(table):
    """Krippendorff's alpha as defined, of (units, raters): disagreement of all pairs of scores."""
    units, raters = table.shape
    within = [
        (table[u, i] - table[u, j]) ** 2
        for u in range(units)
        for i in range(raters)
        for j in range(raters)
        if i != j
    ]
    values = table.ravel()
    every = [(a - b) ** 2 for i, a in enumerate(values) for j, b in enumerate(values) if i != j]
    return 1 - np.mean(within) / np.mean(every)


def test_krippendorff_alpha_is_that_of_the_published_example_and_of_the_definition():
    # The worked example of Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability",
    # section A: alpha = 0.095.
    meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    example = pd.DataFrame({"Meg": meg, "Owen": owen})
    assert mos.krippendorff_alpha(example) == pytest.approx(0.095, abs=0.0005)
    table = np.random.default_rng(2).integers(1, 6, (7, 4))
    assert mos.krippendorff_alpha(pd.DataFrame(table)) == pytest.approx(alpha_by_pairs(table))
    assert mos.krippendorff_alpha(pd.DataFrame([[1, 1], [3, 3], [5, 5]])) == 1
    assert np.isnan(mos.krippendorff_alpha(pd.DataFrame([[1], [3], [5]])))


def test_agreement_and_counts_are_those_of_all_scores(tmp_path, data):
    rng = np.random.default_rng(3)
    versions = versions_of(data)
    given = {version: [] for version in versions.values()}
    for k in range(4):
        opinion = {version: good_scores(version[0]) for version in versions.values()}
        opinion |= {("SRGAN", image): int(rng.integers(1, 6)) for image in IMAGES}
        order = [list(versions)[i] for i in rng.permutation(len(versions))]
        scores = [[code, opinion[versions[code]]] for code in order]
        write_result(tmp_path / f"{k}.json", data, f"rater {k}", k, scores=scores)
        for version, value in opinion.items():
            given[version].append(value)
    scores = score_folder(tmp_path)
    assert scores.agreement == pytest.approx(alpha_by_pairs(np.array(list(given.values()))))
    for method, counts in scores.counts.iterrows():
        values = [value for image in IMAGES for value in given[method, image]]
        assert counts.tolist() == [values.count(value) for value in (1, 2, 3, 4, 5)]


def test_who_fails_the_calibration_is_named_and_left_out(tmp_path, data):
    rng = np.random.default_rng(3)
    write_result(tmp_path / "good.json", data, "Good", 1)
    just = lambda method, image: (4 if method == "HR" else 2) + (image > "bird")  # noqa: E731
    write_result(tmp_path / "just.json", data, "Just", 2, just)  # means 4.6 and 2.6
    upside = lambda method, _: 6 - good_scores(method)  # noqa: E731
    write_result(tmp_path / "upside.json", data, "Upside", 3, upside)
    write_result(tmp_path / "same.json", data, "Same", 4, lambda *_: 3)
    for k in range(40):
        chance = lambda *_: rng.integers(1, 6)  # noqa: E731
        write_result(tmp_path / f"random{k}.json", data, f"Random {k}", 10 + k, chance)
    scores = score_folder(tmp_path)
    refused = {Path(path).stem: reason for path, reason in scores.refused.items()}
    assert {"same", "upside"} <= refused.keys() and not {"good", "just"} & refused.keys()
    assert len(refused) >= 2 + 37 and scores.raters == 44 - len(refused)
    assert "failed the calibration" in refused["same"] and "3.00 and HR 3.00" in refused["same"]
    assert refused["same"] in str(scores)
    with pytest.raises(ValueError, match=r"no ratings left to count(.|\n)*failed the calibration"):
        mos.score([tmp_path / "same.json"])


def test_one_rater_has_a_mean_and_no_interval(tmp_path, data):
    scores = mos.score([write_result(tmp_path / "a.json", data)])
    assert scores.table["MOS"].tolist() == [5, 4, 3, 1]
    assert scores.table["low"].isna().all() and np.isnan(scores.agreement)
    mos.plot_scores(scores).savefig(io.BytesIO())


# --- result files --------------------------------------------------------------------------------


GOOD = [["a", 1], ["b", 5]]
BROKEN = {  # what is wrong: (changes of a good result of two images, what must be said)
    "page": ({"page": 7}, "does not belong"),
    "page of another key": ({"page": "0" * 16}, "does not belong"),
    "key type": ({"key": None}, "AttributeError"),
    "scores type": ({"scores": {"a": 1}}, "ValueError"),
    "score too high": ({"scores": [["a", 6], GOOD[1]]}, "other than 1, 2, 3, 4, 5: {6}"),
    "score zero": ({"scores": [["a", 0], GOOD[1]]}, "other than 1, 2, 3, 4, 5: {0}"),
    "score text": ({"scores": [["a", "3"], GOOD[1]]}, "other than 1, 2, 3, 4, 5: {'3'}"),
    "score fraction": ({"scores": [["a", 3.5], GOOD[1]]}, "other than 1, 2, 3, 4, 5: {3.5}"),
    "score NaN": ({"scores": [["a", float("nan")], GOOD[1]]}, "other than 1, 2, 3, 4, 5: {nan}"),
    "no score": ({"scores": [["a", None], GOOD[1]]}, "other than 1, 2, 3, 4, 5: {None}"),
    "image missing": ({"scores": GOOD[1:]}, "not one score for each of 2 images"),
    "image unknown": ({"scores": [["x", 3], GOOD[1]]}, "not one score for each of 2 images"),
    "image twice": ({"scores": [*GOOD, GOOD[0]]}, "not one score for each of 2 images"),
    "entry no pair": ({"scores": [3]}, "TypeError"),
    "rater type": ({"rater": ["Anna"]}, "TypeError"),
    "finished": ({"finished": None}, "TypeError"),
    "finished text": ({"finished": "yesterday"}, "'yesterday' does not match"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_malformed_results_are_named_and_not_counted(tmp_path, what):
    versions = {"a": ["nearest", "bird"], "b": ["HR", "bird"]}
    key = base64.b64encode(json.dumps({"set": "Set1", "images": versions}).encode()).decode()
    data = {"key": key, "page": hashlib.sha256(key.encode()).hexdigest()[:16]}
    good = write_result(tmp_path / "good.json", data, scores=GOOD)
    changes, said = BROKEN[what]
    changes = {"rater": "Bob", "scores": GOOD} | changes
    bad = write_result(tmp_path / "bad.json", data, seed=2, **changes)
    scores = mos.score([good, bad])
    assert scores.raters == 1
    assert list(scores.refused) == [str(bad)] and said in scores.refused[str(bad)]
    assert f"not counted: {bad}" in str(scores)
    with pytest.raises(ValueError, match="no ratings left"):
        mos.score([bad])


def test_names_reach_the_terminal_without_control_codes(tmp_path, data):
    write_result(tmp_path / "good.json", data)
    write_result(tmp_path / "bad.json", data, "\x1b[31mBob", 2, lambda *_: 3)
    scores = score_folder(tmp_path)
    assert "bob" in str(scores) and "\x1b" not in str(scores)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'"text"', b"{}", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 5000, b"\x89PNG\r\n"],
)
def test_files_that_are_no_results_are_named(tmp_path, data, content):
    good, bad = write_result(tmp_path / "good.json", data), tmp_path / "bad.json"
    bad.write_bytes(content)
    scores = mos.score([good, bad])
    assert scores.raters == 1
    assert "no readable result of a rating page" in scores.refused[str(bad)]


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


def test_missing_files_and_patterns(tmp_path, data):
    good = write_result(tmp_path / "good.json", data)
    scores = mos.score([good, tmp_path / "none.json"])
    assert "No such file" in scores.refused[str(tmp_path / "none.json")]
    assert mos.score([tmp_path / "g*.json"]).raters == mos.score([str(good)]).raters == 1
    assert mos.score([good, good]).refused == {}
    with pytest.raises(ValueError, match="no ratings left to count; more files are needed"):
        mos.score([])


def test_the_latest_file_of_a_rater_counts(tmp_path, data):
    early, late = "2026-01-02T03:04:05.678Z", "2026-01-02T03:04:06.001Z"
    better = {"nearest": 1, "SRResNet": 2, "SRGAN": 5, "HR": 5}
    corrected = lambda method, _: better[method]  # noqa: E731
    for first, second in (("a", "b"), ("b", "a")):  # whatever the files are called
        old = write_result(tmp_path / f"{first}.json", data, "Ann", 1, finished=early)
        new = write_result(tmp_path / f"{second}.json", data, "ann ", 2, corrected, finished=late)
        scores = mos.score([old, new])
        assert scores.raters == 1 and list(scores.refused) == [str(old)]
        assert f"same rater as {new}" in scores.refused[str(old)]
        assert scores.table["MOS"].to_dict() == better
    other = write_result(tmp_path / "d.json", data, "Dora", 3)
    assert mos.score([new, other]).raters == 2


def test_files_of_another_page_are_named_and_refused(tmp_path, data):
    folder = make_results(tmp_path / "Set14", start=50)
    other = data_of(mos.make_page(folder, tmp_path / "other.html"))
    mine = [write_result(tmp_path / f"{k}.json", data, f"rater {k}", k) for k in (1, 2)]
    stray = write_result(tmp_path / "0.json", other, "rater 1", 1)  # who also rated the other page
    scores = mos.score([stray, *mine])
    assert scores.name == "Set5" and scores.raters == 2
    assert "another page ('Set14')" in scores.refused[str(stray)]


def test_only_ratings_of_the_named_page_count_even_if_most_are_of_another(tmp_path):
    pages = {}
    for start, name in enumerate(["Set5", "Set14"]):
        folder = make_results(tmp_path / name, start=50 * start)
        pages[name] = mos.make_page(folder, tmp_path / f"{name}.html")
    files = [
        write_result(tmp_path / f"{k}.json", data_of(pages[name]), f"rater {k}", k)
        for k, name in enumerate(["Set14", "Set14", "Set5"])
    ]
    assert mos.score(files).name == "Set14"
    scores = mos.score(files, pages["Set5"])
    assert scores.name == "Set5" and scores.raters == 1
    assert list(scores.refused) == [str(file) for file in files[:2]]
    with pytest.raises(ValueError, match=r"no ratings left to count(.|\n)*page \('Set14'\)"):
        mos.score(files[:2], pages["Set5"])
    with pytest.raises(FileNotFoundError, match=r"none.html"):
        mos.score(files, tmp_path / "none.html")
    with pytest.raises(ValueError, match=r"0.json: not a page with images"):
        mos.score(files, files[0])
    other = write_page({"a": {"SRGAN": picture(0)}}, tmp_path / "compare.html")
    with pytest.raises(ValueError, match=r"compare.html: not a rating page"):
        mos.score(files, other)


# --- the figure and the command line -------------------------------------------------------------


def test_plot_shows_the_shares_and_the_means(tmp_path, data):
    for k in range(4):
        opinion = {"nearest": 1, "SRResNet": 3, "SRGAN": 3 + k % 2, "HR": 5}
        scores_of = lambda method, _, opinion=opinion: opinion[method]  # noqa: E731
        write_result(tmp_path / f"{k}.json", data, f"rater {k}", k, scores_of)
    axes = mos.plot_scores(score_folder(tmp_path)).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["nearest", "SRResNet", "SRGAN", "HR"]
    shares = np.asarray(axes.collections[0].get_array())  # (scores from 1 up, methods)
    assert shares.T.tolist() == [
        [1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0.5, 0.5, 0],
        [0, 0, 0, 0, 1],
    ]
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 3.5), (0.5, 5.5))
    assert axes.lines[0].get_ydata().tolist() == [1, 3, 3.5, 5]


def test_command_line(tmp_path, data, capsys):
    folder = make_results(tmp_path / "Set5")
    mos.main(["page", str(folder), "-o", str(tmp_path / "rating.html")])
    assert "rating.html" in capsys.readouterr().out
    assert data_of(tmp_path / "rating.html")["page"] == data["page"]
    write_result(tmp_path / "a.json", data, "Ann", 1)
    write_result(tmp_path / "b.json", data, "Bob", 2, lambda *_: 3)
    mos.main(["score", str(tmp_path / "*.json"), "--plot", str(tmp_path / "mos.png")])
    assert "1 raters" in capsys.readouterr().out
    with Image.open(tmp_path / "mos.png") as figure:
        assert figure.width > 300
    mos.main(["score", str(tmp_path / "*.json"), "--page", str(tmp_path / "rating.html")])
    assert "1 raters" in capsys.readouterr().out
    for arguments in (["score", str(tmp_path / "none.json")], ["page", str(tmp_path / "none")]):
        with pytest.raises(SystemExit, match=r"error: (.|\n)*none"):
            mos.main(arguments)
