"""Memory for a 24-megapixel photograph, and what working in pieces costs in time.

    python benchmarks/super_resolve.py [checkpoints/.../srresnet.safetensors]

Memory is the peak of a fresh process, less what it takes once the modules, the weights and a first small image are behind
it. All of a 24-megapixel image takes the network of the paper's size many minutes: of it two pieces are taken, and what the
rest of the image would hold is added. A slim network goes through all of it.
"""

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
sys.path.insert(0, str(ROOT))

from models import SRResNet, load_generator  # noqa: E402
from super_resolve import _tile_size, back_project, super_resolve  # noqa: E402
from utils import to_array, to_tensor  # noqa: E402

WIDTH, HEIGHT = 6000, 4000  # LR pixels: 24 megapixels, 384 enlarged
MEMORY = """
import sys, threading, time
import psutil, torch
from models import SRResNet
from super_resolve import super_resolve, super_resolve_file
import numpy as np

source, target, blocks, channels, tile = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.manual_seed(0)
generator = SRResNet(blocks, channels, init="interpolator").to(memory_format=torch.channels_last).eval()
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
super_resolve_file(generator, source, target, tile=tile)
print(before / 1e6, (peak - before) / 1e6, time.perf_counter() - start)
"""


def memory(source, folder, num_blocks, num_channels, tile):
    """(framework, beyond it) in MB, and seconds, of a process that enlarges the file `source`."""
    command = [
        sys.executable,
        "-c",
        MEMORY,
        source,
        folder / "out.png",
        num_blocks,
        num_channels,
        tile,
    ]
    run = subprocess.run(
        [str(part) for part in command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return [float(value) for value in run.stdout.split()]


def photograph(height, width):
    tile = data.astronaut()
    return np.tile(tile, (-(-height // 512), -(-width // 512), 1))[:height, :width].copy()


def seconds(function):
    """Processor seconds, which other programs disturb little, and the result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def whole(generator, image):
    lr = to_tensor(image)
    with torch.inference_mode():
        return to_array(back_project(generator(lr).clamp_(0, 1), lr))


def main():
    paper = (
        load_generator(sys.argv[1]) if len(sys.argv) > 1 else SRResNet(init="interpolator").eval()
    )
    paper.to(memory_format=torch.channels_last)
    tile = _tile_size(paper, "auto", None)
    print(
        f"pieces of {tile} x {tile} LR pixels for the paper's network, {torch.get_num_threads()} threads"
    )

    side = tile + 80  # of a piece with its neighbourhood
    # What the paper's network has not gone through, but would hold: the rest of the source and of a row of pieces.
    rest = 3 * (HEIGHT * WIDTH - 2 * side**2) + 3 * 16 * (WIDTH * tile - 2 * side**2)
    print(
        "\nMemory for a 24-megapixel file (384 megapixels enlarged) in MB: framework, beyond it (at most 1500); seconds"
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, blocks, channels, height, width, piece, unseen in [
            ("paper (16 blocks, 64 channels), two pieces", 16, 64, side, 2 * side, side, rest),
            ("slim (1 block, 4 channels), all of it", 1, 4, HEIGHT, WIDTH, tile, 0),
        ]:
            Image.fromarray(photograph(height, width)).save(folder / "in.png", compress_level=1)
            framework, beyond, duration = memory(folder / "in.png", folder, blocks, channels, piece)
            print(
                f"{name:>44}: {framework:6.0f} {beyond + unseen / 1e6:6.0f} {duration:6.0f} s",
                flush=True,
            )

    # Large enough for four pieces, small enough for the whole at once (about 8 GB).
    print("\nIn pieces against at once (at most +15 %):")
    image = photograph(tile + 200, tile + 200)
    slim = SRResNet(16, 16, init="interpolator").to(memory_format=torch.channels_last).eval()
    for name, generator in (("16 blocks, 16 channels", slim), ("paper", paper)):
        for _ in range(2 if generator is slim else 1):
            at_once, expected = seconds(lambda g=generator: whole(g, image))
            in_pieces, result = seconds(
                lambda g=generator: super_resolve(g, image, tile=tile, progress=False)
            )
            print(
                f"{name}: {image.shape[1]} x {image.shape[0]} at once {at_once:.1f} processor s, in pieces {in_pieces:.1f} "
                f"({100 * (in_pieces / at_once - 1):+.0f} %), equal: {np.array_equal(expected, result)}"
            )


if __name__ == "__main__":
    main()
