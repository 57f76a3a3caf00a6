"""Mean opinion scores: a blind rating page for people's browsers, and the statistics of what they send back; makes no images.

    python mos.py page results/Set5 -o rating.html    one file with all images: open it, rate, download the result
    python mos.py score ratings/*.json                the table; --plot mos.png draws it as in the paper's figure 5

The protocol is that of Ledig et al. 2017, section 3.3: raters give every version of every image, in random order, a whole score
from 1 (bad) to 5 (excellent), after they have seen nearest neighbour as a 1 and originals as a 5.
"""

import argparse
import base64
import hashlib
import io
import json
import sys
import unicodedata
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import norm, t
from tqdm import tqdm

from imresize import imresize
from utils import IMAGE_SUFFIXES, atomic_path, read_image

SCALE = 4
WORST, BEST = "nearest", "HR"  # the two methods that calibrate the scale
CALIBRATION = (
    2  # points that HR must be above nearest in a rater's means: half of the distance from 1 to 5
)
RESAMPLES = 10_000  # of the bootstrap
TEMPLATE = Path(__file__).with_name("mos_page.html")


# ---------------------------------------------------------------------------------------------------------------------
# The page


def make_page(folder, out="rating.html", *, methods=None, hr=None):
    """Write the rating page for `folder`/<method>/<image>.png to the HTML file `out` and return its path.

    methods: the sub-folders to rate, by default all that hold images. hr: folder of the original images, by default `folder`/HR.
    Nearest neighbour is made from HR by `imresize` where there is no sub-folder `nearest` (old test sets' own LR images differ in
    their outer two pixels). All methods must have the same images; sizes are cut to multiples of 4 at the top left, and must
    then agree.

    The page shows no names: images go by codes that come from their content, so that the same images give the same page. Blind to
    the eye, that is: which code is which method lies base64-encoded in the page and in the results, for `score`. Its two examples
    are photographs in scikit-image's wheel. Raises FileNotFoundError or ValueError naming the folder or image.
    """
    folder = Path(folder)
    versions = _versions(folder, methods, Path(hr) if hr else folder / BEST)
    name = folder.resolve().name
    images, key = {}, {}
    for method, pixels in tqdm(versions.items(), desc="page", unit="method"):
        for image, array in pixels.items():
            content = f"{name}/{method}/{image}/{array.shape}".encode() + array.tobytes()
            code = f"i{hashlib.sha256(content).hexdigest()[:12]}"
            images[code], key[code] = _png(array), [method, image]
    codes = sorted(images)  # an order that tells nothing
    key = _pack({"set": name, "images": {code: key[code] for code in codes}})
    data = {"page": _page_name(key), "key": key, "images": {code: images[code] for code in codes}}
    data["examples"] = [
        [_png(_nearest(photograph)), _png(photograph)] for photograph in _examples()
    ]
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{DATA}}", json.dumps(data))
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(out)


def _versions(folder, methods, hr_folder):
    """{method: {image name: uint8 (4h, 4w, 3)}}, with HR and nearest, checked against HR."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; name one that holds <method>/<image>.png"
        )
    if methods is None:
        methods = [
            path.name for path in sorted(folder.iterdir()) if path.is_dir() and _images(path)
        ]
    originals = _images(hr_folder)
    if not originals:
        raise FileNotFoundError(
            f"{hr_folder}: no original images there; put them there, or say where: --hr data/{folder.name}/HR"
        )
    if not {*methods} - {WORST, BEST}:
        raise ValueError(
            f"{folder}: no method to rate beside {WORST} and {BEST}; it needs sub-folders such as SRResNet, SRGAN"
        )
    versions = {BEST: {name: _cut(read_image(path)) for name, path in originals.items()}}
    versions[WORST] = {name: _nearest(array) for name, array in versions[BEST].items()}
    for method in methods:
        found = _images(folder / method)
        if method == BEST or (method == WORST and not found):
            continue
        if different := sorted(found.keys() ^ originals.keys()):
            where = folder / method if different[0] in originals else hr_folder
            raise ValueError(
                f"{where}: has no image {different[0]} ({len(different)} such); every method needs every image, or name the "
                "methods to rate: --methods bicubic SRGAN"
            )
        versions[method] = {name: _cut(read_image(path)) for name, path in found.items()}
        for name, array in versions[method].items():
            if array.shape != versions[BEST][name].shape:
                raise ValueError(
                    f"{found[name]}: {array.shape[1]} x {array.shape[0]} pixels, but {originals[name]} has "
                    f"{versions[BEST][name].shape[1]} x {versions[BEST][name].shape[0]} (cut to multiples of {SCALE})"
                )
    return versions


def _images(folder):
    """{name without suffix: path} of the images in a folder; empty if there is no such folder."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        path.stem: path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."
    }


def _cut(array):
    height, width = (side // SCALE * SCALE for side in array.shape[:2])
    return array[:height, :width]


def _nearest(array):
    """Nearest neighbour of the LR image that belongs to an HR image."""
    return imresize(array, 1 / SCALE).repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def _examples():
    """Parts of two photographs that are in no test set: calibration must not show what is rated."""
    import skimage  # only its folder of pictures is used

    source = Path(skimage.__file__).parent / "data"
    return read_image(source / "astronaut.png")[20:200, 100:340], read_image(source / "rocket.jpg")[
        220:400, 200:440
    ]


def _png(array):
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _pack(key):
    return base64.b64encode(json.dumps(key).encode()).decode()


def _page_name(key):
    return hashlib.sha256(key.encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# The statistics


class Scores(NamedTuple):
    """What `score` found. `print` shows it as a table.

    rows: best method first, dicts of "method", "mos", its 95 % interval "low" and "high", "ahead": by how much it is above the
    next row, with "ahead_low" and "ahead_high", and "counts": how often it got 1, 2, 3, 4, 5. agreement: Krippendorff's alpha.
    failed: {file: reason} of raters who failed the calibration; refused: {file: reason} of files that were not counted.
    """

    name: str
    raters: int
    images: int
    rows: list
    agreement: float
    failed: dict
    failed_counted: bool
    refused: dict

    def __str__(self):
        width = max(len(row["method"]) for row in self.rows) + 2
        lines = [
            f"{self.name}: mean opinion score (1 bad, 5 excellent), {self.raters} raters, {self.images} images of each method",
            f"{'method':{width}}   MOS  95 % interval  above the next by",
        ]
        for row in self.rows:
            line = (
                f"{row['method']:{width}}  {row['mos']:.2f}   {row['low']:.2f} to {row['high']:.2f}"
            )
            if row["ahead"] is not None:
                line += f"   {row['ahead']:.2f} ({row['ahead_low']:.2f} to {row['ahead_high']:.2f})"
            lines.append(line)
        lines.append(
            f"agreement: Krippendorff's alpha {self.agreement:.2f} (1: all agree, 0: as by chance)"
        )
        if self.failed:
            counted = "counted all the same" if self.failed_counted else "not counted"
            lines.append(
                f"failed the calibration ({BEST} less than {CALIBRATION} points above {WORST}), {counted}:"
            )
            lines += [f"  {path}: {reason}" for path, reason in self.failed.items()]
        if self.refused:
            lines.append("not counted:")
            lines += [f"  {path}: {reason}" for path, reason in self.refused.items()]
        return "\n".join(lines)


def score(files, *, keep_all=False, seed=0):
    """Mean opinion scores from raters' result files: a list of them, or a folder of .json files. Returns `Scores`.

    Not counted, but named: damaged files, files of another page than most, all but the latest of a rater (same name or same
    seed), and, unless `keep_all`, raters who fail the calibration: their mean for HR is less than 2 points above their mean for
    nearest neighbour. That is half the scale; of raters who click at random, 1.6 % pass on five images.

    Intervals: bootstrap over raters, the images being fixed, "expanded percentile" (Hesterberg 2015, What Teachers Should Know
    About the Bootstrap: quantiles that make up for few raters); differences between rows are of the same raters, hence sharper
    than the two intervals side by side. Agreement: Krippendorff's alpha with interval differences (Hayes and Krippendorff 2007).
    Raises ValueError with all the reasons if no rating is left.
    """
    ratings, refused = _read_all(files)
    ratings = _of_one_page(_latest_of_each_rater(ratings, refused), refused)
    failed = {}
    for rating in ratings:
        worst, best = (_mean_of(rating["scores"], method) for method in (WORST, BEST))
        if best - worst < CALIBRATION:
            failed[rating["path"]] = (
                f"{rating['rater']} gave {WORST} {worst:.2f} and {BEST} {best:.2f}"
            )
    if not keep_all:
        ratings = [rating for rating in ratings if rating["path"] not in failed]
    if not ratings:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in (failed | refused).items())
        raise ValueError(
            f"no ratings left to count{reasons or '; name the files that raters have sent'}"
        )

    versions = sorted(ratings[0]["scores"])
    table = np.array(
        [[rating["scores"][version] for version in versions] for rating in ratings]
    )  # (raters, versions)
    of_method = {}
    for (method, _), column in zip(versions, table.T, strict=True):
        of_method.setdefault(method, []).append(column)
    by_rater = {method: np.mean(columns, axis=0) for method, columns in of_method.items()}
    best_first = sorted(by_rater, key=lambda method: -by_rater[method].mean())
    rows = []
    for method, below in zip(best_first, [*best_first[1:], None], strict=True):
        row = {"method": method, "mos": float(by_rater[method].mean())}
        row["low"], row["high"] = bootstrap_interval(by_rater[method], seed)
        row["ahead"] = row["ahead_low"] = row["ahead_high"] = None
        if below is not None:
            ahead = by_rater[method] - by_rater[below]
            row["ahead"] = float(ahead.mean())
            row["ahead_low"], row["ahead_high"] = bootstrap_interval(ahead, seed)
        row["counts"] = np.bincount(np.ravel(of_method[method]), minlength=6)[1:].tolist()
        rows.append(row)
    images = len(versions) // len(by_rater)
    return Scores(
        ratings[0]["set"],
        len(table),
        images,
        rows,
        krippendorff_alpha(table),
        failed,
        keep_all,
        refused,
    )


def _mean_of(scores, method):
    return np.mean([value for (of, _), value in scores.items() if of == method])


def bootstrap_interval(values, seed=0):
    """The 95 % interval (low, high) of the mean of `values`, one for each rater, from resampled raters; NaN for one rater.

    It holds the true mean in 94 to 96 % of simulated panels of ten raters and more, in 92 % of five raters, in 78 % of three.
    """
    values, n = np.asarray(values, float), len(values)
    if n < 2:
        return float("nan"), float("nan")
    means = values[np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))].mean(axis=1)
    # Plain percentiles are too narrow for few raters: by sqrt((n - 1) / n), and as normal quantiles are to Student's.
    tail = norm.cdf(-np.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def krippendorff_alpha(table):
    """Krippendorff's alpha of scores (raters, units) with none missing: 1 - observed / expected disagreement.

    Disagreement is the squared difference; half its mean over pairs is a variance, within a unit and of all scores together.
    NaN for one rater, and where all scores are the same.
    """
    table = np.asarray(table, float)
    if len(table) < 2 or not table.var():
        return float("nan")
    return float(1 - table.var(axis=0, ddof=1).mean() / table.var(ddof=1))


# ---------------------------------------------------------------------------------------------------------------------
# Result files


def _read_all(files):
    """(ratings, {path: why not}) of the files; patterns are expanded, which Windows leaves to the program."""
    paths = []
    for path in [files] if isinstance(files, (str, Path)) else files:
        path = Path(path)
        if path.is_dir():
            paths += sorted(path.glob("*.json"))
        elif "*" in path.name and not path.exists():
            paths += sorted(path.parent.glob(path.name))
        else:
            paths.append(path)
    ratings, refused = [], {}
    for path in dict.fromkeys(paths):
        try:
            ratings.append(_read_rating(path) | {"path": str(path)})
        except (OSError, ValueError, RecursionError) as error:
            refused[str(path)] = str(error).removeprefix(f"{path}: ")
    return ratings, refused


def _read_rating(path):
    """One result file as a dict, its "scores" as {(method, image): 1 to 5}; ValueError says why it is none."""
    if path.is_file() and path.stat().st_size > 10_000_000:
        raise ValueError("too large for the result of a rating page")
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(
            f"damaged or incomplete ({error}); ask the rater to download it again"
        ) from error
    if (
        not isinstance(data, dict)
        or not {"page", "key", "rater", "seed", "finished", "scores"} <= data.keys()
    ):
        raise ValueError("not a result of a rating page")
    try:
        name, versions = _read_key(data["page"], data["key"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"its key is damaged ({error}); ask the rater to download it again"
        ) from error
    rater, seed, finished, entries = (data[k] for k in ("rater", "seed", "finished", "scores"))
    edited = "was the file edited? The rater can download it again"
    if (
        not isinstance(rater, str)
        or not 1 <= len(rater) <= 40
        or not all(map(_fit_for_a_name, rater))
    ):
        raise ValueError(
            f"the rater's name is none that the page lets through: {ascii(rater)[:60]}; {edited}"
        )
    if type(seed) is not int:
        raise ValueError(f"the seed is not a whole number: {ascii(seed)[:60]}; {edited}")
    if not isinstance(entries, list):
        raise ValueError(f"the scores are not a list; {edited}")
    scores = {}
    for entry in entries:
        code, value = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not isinstance(code, str) or code not in versions or versions[code] in scores:
            raise ValueError(
                f"a score for no image of the page, or for one twice: {ascii(entry)[:60]}; {edited}"
            )
        if type(value) is not int or not 1 <= value <= 5:
            raise ValueError(f"a score that is not 1, 2, 3, 4 or 5: {ascii(value)[:60]}; {edited}")
        scores[versions[code]] = value
    if len(scores) < len(versions):
        raise ValueError(
            f"{len(scores)} of {len(versions)} images have a score; ask the rater to rate all"
        )
    try:
        finished = datetime.strptime(finished, "%Y-%m-%dT%H:%M:%S.%fZ")
    except (TypeError, ValueError):
        raise ValueError(
            f"no time at which it was finished: {ascii(finished)[:60]}; {edited}"
        ) from None
    return {
        "page": data["page"],
        "set": name,
        "rater": rater,
        "seed": seed,
        "finished": finished,
        "scores": scores,
    }


def _read_key(page, key):
    """(name of the set, {code: (method, image)}) from the key of a page, which must belong to the page's name."""
    if page != _page_name(key):
        raise ValueError("does not belong to the name of its page")
    key = json.loads(base64.b64decode(key, validate=True))
    versions = {code: (str(method), str(image)) for code, (method, image) in key["images"].items()}
    methods = {method for method, _ in versions.values()}
    if not {WORST, BEST} <= methods or not all(
        name.isprintable() for name in {key["set"], *methods}
    ):
        raise ValueError("not made by this program")
    return key["set"], versions


def _fit_for_a_name(character):
    """Letters, marks, digits and a little punctuation, as in the page: no markup, no control codes for terminals."""
    return unicodedata.category(character)[0] in "LMN" or character in " ._'’-"


def _latest_of_each_rater(ratings, refused):
    """One rating for each rater and page: who goes back, corrects and downloads again means the last one."""
    kept = []
    for rating in sorted(ratings, key=lambda r: r["finished"], reverse=True):
        name = unicodedata.normalize("NFKC", rating["rater"]).casefold().strip()
        for twin in kept:
            if twin["page"] == rating["page"] and (
                twin["name"] == name or twin["seed"] == rating["seed"]
            ):
                refused[rating["path"]] = (
                    f"the same rater as {twin['path']}, which is not older ({rating['rater']}); if they are two people of one "
                    "name, change one's name in the file"
                )
                break
        else:
            kept.append(rating | {"name": name})
    return sorted(kept, key=lambda r: r["path"])


def _of_one_page(ratings, refused):
    """The ratings of the page that most of them are of; the others are refused."""
    pages = [rating["page"] for rating in ratings]
    page = max(dict.fromkeys(pages), key=pages.count, default=None)
    for rating in ratings:
        if rating["page"] != page:
            name = f"{rating['set']}, {rating['page'][:6]}"
            refused[rating["path"]] = f"of another page ({name}) than most; score its files apart"
    return [rating for rating in ratings if rating["page"] == page]


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def plot_scores(table):
    """The paper's figure 5 from what `score` returned, as a matplotlib figure.

    One column for each method: the darker, the more often it got that score. Red: the mean and its 95 % interval.
    """
    rows = table.rows[::-1]  # worst first, as in the paper
    shares = np.array([row["counts"] for row in rows], float).T
    shares /= shares.sum(axis=0)
    figure = Figure(
        figsize=(1.6 + 1.1 * len(rows), 3.6), layout="constrained"
    )  # not pyplot's: no window, no state
    axes = figure.subplots()
    picture = axes.imshow(
        shares,
        origin="lower",
        aspect="auto",
        cmap="Blues",
        vmin=0,
        vmax=1,
        extent=(-0.5, len(rows) - 0.5, 0.5, 5.5),
    )
    mos, low, high = np.array([[row["mos"], row["low"], row["high"]] for row in rows]).T
    errors = np.nan_to_num([mos - low, high - mos])  # one rater: no interval
    axes.errorbar(
        range(len(rows)),
        mos,
        np.maximum(errors, 0),
        fmt="o",
        color="red",
        markersize=5,
        capsize=4,
        linewidth=1.2,
    )
    label = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    for k, value in enumerate(mos):
        place = {"xytext": (9, -3), "textcoords": "offset points"}
        axes.annotate(f"{value:.2f}", (k, value), **place, color="red", fontsize=8, bbox=label)
    title, *methods = (
        name.replace("$", r"\$") for name in [table.name, *(row["method"] for row in rows)]
    )  # no formulas
    axes.set_xticks(range(len(rows)), methods)
    axes.set(title=f"{title}: {table.raters} raters", ylabel="score", yticks=range(1, 6))
    figure.colorbar(picture, label="share of the scores")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Mean opinion scores: a blind rating page, and its statistics."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("page", help="write the rating page")
    page.add_argument("folder", help="holds <method>/<image>.png, e.g. results/Set5")
    page.add_argument(
        "-o", "--out", default="rating.html", help="the HTML file (default: rating.html)"
    )
    page.add_argument("--methods", nargs="+", help="sub-folders to rate (default: all with images)")
    page.add_argument(
        "--hr", metavar="FOLDER", help="the original images (default: HR in the folder)"
    )
    scores = commands.add_parser(
        "score", help="make the table from the files that raters have sent"
    )
    scores.add_argument("files", nargs="+", help="result files, or a folder of them")
    scores.add_argument(
        "--keep-all", action="store_true", help="count raters who failed the calibration, too"
    )
    scores.add_argument(
        "--plot", metavar="FILE", help="draw the distribution of scores, e.g. mos.png"
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "page":
            out = make_page(options.folder, options.out, methods=options.methods, hr=options.hr)
            print(
                f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser, or send it to the raters"
            )
            return 0
        table = score(options.files, keep_all=options.keep_all)
        print(table)
        if options.plot:
            with atomic_path(options.plot) as temporary:
                plot_scores(table).savefig(temporary, dpi=150)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
