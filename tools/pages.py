"""Pages of one HTML file: images of results folders in a template; knows what no page says.

Results lie as `folder`/<method>/<image>.png; the folder HR holds the originals.
"""

import base64
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tools.image_files import IMAGE_SUFFIXES
from utils import SCALE, atomic_path, read_image

ORIGINAL = "HR"  # the folder of the originals


def read_versions(
    folder: str | Path, methods: Sequence[str] | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Read `folder`/<method>/<image>.png as {method: {image: uint8 (H, W, 3)}}, as `read_images`.

    methods: the folders in this order; by default all that hold images, bicubic first. HR, where
    there is one, is always among them, and the last. Raises FileNotFoundError for a missing folder,
    ValueError naming the images that not all methods have, or have in another size.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, but the page needs its images")
    found = in_order(path.name for path in folder.glob("[!.]*") if path.is_dir())
    names = list(methods or found)
    if (folder / ORIGINAL).is_dir():
        names = [name for name in names if name != ORIGINAL] + [ORIGINAL]
    versions = {name: read_images(folder / name) for name in names}
    if empty := [name for name in methods or () if not versions[name]]:
        raise ValueError(f"{folder / empty[0]}: no images in this folder")
    versions = {name: images for name, images in versions.items() if images}
    sizes = {
        method: {image: array.shape for image, array in images.items()}
        for method, images in versions.items()
    }
    reference = next(reversed(versions), None)
    for method in versions:
        if different := sizes[reference].items() ^ sizes[method].items():
            names = ", ".join(sorted({name for name, _ in different}))
            reason = f"not in both {method} and {reference}, or of different sizes once cropped"
            advice = "complete it, or name the methods: --methods bicubic SRGAN"
            raise ValueError(f"{folder / method}: {names}: {reason}; {advice}")
    return versions


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods as readers expect them: bicubic first, HR last, the others by name."""
    return sorted(methods, key=lambda name: (name == ORIGINAL, name != "bicubic", name.lower()))


def read_images(folder: str | Path) -> dict[str, np.ndarray]:
    """Read a folder: {image: uint8 (H, W, 3)}, each cropped to multiples of 4 pixels.

    Raises FileNotFoundError for no such folder, ValueError for two files of one image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, but the page needs its images")
    images = {}
    for path in sorted(folder.glob("[!.]*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            if path.stem in images:
                raise ValueError(f"{path}: a second file of image {path.stem!r}; move one away")
            image = read_image(path)
            height, width = image.shape[:2]
            images[path.stem] = image[: height // SCALE * SCALE, : width // SCALE * SCALE]
    return images


def png(array: np.ndarray) -> str:
    """Encode uint8 RGB (H, W, 3) as PNG, in base64."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def fill_template(name: str, data: dict, out: str | Path) -> Path:
    """Write the page `tools`/`name` with `data` as its JSON, atomically, and return its path."""
    template = Path(__file__).with_name(name).read_text(encoding="utf-8")
    text = json.dumps(data).replace("<", r"\u003c")  # a name may hold "</script>"
    with atomic_path(out) as temporary:
        temporary.write_text(template.replace("{{DATA}}", text), encoding="utf-8")
    return Path(out)


def read_data(page: str | Path) -> dict:
    """The data of a page that `fill_template` wrote; OSError or ValueError if it is none."""
    text = Path(page).read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    if not found:
        raise ValueError(f"{page}: not a page with images; name the HTML file that was sent")
    return json.loads(found[1])
