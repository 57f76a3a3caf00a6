"""Memory for a 24-megapixel image, what tiles cost in time, and speed beside the bare network.

    python benchmarks/super_resolve.py [checkpoints/.../srresnet.safetensors]

Memory is the peak of a fresh process, less what it takes after the imports and a first small image.
The paper's network would take many minutes for 24 megapixels: two tiles of them are enlarged, and
what the rest of the image would hold is added. A slim network enlarges all of them.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models import SRResNet, load_generator  # noqa: E402
from super_resolve import TILE, super_resolve  # noqa: E402
from tools.acceleration import speed_up  # noqa: E402
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

SPEED = """
import sys, time
import torch
from benchmarks.super_resolve import real_image, whole
from models import SRResNet, load_generator
from super_resolve import super_resolve
from tools.acceleration import speed_up

weights, way, *size = sys.argv[1:]
generator = load_generator(weights) if weights else SRResNet(init="interpolator").eval()
generator, image = speed_up(generator, "cpu"), real_image(*map(int, size))
ways = {
    "bare": lambda: whole(generator, image),
    "exact": lambda: super_resolve(generator, image, progress=False),
    "fast": lambda: super_resolve(generator, image, progress=False, fast=True),
}
for line in sys.stdin:  # one for each run
    start = time.perf_counter()
    ways[way]()
    print(time.perf_counter() - start, flush=True)
"""


def speed(weights, height, width, runs):
    """{way: seconds of each run}; the ways take turns, each in a process of its own.

    In one process the bare network would profit from what `super_resolve` does for the memory.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    command = [sys.executable, "-c", SPEED, weights]
    processes = {
        way: subprocess.Popen([*command, way, str(height), str(width)], **pipes)
        for way in ("bare", "exact", "fast")
    }
    seconds = {way: [] for way in processes}
    for _ in range(1 + runs):
        for way, process in processes.items():
            print(file=process.stdin, flush=True)
            seconds[way].append(float(process.stdout.readline()))
    for process in processes.values():
        process.communicate()
    return {way: values[1:] for way, values in seconds.items()}  # without the first, the warm-up


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


@torch.inference_mode()
def whole(generator, image):
    return to_array(generator(to_tensor(image)))


def main():
    if len(sys.argv) > 1:
        paper = load_generator(sys.argv[1])
    else:
        paper = speed_up(SRResNet(init="interpolator"), "cpu").eval()
    print(f"tiles of {TILE} x {TILE} LR pixels, {torch.get_num_threads()} threads")

    print("\nSpeed beside the bare network in float32, median of paired runs:")
    for height, width, runs in [(192, 256, 5), (866, 866, 3)]:
        seconds = speed(sys.argv[1] if len(sys.argv) > 1 else "", height, width, runs)
        for way, values in seconds.items():
            pairs = zip(seconds["bare"], values, strict=True)
            ratio = median(bare / value for bare, value in pairs)
            print(f"{height} x {width}, {way:>5}: {median(values):6.2f} s, {ratio:.2f}", flush=True)

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


if __name__ == "__main__":
    main()
