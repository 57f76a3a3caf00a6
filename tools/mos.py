"""Mean opinion scores: the blind rating page and the statistics of its results; makes no SR images.

`python -m tools.mos page results/Set5` writes one HTML file, where raters rate and download their
results; `python -m tools.mos score ratings/*.json` prints the table. The protocol is that of Ledig
et al. 2017, section 3.3: every rater sees every version of every image in random order and gives
each a whole score from 1 (bad) to 5 (excellent), after examples of a 1 (nearest) and a 5 (HR).
"""

import argparse
import base64
import glob
import hashlib
import json
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import bootstrap, norm, t
from skimage import data as photographs

from imresize import imresize
from tools.pages import ORIGINAL, fill_template, png, read_data, read_versions
from utils import SCALE, atomic_path, progress_bar

WORST, BEST = "nearest", ORIGINAL  # the two methods that calibrate the scale
CALIBRATION = 2  # points between a rater's means for them: half of the scale from 1 to 5


def make_page(folder: str | Path, out: str | Path, methods: list[str] | None = None) -> Path:
    """Write the rating page for the images `folder`/<method>/<image>.png and return its path.

    `methods` names the folders to rate, by default all that hold images. The folder HR holds the
    originals; nearest neighbour is made from them if there is no folder "nearest". Raises
    FileNotFoundError or ValueError naming what is missing or, cropped to multiples of 4, differs
    from HR in size. The page shows codes made from the images' content. It holds their meaning
    base64-encoded and copies it into the results, so `score` needs nothing else.
    """
    folder = Path(folder)
    name = folder.resolve().name
    images, key = {}, {}
    for method, arrays in progress_bar(
        _versions(folder, methods).items(), desc="page", unit="method"
    ):
        for image, array in arrays.items():
            content = f"{name}/{method}/{image}/{array.shape}".encode() + array.tobytes()
            code = f"i{hashlib.sha256(content).hexdigest()[:12]}"
            images[code], key[code] = png(array), [method, image]
    # Sorted by code, or the order would tell the methods.
    key = json.dumps({"set": name, "images": dict(sorted(key.items()))})
    key = base64.b64encode(key.encode()).decode()
    # Parts of two photographs that are in no test set: the examples must not show what is rated.
    examples = [photographs.astronaut()[20:200, 100:340], photographs.rocket()[220:400, 200:440]]
    data = {
        "page": hashlib.sha256(key.encode()).hexdigest()[:16],
        "key": key,
        "images": dict(sorted(images.items())),
        "examples": [[png(_nearest(example)), png(example)] for example in examples],
    }
    return fill_template("mos_page.html", data, out)


def _versions(folder, methods):
    """{method: {image name: uint8 (H, W, 3)}} with HR and nearest."""
    versions = read_versions(folder, methods)
    if BEST not in versions:
        raise FileNotFoundError(f"{Path(folder, BEST)}: no images, but raters need the originals")
    if not versions.keys() - {WORST, BEST}:
        raise ValueError(f"{folder}: no method to rate; it needs folders such as SRResNet, SRGAN")
    nearest = {name: _nearest(hr) for name, hr in versions[BEST].items()}
    return {WORST: nearest} | versions


def _nearest(hr):
    """Enlarge the LR image that belongs to an HR image by nearest neighbour."""
    return imresize(hr, 1 / SCALE).repeat(SCALE, axis=0).repeat(SCALE, axis=1)


@dataclass(frozen=True)
class Scores:
    """What `score` found; `print` shows it as text."""

    name: str  # of the rated set, e.g. "Set5"
    raters: int  # how many were counted
    table: pd.DataFrame  # one row for each method, best first; the columns are said in `score`
    counts: pd.DataFrame  # same rows: how often each method got 1, 2, 3, 4, 5 (the columns)
    agreement: float  # Krippendorff's alpha
    refused: dict[str, str]  # {file: the reason why it was not counted}

    def __str__(self) -> str:
        lines = [
            f"{self.name}, {self.raters} raters: mean opinion scores (1 bad, 5 excellent)",
            "low to high: the 95 % interval; ahead: of the method in the next row",
            self.table.to_string(float_format="{:.2f}".format, na_rep=""),
            f"agreement: Krippendorff's alpha {self.agreement:.2f} (1: all agree, 0: chance)",
        ]
        return "\n".join(lines + [f"not counted: {file}: {r}" for file, r in self.refused.items()])


def score(files: Iterable[str | Path], page: str | Path | None = None) -> Scores:
    """Compute mean opinion scores from raters' result files, or patterns such as "ratings/*.json".

    Columns of the table: "MOS" is the mean, "low" to "high" its 95 % interval; "ahead" is the
    difference to the next row, "ahead low" to "ahead high" its interval. The intervals come from a
    seeded bootstrap over raters; differences are taken within each rater, strict or lenient.
    `page` is the HTML file whose ratings count, by default the one that most have rated. Named, but
    not counted: damaged files, files of another page (another set, or images made anew), all but
    the latest file of a rater, and raters whose mean for HR is less than 2 points above that for
    nearest neighbour (random clicks on five images pass in 1.6 % of cases). ValueError if no rating
    is left to count, or if `page` is no rating page.
    """
    ratings, refused = _read_ratings(files, page and _page_of(page))
    counted = {}
    for rating in ratings:
        worst, best = rating["scores"].groupby(level=0).mean()[[WORST, BEST]]
        if round(best - worst, 6) >= CALIBRATION:  # 4.6 - 2.6 is 1.9999999999999996
            counted[rating["path"]] = rating["scores"]
        else:
            gave = f"{WORST} {worst:.2f} and {BEST} {best:.2f}, less than {CALIBRATION} apart"
            refused[rating["path"]] = f"failed the calibration: {rating['rater']!r} gave {gave}"
    if not counted:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in refused.items())
        raise ValueError(f"no ratings left to count; more files are needed{reasons}")
    scores = pd.DataFrame(counted)  # a row for each (method, image), a column for each rater
    means = scores.groupby(level=0).mean()  # (methods, raters)
    means = means.loc[means.mean(axis=1).sort_values(ascending=False, kind="stable").index]
    ahead = means - means.shift(-1)  # of the method in the next row
    table = pd.DataFrame({"MOS": means.mean(axis=1), "ahead": ahead.mean(axis=1)})
    table[["low", "high"]] = [bootstrap_interval(row) for row in means.to_numpy()]
    ahead_intervals = [bootstrap_interval(row) for row in ahead.to_numpy()[:-1]]
    table[["ahead low", "ahead high"]] = [*ahead_intervals, (np.nan, np.nan)]
    counts = {value: (scores == value).sum(axis=1).groupby(level=0).sum() for value in range(1, 6)}
    return Scores(
        name=ratings[0]["set"],
        raters=len(counted),
        table=table[["MOS", "low", "high", "ahead", "ahead low", "ahead high"]],
        counts=pd.DataFrame(counts).loc[means.index],
        agreement=krippendorff_alpha(scores),
        refused=refused,
    )


def bootstrap_interval(values: np.ndarray | list[float]) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of the raters' mean; both are NaN for one rater.

    "Expanded percentile" (Hesterberg 2015, What Teachers Should Know About the Bootstrap). It holds
    the true mean in 94 to 96 % of simulated panels of ten raters and more, in 92 % of five.
    """
    n = len(values)
    if n < 2:
        return np.nan, np.nan
    # Plain percentiles are too narrow for few raters: by sqrt((n - 1) / n), as the resamples'
    # variance divides by n, and because they match quantiles of the normal, not of Student's t.
    level = 1 - 2 * norm.cdf(-np.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1))
    interval = bootstrap(
        (values,), np.mean, n_resamples=10_000, confidence_level=level, method="percentile", rng=0
    ).confidence_interval
    return float(interval.low), float(interval.high)


def krippendorff_alpha(table: pd.DataFrame) -> float:
    """Return Krippendorff's alpha of interval data (units, raters); NaN for one rater."""
    # Disagreement is a mean squared difference, twice a variance (Hayes and Krippendorff 2007).
    return float(1 - table.var(axis=1).mean() / table.to_numpy().var(ddof=1))


def plot_scores(scores: Scores) -> Figure:
    """Draw figure 5 of the paper: shares of the scores (blue), means and their intervals (red)."""
    table, counts = scores.table[::-1], scores.counts[::-1]  # worst first, as in the paper
    n = len(table)
    figure = Figure(figsize=(1.6 + 1.1 * n, 3.6), layout="constrained")  # pyplot keeps no copy
    axes = figure.subplots()
    shares = counts.div(counts.sum(axis=1), axis=0).to_numpy().T  # (5, methods)
    picture = axes.pcolormesh(range(n), range(1, 6), shares, cmap="Blues", vmin=0, vmax=1)
    errors = np.maximum([table["MOS"] - table["low"], table["high"] - table["MOS"]], 0)  # no -1e-16
    axes.errorbar(range(n), table["MOS"], errors, fmt="o", color="red", markersize=5, capsize=4)
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    for k, mos in enumerate(table["MOS"]):
        axes.text(k + 0.1, mos, f"{mos:.2f}", color="red", fontsize=8, va="center", bbox=box)
    axes.set_xticks(range(n), table.index)
    axes.set(title=f"{scores.name}: {scores.raters} raters", ylabel="score", yticks=range(1, 6))
    figure.colorbar(picture, label="share of the scores")
    return figure


def _read_ratings(files, counted):
    """Each rater's latest rating of the page `counted`, and {path: why not} of the others.

    None stands for the page that most rated.
    """
    paths = []
    for file in map(str, files):
        paths += sorted(glob.glob(file)) or [file]  # the shell of Windows expands no patterns
    ratings, refused = [], {}
    for path in dict.fromkeys(paths):
        try:
            ratings.append(_read_rating(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            refused[path] = f"no readable result of a rating page ({error!r}); download it again"
    latest = {}
    for rating in sorted(ratings, key=lambda rating: rating["finished"]):
        if older := latest.get((rating["page"], rating["rater"])):
            newer = f"the same rater as {rating['path']}, which is not older"
            advice = f"if {rating['rater']!r} are two people, change one's name in the file"
            refused[older["path"]] = f"{newer}; {advice}"
        latest[rating["page"], rating["rater"]] = rating
    pages = [page for page, _ in latest]
    counted = counted or max(pages, key=pages.count, default=None)
    for rating in latest.values():
        if rating["page"] != counted:
            refused[rating["path"]] = f"of another page ({rating['set']!r}); score it apart"
    kept = [rating for rating in latest.values() if rating["page"] == counted]
    return sorted(kept, key=lambda rating: rating["path"]), refused


def _page_of(path):
    """The name that a rating page gives itself in its raters' results."""
    if name := read_data(path).get("page"):
        return name
    raise ValueError(f"{path}: not a rating page; `python -m tools.mos page` writes one")


def _read_rating(path):
    """The rating in a result file, which came by mail and may be cut or edited."""
    data = json.loads(Path(path).read_text(encoding="utf-8-sig"))  # editors add byte order marks
    if data["page"] != hashlib.sha256(data["key"].encode()).hexdigest()[:16]:
        raise ValueError("the key does not belong to the page")
    key = json.loads(base64.b64decode(data["key"]))
    if sorted(code for code, _ in data["scores"]) != sorted(key["images"]):
        raise ValueError(f"not one score for each of {len(key['images'])} images")
    scores = {tuple(key["images"][code]): value for code, value in data["scores"]}
    if wrong := {*scores.values()} - {1, 2, 3, 4, 5}:
        raise ValueError(f"scores other than 1, 2, 3, 4, 5: {wrong}")
    return data | {
        "path": path,
        "set": key["set"],
        "rater": unicodedata.normalize("NFKC", data["rater"]).casefold().strip(),
        "finished": datetime.strptime(data["finished"], "%Y-%m-%dT%H:%M:%S.%fZ"),
        "scores": pd.Series(scores, dtype=int),  # of (method, image)
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m tools.mos", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("page", help="write the rating page").add_argument
    add("folder", help="holds <method>/<image>.png, e.g. results/Set5")
    add("-o", "--out", default="rating.html", help="the HTML file (default: rating.html)")
    add("--methods", nargs="+", help="folders to rate (default: all with images)")
    add = commands.add_parser("score", help="print the table of raters' results").add_argument
    add("files", nargs="+", help="the result files, e.g. ratings/*.json")
    add("--page", metavar="FILE", help="count only ratings of this page (default: of most files')")
    add("--plot", metavar="FILE", help="draw the distribution of the scores, e.g. mos.png")
    options = parser.parse_args(arguments)
    try:
        if options.command == "page":
            out = make_page(options.folder, options.out, options.methods)
            print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; send it to the raters")
        else:
            scores = score(options.files, options.page)
            print(scores)
            if options.plot:
                with atomic_path(options.plot) as temporary:
                    plot_scores(scores).savefig(temporary, dpi=150)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
