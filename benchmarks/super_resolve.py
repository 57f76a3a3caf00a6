"""Speed of `super_resolve` beside what others use; memory, and what tiles cost in time.

    python benchmarks/super_resolve.py [checkpoints/.../srresnet.safetensors]   # three minutes
    python benchmarks/super_resolve.py --memory                                 # the other two

Speeds are from the image's array to that of the enlarged one, in megapixels of the latter. The
network is the same in every way. Each way has a process of its own, and they take turns: in one
process the others would profit from what `super_resolve` does for the memory. The large image takes
up to 15 GB in some of the other ways.

Memory is the peak of a fresh process, less what it takes after the imports and a first small image.
The paper's network would take many minutes for 24 megapixels: two tiles of them are enlarged, and
what the rest of the image would hold is added. A slim network enlarges all of them.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # before this folder, where a file of the same name lies

from table import compare  # noqa: E402

from models import SRResNet, load_generator  # noqa: E402
from super_resolve import TILE, export_onnx, super_resolve  # noqa: E402
from tools.acceleration import speed_up  # noqa: E402
from tools.openvino_engine import import_openvino  # noqa: E402
from utils import SCALE, to_array, to_tensor  # noqa: E402

HEIGHT, WIDTH = 4000, 6000  # LR pixels: 24 megapixels, 384 enlarged
PADDED = TILE + 2 * 40  # LR pixels a side: a tile of the paper's network with its padding
MEMORY = """
import sys, threading, time
import numpy as np, psutil, torch
from models import SRResNet
from super_resolve import super_resolve, super_resolve_file
from tools.acceleration import speed_up

source, target, blocks, channels, tile = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.manual_seed(0)
generator = speed_up(SRResNet(blocks, channels, init="interpolator"), "cpu").eval()
super_resolve(generator, np.zeros((64, 64, 3), np.uint8), progress=False)
process = psutil.Process()
before = peak = process.memory_info().rss

def watch():
    global peak
    while True:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.005)

threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
super_resolve_file(generator, source, target, tile=tile, progress=False)
print(before / 1e6, (peak - before) / 1e6, time.perf_counter() - start)
"""

EXACT, FAST = "super_resolve", "super_resolve --fast"
ENGINE, FAST_ENGINE = f"{EXACT} --engine openvino", f"{FAST} --engine openvino"
BARE, TILES = "the bare network", "tiles of 128 with an overlap of 10"
RUNTIME, OPENVINO, HALF_OPENVINO = "ONNX Runtime", "OpenVINO", "OpenVINO in bfloat16"
NEEDS = {RUNTIME: "onnxruntime", OPENVINO: "openvino", HALF_OPENVINO: "openvino"}
NEEDS |= {ENGINE: "openvino", FAST_ENGINE: "openvino"}
SPEEDS = [  # height, width, runs, {ours: the other ways}
    (192, 256, 5, {
        EXACT: [TILES, BARE, RUNTIME, OPENVINO],
        FAST: [BARE, HALF_OPENVINO],
        ENGINE: [BARE, OPENVINO],
        FAST_ENGINE: [BARE, HALF_OPENVINO],
    }),
    (866, 866, 2, {EXACT: [TILES, BARE, OPENVINO], FAST: [BARE], ENGINE: [BARE, OPENVINO]}),
]  # fmt: skip


def enlarger(way, generator):
    """The way as a function of an image."""
    if way in (EXACT, FAST, ENGINE, FAST_ENGINE):
        engine = "openvino" if way in (ENGINE, FAST_ENGINE) else "torch"
        options = {"fast": way in (FAST, FAST_ENGINE), "engine": engine, "progress": False}
        return lambda image: super_resolve(generator, image, **options)
    if way in (BARE, TILES):
        function = whole if way == BARE else overlapping_tiles
        return lambda image: function(generator, image)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "generator.onnx")
        export_onnx(generator, path)
        if way == RUNTIME:
            import onnxruntime

            session = onnxruntime.InferenceSession(path.read_bytes())
            return lambda image: array(session.run(None, {"lr": to_tensor(image).numpy()})[0])
        hint = {"INFERENCE_PRECISION_HINT": "bf16" if way == HALF_OPENVINO else "f32"}
        model = import_openvino().compile_model(str(path), "CPU", hint)
        return lambda image: array(model(to_tensor(image).numpy())[0])


def array(sr):
    return to_array(torch.from_numpy(sr))


@torch.inference_mode()
def whole(generator, image):
    return to_array(generator(to_tensor(image)))


@torch.inference_mode()
def overlapping_tiles(generator, image, side=128, overlap=10):
    """As Real-ESRGAN's tile mode: each tile is cut out with so many pixels more around it."""
    lr = to_tensor(image)
    height, width = lr.shape[2:]
    sr = torch.empty(1, 3, SCALE * height, SCALE * width)
    for top in range(0, height, side):
        for left in range(0, width, side):
            y, x = max(0, top - overlap), max(0, left - overlap)
            part = generator(lr[..., y : top + side + overlap, x : left + side + overlap])
            part = part[..., SCALE * (top - y) :, SCALE * (left - x) :]
            place = sr[..., SCALE * top :, SCALE * left :][..., : SCALE * side, : SCALE * side]
            place.copy_(part[..., : place.shape[2], : place.shape[3]])
    return to_array(sr)


def serve(way, weights):
    """Enlarge an image for each line "height width" of stdin, and print the seconds."""
    generator = load_generator(weights) if weights else SRResNet(init="interpolator").eval()
    enlarge = enlarger(way, speed_up(generator, "cpu"))
    for line in sys.stdin:
        image = real_image(*map(int, line.split()))
        start = time.perf_counter()
        enlarge(image)
        print(time.perf_counter() - start, flush=True)


def speed(weights):
    """Print the rows of the table."""
    missing = {way for way, package in NEEDS.items() if not is_installed(package)}
    if missing:
        print(f"not installed, left out: {', '.join(sorted(missing))} (requirements-dev.txt)")
    ways = sorted(
        {way for *_, row in SPEEDS for ours in row for way in (ours, *row[ours])} - missing
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, __file__, *([weights] if weights else []), "--way"]
    processes = {way: subprocess.Popen([*command, way], **pipes) for way in ways}

    def seconds_of(way, height, width):
        print(height, width, file=processes[way].stdin, flush=True)
        answer = processes[way].stdout.readline()
        if not answer:
            raise RuntimeError(f"{way} failed: its message stands above")
        return float(answer)

    try:
        for way in ways:
            seconds_of(way, 192, 256)  # to warm up
        for height, width, runs, row in SPEEDS:
            taken = {way: [] for way in ways if any(way in (ours, *row[ours]) for ours in row)}
            for _ in range(runs):
                for way, values in taken.items():
                    values.append(seconds_of(way, height, width))
            megapixels = SCALE**2 * height * width / 1e6
            speeds = {way: [megapixels / s for s in values] for way, values in taken.items()}
            for ours in row:
                if ours not in missing:
                    others = {way: speeds[way] for way in row[ours] if way not in missing}
                    what = ours.replace("super_resolve", f"enlarging {height} x {width}", 1)
                    compare(what, "megapixels/s", speeds[ours], others)
    finally:
        for process in processes.values():
            process.communicate()


def is_installed(package):
    return all(importlib.util.find_spec(name) for name in (package, "onnx"))


def memory(source, folder, num_blocks, num_channels, tile):
    """(framework, beyond it) in MB, and seconds, of a process that enlarges the file `source`."""
    command = [sys.executable, "-c", MEMORY, source, folder / "out.png"]
    command += [num_blocks, num_channels, tile]
    command = [str(part) for part in command]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [float(value) for value in run.stdout.split()]


def real_image(height, width):
    image = data.astronaut()
    return np.tile(image, (-(-height // 512), -(-width // 512), 1))[:height, :width].copy()


def seconds(function):
    """Processor seconds, which other programs disturb little, and the result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def memory_and_tiles(paper):
    """Print what a large image takes, and what tiles cost against the whole at once."""
    print(f"tiles of {TILE} x {TILE} LR pixels, {torch.get_num_threads()} threads")
    print("\nMemory for a 24-megapixel file, 384 megapixels enlarged, in MB:")
    print("framework, beyond it (at most 1500); seconds")
    # What the paper's network has not enlarged, but would hold: the source, a strip of tiles.
    rest = 3 * (HEIGHT * WIDTH - 2 * PADDED**2) + 3 * SCALE**2 * (WIDTH * TILE - 2 * PADDED**2)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, blocks, channels, height, width, tile, unseen in [
            ("paper (16 blocks, 64 channels), two tiles", 16, 64, PADDED, 2 * PADDED, PADDED, rest),
            ("slim (1 block, 4 channels), all of it", 1, 4, HEIGHT, WIDTH, TILE, 0),
        ]:
            image = Image.fromarray(real_image(height, width))
            image.save(folder / "in.png", compress_level=1)
            figures = memory(folder / "in.png", folder, blocks, channels, tile)
            framework, beyond, duration = figures
            beyond += unseen / 1e6
            print(f"{name:>44}: {framework:6.0f} {beyond:6.0f} {duration:6.0f} s", flush=True)

    # Large enough for four tiles, small enough for the whole at once (about 8 GB).
    print("\nIn tiles against at once (at most +15 %), processor seconds:")
    image = real_image(TILE + 200, TILE + 200)
    slim = speed_up(SRResNet(16, 16, init="interpolator"), "cpu").eval()
    for name, generator in [("16 blocks, 16 channels", slim)] * 2 + [("paper", paper)]:
        at_once, expected = seconds(lambda g=generator: whole(g, image))
        in_tiles, result = seconds(lambda g=generator: super_resolve(g, image, progress=False))
        difference = 100 * (in_tiles / at_once - 1)
        print(
            f"{name}: at once {at_once:.1f}, in tiles {in_tiles:.1f} ({difference:+.0f} %),",
            end=" ",
        )
        print(f"equal: {np.array_equal(expected, result)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", nargs="?", help="default: random ones, which are as fast")
    parser.add_argument("--memory", action="store_true", help="memory, and what tiles cost")
    parser.add_argument("--way", help="serve one way to another process of this script")
    arguments = parser.parse_args()
    weights = arguments.weights
    if arguments.way:
        serve(arguments.way, weights)
    elif arguments.memory:
        generator = load_generator(weights) if weights else SRResNet(init="interpolator")
        memory_and_tiles(speed_up(generator, "cpu").eval())
    else:
        speed(weights)


if __name__ == "__main__":
    main()
