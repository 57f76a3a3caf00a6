"""One table of all speeds: ours beside what others use. Each script measures, this one collects.

    python benchmarks/table.py      # `make bench`, at most ten minutes on two cores

Every row is a speed, so more is better. Ours and the other way run in turn; given are the median of
the rounds, and that of the ratios of each round. What else a script says comes before the table.
"""

import contextlib
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
SCRIPTS = ("super_resolve.py", "folder.py", "train.py", "data.py", "imresize.py")
TITLES = ("what", "unit", "ours", "the other", "the other way", "ours is")


def compare(what: str, unit: str, ours: list[float], others: dict[str, list[float]]) -> None:
    """Print a row of the table for each other way.

    what: such as "enlarging 192 x 256". unit: of the speeds, more is better, such as "patches/s".
    ours, others: speeds in each round, of ours and of {way: speeds} measured next to it.
    """
    for way, theirs in others.items():
        ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
        cells = (what, unit, number(median(ours)), number(median(theirs)), way)
        print(f"| {' | '.join(cells)} | {number(ratio)} times |", flush=True)


def number(value: float) -> str:
    """Three digits: 0.0123, 4.56, 78,900."""
    return f"{float(f'{value:.3g}'):,.10g}"


def processor() -> str:
    """The processor's name, where the system tells one."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> str:
    """What it was measured on."""
    import torch

    sys.path.insert(0, str(HERE.parent))
    from utils import device_name, pick_device

    kind = torch.backends.cpu.get_cpu_capability()
    return (
        f"{device_name(pick_device())}; {processor()}, {kind}; PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def rows_of(script: Path) -> list[str]:
    """Run a script, show what it prints, and return its rows; raises CalledProcessError."""
    command, rows = [sys.executable, "-X", "utf8", str(script)], []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("| "):
                rows.append(line.rstrip("\n"))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return rows


def main(scripts=SCRIPTS):
    rows, failed = [], []
    for script in scripts:
        try:
            rows += rows_of(HERE / script)
        except subprocess.CalledProcessError:  # the others are measured all the same
            failed.append(script)
    print(f"\n{machine()}\n")
    print_aligned([TITLES, *([cell.strip() for cell in row.split("|")[1:-1]] for row in rows)])
    for script in failed:
        print(f"{script} failed: its message stands above, its rows are missing")
    return len(failed)


def print_aligned(table):
    """A Markdown table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(r, widths, strict=True)] for r in table]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    sys.exit(main())
