"""The command line of super_resolve.py: what it makes, says and returns, and what it never does."""

import errno
import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import trained_generator
from PIL import Image
from skimage import data

import super_resolve as module
import utils
from imresize import imresize
from models import save_generator
from super_resolve import super_resolve
from tools import batch
from utils import read_image, to_array, to_tensor

BICUBIC = ["--method", "bicubic"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX alone")


def photo(height, width):
    return np.ascontiguousarray(data.astronaut()[:height, 100 : 100 + width])


def run(*arguments):
    return module.main([str(argument) for argument in arguments])


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.*"))


@pytest.fixture(scope="module")
def tiny():
    return trained_generator(blocks=1, channels=4)


@torch.inference_mode()
def whole(generator, image):
    return to_array(generator(to_tensor(image)))


@pytest.fixture
def folder(tmp_path, tiny, monkeypatch):
    """A current folder with weights, two images, a damaged one, and a file that is no image."""
    monkeypatch.chdir(tmp_path)
    save_generator("checkpoints/some preset/srgan.safetensors", tiny)
    os.makedirs("照片 1/empty")
    Image.fromarray(photo(20, 30)).save("照片 1/a.jpg")
    Image.fromarray(photo(30, 20)).save("照片 1/b.png")
    Path("照片 1/c.png").write_bytes(Path("照片 1/b.png").read_bytes()[:200])
    Path("照片 1/notes.txt").write_text("no image")
    return tmp_path


# --- what it makes -------------------------------------------------------------------------------


def test_it_goes_on_after_a_failure_and_sums_up(folder, tiny, capsys):
    # a.jpg is named twice.
    assert run("照片 1", "照片 1/a.jpg", "-o", "out", "--device", "cpu") == 1
    printed = capsys.readouterr()
    assert "2 enlarged, 0 skipped, 1 failed" in printed.out and "c.png: " in printed.err
    assert "照片 1: 1 file passed over: .txt" in printed.out
    assert files("out") == ["a.png", "b.png"]
    assert np.array_equal(read_image("out/b.png"), whole(tiny, photo(30, 20)))


def test_a_second_run_makes_what_is_missing(folder, capsys):
    Path("out").mkdir()
    Path("out/b.png").write_bytes(b"mine")
    for made in (1, 0):
        assert run("照片 1/a.jpg", "照片 1/b.png", "-o", "out") == 0
        assert f"{made} enlarged, {2 - made} skipped, 0 failed" in capsys.readouterr().out
    assert Path("out/b.png").read_bytes() == b"mine"


def test_force_replaces_results(folder, tiny):
    Path("out").mkdir()
    Path("out/b.png").write_bytes(b"old")
    assert run("照片 1/b.png", "-o", "out", "--force", "--ensemble", "--tile", "16") == 0
    expected = super_resolve(tiny, photo(30, 20), tile=16, ensemble=True, progress=False)
    assert np.array_equal(read_image("out/b.png"), expected)


def test_the_options_reach_the_network(folder, tiny):
    assert run("照片 1/b.png", "-o", "out", "--back-projection", "--device", "cpu") == 0
    expected = super_resolve(tiny, photo(30, 20), back_projection=True, progress=False)
    assert np.array_equal(read_image("out/b.png"), expected)
    assert run("照片 1/b.png", "-o", "plain", *BICUBIC) == 0
    assert np.array_equal(read_image("plain/b.png"), imresize(photo(30, 20), 4))


def test_the_engine_is_openvino_when_asked_for(folder, tiny, capsys):
    pytest.importorskip("onnx")
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("without OpenVINO")
    assert run("照片 1/b.png", "-o", "out", "--engine", "openvino") == 0
    assert "OpenVINO 2" in capsys.readouterr().out
    result = read_image("out/b.png").astype(int)
    assert np.abs(result - whole(tiny, photo(30, 20))).max() <= 1


def test_without_the_package_openvino_says_so_before_it_starts(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert run("照片 1/b.png", "照片 1/a.jpg", "-o", "out", "--engine", "openvino") == 1
    assert capsys.readouterr().err.count("pip install openvino onnx") == 1
    assert not Path("out").exists()


def test_subfolders_keep_their_structure_and_images_of_one_name_are_all_made(folder, capsys):
    for name, side in (("in/a.png", 5), ("in/x/a.png", 6), ("in/x/a.webp", 7), ("in/a.gif", 8)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(side, 5)).save(name)
    assert run("in", "-o", "in/x/out", "--recursive", *BICUBIC) == 0
    sizes = {"a.png.png": 5, "x/a.png.png": 6, "x/a.webp.png": 7, "a.gif.png": 8}
    assert {name: len(read_image(f"in/x/out/{name}")) for name in files("in/x/out")} == {
        name: 4 * side for name, side in sizes.items()
    }
    assert run("in", "-o", "in/x/out", "--recursive", *BICUBIC) == 0
    assert "0 enlarged, 4 skipped, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "avif", "tiff"])
def test_every_format_is_written(folder, format):
    if format == "avif":
        pytest.importorskip("PIL._avif")
    assert run("照片 1/b.png", "-o", "out", "--format", format, *BICUBIC) == 0
    assert files("out") == [f"b.{format}"]
    with Image.open(f"out/b.{format}") as image:
        assert image.format == {"jpg": "JPEG"}.get(format, format.upper())
        difference = np.array(image.convert("RGB")).astype(int) - imresize(photo(30, 20), 4)
        assert np.abs(difference).mean() < (1e-9 if format in ("png", "tiff") else 5)


def test_less_quality_makes_smaller_files(folder):
    sizes = []
    for quality in (10, 95):
        options = ["--format", "jpg", "--quality", quality, *BICUBIC, "--force"]
        assert run("照片 1/b.png", "-o", "out", *options) == 0
        sizes.append(os.path.getsize("out/b.jpg"))
    assert 2 * sizes[0] < sizes[1]


def test_what_a_format_does_not_keep_is_said_for_each_image(folder, capsys):
    for name in ("x.png", "y.png"):
        Image.fromarray(np.dstack([photo(5, 5), photo(5, 5)[..., 0]])).save(name)
    assert run("x.png", "y.png", "-o", "out", "--format", "jpg", *BICUBIC) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "transparency" in line]
    assert len(said) == 2 and all(line.startswith("  warning: ") for line in said)


@posix
def test_links_are_names_of_their_own(folder, capsys):
    Path("in").mkdir()
    Path("照片 1/b.png").rename("in/B.1.PNG")
    os.symlink("B.1.PNG", "in/link.png")
    os.symlink("nowhere.png", "in/broken.png")
    os.symlink("in", "other")
    # All the same two, and one that is missing.
    assert run("in", "other", "in/../in/B.1.PNG", "-o", "结果 1/二", *BICUBIC) == 1
    printed = capsys.readouterr()
    assert "2 enlarged, 0 skipped, 1 failed" in printed.out
    assert "in/broken.png: no such file" in printed.err
    assert files("结果 1/二") == ["B.1.png", "link.png"]


def test_an_image_beyond_pillows_limit_is_read_when_asked_for(folder, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # put back after the test
    assert run("照片 1/b.png", "-o", "out") == 1
    assert "--large" in capsys.readouterr().err
    assert run("照片 1/b.png", "-o", "out", "--large") == 0
    assert read_image("out/b.png").shape == (120, 80, 3)


def test_demo_reduces_enlarges_and_scores(folder, capsys):
    Image.fromarray(photo(101, 130)).save("original.png")
    assert run("--demo", "original.png", "-o", "out") == 0
    printed = capsys.readouterr().out
    assert "bicubic" in printed and "srgan" in printed and printed.count("dB") == 2
    assert read_image("out/demo/original.png").shape[0] > 100


def test_compare_saves_a_sheet_with_transparency_on_a_checkerboard(folder, tiny):
    image = np.dstack([photo(130, 260), np.full((130, 260), 255, np.uint8)])
    image[60:, 125:, 3] = 0
    Image.fromarray(image).save("a.png")
    assert run("a.png", "-o", "out", "--compare") == 0
    assert files("out") == ["a.png", "compare/a.png"]
    sheet, result = read_image("out/compare/a.png"), np.array(Image.open("out/a.png"))
    size = 440
    top, left = (side // 2 - size // 2 for side in result.shape[:2])
    shown = sheet[-size:, -size - 8 : -8]  # the right one; 8 pixels of white follow
    part = result[top : top + size, left : left + size]
    opaque, hidden = part[..., 3] == 255, part[..., 3] == 0
    np.testing.assert_array_equal(shown[opaque], part[..., :3][opaque])
    assert hidden.sum() > 10000 and set(np.unique(shown[hidden])) == {153, 204}
    assert shown[-1, -1, 0] != shown[-9, -1, 0]
    assert run("a.png", "-o", "out", "--compare") == 0  # all is there


def test_export_writes_onnx(folder):
    pytest.importorskip("onnx")
    assert run("--export", "out/generator.onnx") == 0
    assert files("out") == ["generator.onnx"]
    assert Path("out/generator.onnx").stat().st_size > 1000


# --- stdin and stdout ----------------------------------------------------------------------------


def test_an_image_goes_from_stdin_to_stdout_and_messages_to_stderr(folder):
    command = [sys.executable, module.__file__, *BICUBIC, "-", "-o", "-"]
    image = Path("照片 1/b.png").read_bytes()
    done = subprocess.run(command, input=image, capture_output=True, timeout=300)
    assert done.returncode == 0
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert np.array_equal(np.array(image), imresize(photo(30, 20), 4))
    assert b"1 enlarged" in done.stderr
    assert sorted(os.listdir()) == ["checkpoints", "照片 1"]


def stream(content=b""):
    """A text stream as `sys.stdin` and `sys.stdout` are: with `buffer`."""
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")


def test_a_failure_writes_nothing_to_stdout(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", stream(b"no image"))
    monkeypatch.setattr(sys, "stdout", stream())
    assert run("-", "-o", "-", *BICUBIC) == 1
    assert sys.stdout.buffer.getvalue() == b""
    assert "not an image" in capsys.readouterr().err


def test_stdin_is_one_of_the_inputs_and_stdout_is_for_one_image(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", stream(Path("照片 1/b.png").read_bytes()))
    assert run("-", "照片 1/a.jpg", "-o", "out", *BICUBIC) == 0
    assert files("out") == ["a.png", "stdin.png"]
    assert run("照片 1", "-o", "-", *BICUBIC) == 1
    assert "-o - is for one image, not for 3" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", stream())
    assert run("照片 1/b.png", "-o", "-", *BICUBIC) == 0
    with Image.open(sys.stdout.buffer) as image:
        assert image.size == (80, 120)
    assert not Path("-").exists()


# --- originals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "a.png -o .",
        "a.png -o . --format jpg",  # a.jpg is an input too
        "in -o in",
        "in/sub/../a.png -o in",
        "in/a.png --weights g.safetensors --demo out/a.png -o out",
        "--weights g.safetensors --export g.safetensors",
        "--weights g.safetensors --export in/../g.safetensors",
        "in/a.png -o new --weights g.safetensors --export in/a.png",
        "--weights g.safetensors --demo out/demo/x.png -o out",
        "--weights g.safetensors --demo out/demo/x.png -o out --export new.onnx",
        "in/a.png -o new --weights g.safetensors --demo out/demo/x.png --export out/demo/x.png",
        "out/compare/a.png -o out --weights g.safetensors --compare",
    ],
)
def test_no_original_is_replaced_whatever_is_asked_for(folder, tiny, capsys, command):
    save_generator("g.safetensors", tiny)
    for name in (
        "a.png",
        "a.jpg",
        "in/a.png",
        "in/sub/b.png",
        "out/a.png",
        "out/demo/x.png",
        "out/compare/a.png",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(24, 24)).save(name)
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    inputs = ["a.jpg"] if "jpg" in command else []
    assert run(*command.split(), *inputs, "--force") == 1
    error = capsys.readouterr().err
    assert "would replace an original" in error or "is searched for images" in error
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_what_exists_is_not_replaced_without_force(folder, capsys):
    Path("out/demo").mkdir(parents=True)
    for name, command in {
        "out/demo/b.png": ["--demo", "照片 1/b.png", "-o", "out", *BICUBIC],
        "generator.onnx": ["--export", "generator.onnx"],
    }.items():
        Path(name).write_bytes(b"mine")
        assert run(*command) == 1
        assert "exists" in capsys.readouterr().err
        assert Path(name).read_bytes() == b"mine"
    assert run("--demo", "照片 1/b.png", "-o", "out", *BICUBIC, "--force") == 0
    assert len(read_image("out/demo/b.png")) > 30


def test_a_file_that_appears_while_its_result_is_computed_stays(folder, monkeypatch, capsys):
    store = module.store_picture

    def slow(*arguments):
        Path("out/b.png").write_bytes(b"mine")
        return store(*arguments)

    monkeypatch.setattr(module, "store_picture", slow)
    assert run("照片 1/b.png", "-o", "out", *BICUBIC) == 1
    assert "b.png exists" in capsys.readouterr().err
    assert Path("out/b.png").read_bytes() == b"mine"
    assert [path.name for path in Path("out").iterdir()] == ["b.png"]


# --- failures ------------------------------------------------------------------------------------


def test_a_mistake_in_the_code_is_named_and_the_others_are_made(folder, monkeypatch, capsys):
    enlarge = module._strips

    def strips(generator, image, *arguments, **options):
        assert image.shape[0] != 20, "wrong shape"
        return enlarge(generator, image, *arguments, **options)

    monkeypatch.setattr(module, "_strips", strips)
    assert run("照片 1/a.jpg", "照片 1/b.png", "-o", "out", *BICUBIC) == 1
    assert "a.jpg: AssertionError: wrong shape" in capsys.readouterr().err
    assert files("out") == ["b.png"]


@pytest.mark.parametrize("at", ["the strips", "the image"])
def test_a_full_disk_fails_one_image_and_leaves_nothing(at, folder, monkeypatch, capsys):
    store, calls = module.store_picture, []

    def full(path, strips, *arguments):
        def fail(path=None):
            raise OSError(errno.ENOSPC, "No space left on device")

        calls.append(path)
        encode = store(path, strips, *arguments)
        if len(calls) > 1:
            return encode
        return fail() if at == "the strips" else fail

    monkeypatch.setattr(module, "store_picture", full)
    assert run("照片 1/a.jpg", "照片 1/b.png", "-o", "out") == 1
    printed = capsys.readouterr()
    assert f"{Path('照片 1/a.jpg')}: [Errno 28] No space left on device" in printed.err
    assert "1 enlarged, 0 skipped, 1 failed" in printed.out
    assert [path.name for path in Path("out").iterdir()] == ["b.png"]


def test_names_that_the_terminal_cannot_show(folder, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert run("照片 1", "-o", "out", *BICUBIC) == 1
    assert len(files("out")) == 2
    sys.stdout.flush()
    assert b"?? 1" in sys.stdout.buffer.getvalue()


def test_an_output_folder_that_is_a_file_is_named(folder, capsys):
    Path("file").write_text("no folder")
    assert run("照片 1/a.jpg", "-o", "file", *BICUBIC) == 1
    assert "'file'" in capsys.readouterr().err
    assert Path("file").read_text() == "no folder"


def test_what_is_missing_is_said(folder, capsys):
    for command, said in {
        ("照片 1/a.jpg", "--method", "srresnet"): "srresnet.safetensors",
        ("照片 1/a.jpg", "--weights", "照片 1/notes.txt"): "notes.txt",
        ("nowhere.png",): "nowhere.png: no such file",
        ("*.gif",): "*.gif: no such file",
        ("照片 1/a.jpg", "照片 1/empty"): "empty: no images",
        ("照片 1/a.jpg", "--tile", "0"): "tile is a whole number",
        ("照片 1/a.jpg", "--device", "nonsense"): "'nonsense' cannot be used",
    }.items():
        assert run(*command) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "",
        "--export a.onnx --method bicubic",
        "a.png --engine openvino --device cuda",
        "a.png --engine openvino --method bicubic",
        "a.png --engine tensorrt",
        "a.png --quality 80",
        "a.png --format tiff --quality 80",
        "a.png --format jpg --quality 0",
        "a.png --format jpg --quality 101",
        "a.png --format jxl",
        "a.png -o - --demo a.png",
        "-o - --export a.onnx",
    ],
)
def test_arguments_that_make_no_sense_are_refused(folder, command):
    with pytest.raises(SystemExit) as refused:
        run(*command.split())
    assert refused.value.code == 2


# --- a folder ------------------------------------------------------------------------------------


@pytest.fixture
def photos(folder):
    """A folder of eight images of several sizes and kinds."""
    Path("photos").mkdir()
    for k, format in enumerate(2 * ["jpg", "png", "bmp", "webp"]):
        Image.fromarray(photo(20 + 3 * k, 40 - 4 * k)).save(f"photos/{k}.{format}")
    return sorted(Path("photos").iterdir())


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_results_are_those_of_one_image_after_the_other(format, photos, tiny, monkeypatch):
    monkeypatch.setattr(batch, "WRITERS", 3)
    assert run("photos", "-o", "out", "--format", format, "--device", "cpu") == 0
    for path in photos:
        module.super_resolve_file(tiny, path, f"alone/{path.stem}.{format}", progress=False)
    names = [f"{path.stem}.{format}" for path in photos]
    assert sorted(os.listdir("out")) == names
    for name in names:
        assert Path("out", name).read_bytes() == Path("alone", name).read_bytes()


@pytest.mark.parametrize("place", ["_enlarge", "store_picture", "new_file"])
def test_a_folder_stopped_anywhere_is_completed_by_the_same_command(
    place, photos, tiny, monkeypatch, capsys
):
    """Where Ctrl-C arrives: in the network, with the strips stored, waiting for what is written."""
    owner = batch if place == "new_file" else module
    original, calls = getattr(owner, place), []

    def stop():
        calls.append(place)
        if len(calls) == 4:
            raise KeyboardInterrupt

    def call_and_stop(*arguments):
        result = original(*arguments)
        stop()
        return result

    @contextmanager
    def write_and_stop(*arguments):
        with original(*arguments) as temporary:
            yield temporary
            stop()

    monkeypatch.setattr(batch, "WRITERS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(owner, place, write_and_stop if place == "new_file" else call_and_stop)
        assert run("photos", "-o", "out", "--device", "cpu") == 130
    assert "the same command resumes" in capsys.readouterr().err
    done = os.listdir("out")  # no temporary folders, no locks
    assert 0 < len(done) < 8 and set(done) <= {f"{path.stem}.png" for path in photos}
    assert run("photos", "-o", "out", "--device", "cpu") == 0
    assert f"{8 - len(done)} enlarged, {len(done)} skipped" in capsys.readouterr().out
    for path in photos:
        expected = super_resolve(tiny, path, progress=False)
        assert np.array_equal(read_image(f"out/{path.stem}.png"), np.array(expected))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_bar_counts_the_pixels_of_all_images_that_are_to_be_made(folder, monkeypatch):
    """Also of one that cannot be read; lines and bar do not mix."""
    seen, terminal = [], Terminal()

    class Bar(utils.tqdm):
        def update(self, n=1):
            super().update(n)
            seen.append((id(self), self.n, self.total))

    os.rmdir("照片 1/empty")
    Path("照片 1/c.png").rename("照片 1/aa.png")  # damaged, between the good ones
    Image.fromarray(photo(9, 9)).save("照片 1/z.png")
    Path("out").mkdir()
    Path("out/z.png").write_bytes(b"mine")
    monkeypatch.setattr(utils, "tqdm", Bar)
    monkeypatch.setattr(sys, "stdout", terminal)
    terminal.reconfigure = lambda **options: None
    assert run("照片 1", "-o", "out", *BICUBIC) == 1
    pixels = 16 * 20 * 30
    assert [n for _, n, _ in seen] == [0, pixels, 2 * pixels, 3 * pixels]
    assert len({(bar, total) for bar, _, total in seen}) == 1 and seen[0][2] == 3 * pixels
    shown = [line.split("\r")[-1] for line in terminal.getvalue().split("\n")]
    images = ["a.jpg", "aa.png", "b.png", "z.png"]
    lines = [
        f"[{k}/4] {Path('照片 1', name)} -> {Path('out', name).with_suffix('.png')}"
        for k, name in enumerate(images, start=1)
    ]
    lines.append("  exists, skipped (--force replaces it)")
    assert shown == [shown[0], *lines, "2 enlarged, 1 skipped, 1 failed", ""]
    assert "px/s" in terminal.getvalue()


def test_where_there_is_no_terminal_there_is_no_bar(folder, capsys):
    Image.fromarray(photo(101, 130)).save("original.png")
    assert run("照片 1", "-o", "out", "--compare", "--demo", "original.png") == 1
    printed = capsys.readouterr()
    assert "\r" not in printed.out + printed.err and "px" not in printed.out


# --- stopping ------------------------------------------------------------------------------------


def test_stopping_says_how_to_go_on(folder, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_enlarge", stop)
    assert run("照片 1/a.jpg", "-o", "out") == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert run("照片 1/a.jpg", "-o", "out", "--force") == 130
    assert "the same command without --force resumes" in capsys.readouterr().err
    assert not any(Path("out").iterdir())


def start(folder, *prefix):
    """The command in a process of its own, while it writes out/large.png."""
    Image.fromarray(photo(400, 400)).resize((2000, 2000)).save("large.bmp")
    command = [*prefix, sys.executable, module.__file__, "large.bmp", "-o", "out", "--tile", "200"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    wait_for_strips(process, 1)
    return process


def wait_for_strips(process, count):
    """Until the process has stored so many of the ten strips of its result."""
    strip = 3 * (4 * 200) * (4 * 2000)
    while not any(path.stat().st_size >= count * strip for path in Path("out").glob(".*/*.raw")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_ended_from_outside_it_tidies_up(folder, name):
    process = start(folder)
    process.send_signal(getattr(signal, name))
    process.communicate()
    assert process.returncode == 130
    assert not any(Path("out").iterdir())


@posix
def test_under_nohup_it_goes_on(folder):
    process = start(folder, "nohup")
    process.send_signal(signal.SIGHUP)
    wait_for_strips(process, 4)
    process.kill()
    process.communicate()


def test_what_a_killed_run_left_is_deleted_by_the_next_one(folder):
    process = start(folder)
    process.kill()
    process.communicate()
    assert any(Path("out").iterdir())
    assert run("照片 1/b.png", "-o", "out", *BICUBIC) == 0
    assert [path.name for path in Path("out").iterdir()] == ["b.png"]
