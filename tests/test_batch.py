"""Which files are read, where results go, and that nothing lands on what the user made."""

import os
import subprocess
import sys
import threading
import warnings
import weakref
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

from tools import batch

posix = pytest.mark.skipif(sys.platform == "win32", reason="links need a right on Windows")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names):
    """Files, each with its name as content."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name, encoding="utf-8")


def results(*paths, output="out", **options):
    """{image: result}, as text with slashes."""
    planned, _ = batch.plan(paths, Path(output), **options)
    return {image.as_posix(): result.as_posix() for image, result in planned.items()}


def tree(folder="."):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*"))


# --- which files are read ------------------------------------------------------------------------


def test_a_folder_gives_its_images_in_the_order_of_their_names():
    make("in/b.PNG", "in/a.jpg", "in/.hidden.png", "in/.folder/a.png", "in/c.webp")
    assert list(results("in")) == ["in/a.jpg", "in/b.PNG", "in/c.webp"]
    assert list(results("in/c.webp", "in")) == ["in/c.webp", "in/a.jpg", "in/b.PNG"]


def test_a_named_file_is_taken_whatever_its_name():
    make("notes.txt")
    assert results("notes.txt", "missing.png") == {
        "notes.txt": "out/notes.png",
        "missing.png": "out/missing.png",
    }


@pytest.fixture
def passed_over(capsys):
    """What `plan` says was left out, in lines."""

    def lines(*paths, output="out", **options):
        capsys.readouterr()
        batch.plan(paths, Path(output), **options)
        return capsys.readouterr().out.splitlines()

    return lines


def test_what_is_left_out_of_a_folder_is_counted_and_named(passed_over):
    make("in/a.png", "in/a.jxl", "in/b.JXL", "in/c.psd", "in/.DS_Store", "in/sub/b.png")
    assert passed_over("in") == [
        "in: 1 subfolder passed over: --recursive takes them",
        "in: 3 files passed over: .jxl, .psd",
    ]
    make("in/sub/README")
    assert passed_over("in", recursive=True) == [
        "in: 4 files passed over: .jxl, .psd, without suffix"
    ]
    assert passed_over("in/a.png") == []


def test_a_folder_without_images_is_named_with_what_it_has():
    make("raw/a.jxl", "raw/sub/b.png")
    with pytest.raises(ValueError, match=r"raw: no images.*1 subfolder.*--recursive.*1 file.*jxl"):
        batch.plan(["raw"], Path("out"))
    assert results("raw", recursive=True) == {"raw/sub/b.png": "out/sub/b.png"}


def test_subfolders_keep_their_structure():
    make("in/a.png", "in/x/b.png", "in/x/y/c.png", "in/.git/d.png")
    assert results("in", recursive=True) == {
        "in/a.png": "out/a.png",
        "in/x/b.png": "out/x/b.png",
        "in/x/y/c.png": "out/x/y/c.png",
    }


def test_patterns_that_the_shell_left_are_expanded():
    make("in/b.jpg", "in/a.jpg", "in/c.png", "[ab].jpg", "a.jpg")
    assert list(results("in/*.jpg")) == ["in/a.jpg", "in/b.jpg"]
    assert list(results("i?", "*.gif")) == ["in/a.jpg", "in/b.jpg", "in/c.png", "*.gif"]
    assert list(results("[ab].jpg")) == ["[ab].jpg"]  # a file of that name is meant


def test_each_image_once():
    make("in/a.png", "in/sub/b.png")
    again = ("in", "in/a.png", "in/../in/a.png", Path("in").absolute(), "in/sub/b.png")
    for paths in (again, again[::-1]):
        assert len(results(*paths)) == 2
        assert len(results(*paths, recursive=True)) == 2


@posix
def test_links_are_followed_once_and_are_names_of_their_own(passed_over):
    make("in/a.png", "elsewhere/b.png")
    os.symlink("a.png", "in/link.png")
    os.symlink("nowhere.png", "in/broken.png")  # an image that is missing: not left out silently
    os.symlink("../elsewhere", "in/linked")
    os.symlink("../in", "elsewhere/back")
    os.symlink("in", "other")
    assert results("in", "other", recursive=True) == {
        "in/a.png": "out/a.png",
        "in/broken.png": "out/broken.png",
        "in/link.png": "out/link.png",
        "in/linked/b.png": "out/linked/b.png",
    }
    lines = passed_over("in", recursive=True)
    assert lines == ["in: 1 subfolder passed over: a link to a folder above"]


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_said(passed_over):
    make("in/a.png", "in/locked/b.png")
    os.chmod("in/locked", 0)
    try:
        lines = passed_over("in", recursive=True)
        assert lines == ["in: 1 subfolder passed over: Permission denied"]
    finally:
        os.chmod("in/locked", 0o700)


# --- where results go ----------------------------------------------------------------------------


def test_results_have_the_images_name_and_the_wanted_suffix():
    make("in/B.1.PNG", "照片 1/图.jpeg")
    assert list(results("in", "照片 1").values()) == ["out/B.1.png", "out/图.png"]
    assert list(results("in", suffix=".webp").values()) == ["out/B.1.webp"]


SAME_NAMES = [
    (["x/a.png", "y/a.png", "y/b.png"], ["x-a.png", "y-a.png", "b.png"]),
    (["x/a.png", "x/a.jpg"], ["a.png.png", "a.jpg.png"]),
    (["x/a.png", "x/a.jpg", "y/a.png"], ["a.png.png", "a.jpg.png", "y-a.png"]),
    (["x/A.png", "y/a.PNG"], ["x-A.png", "y-a.png"]),  # one file on macOS and Windows
    (["x/a.png", "y/a.png", "z/x-a.png"], ["a.png.png", "y-a.png", "z-x-a.png"]),
    (["x/caf\u00e9.png", "y/cafe\u0301.png"], ["x-caf\u00e9.png", "y-cafe\u0301.png"]),
]


@pytest.mark.parametrize(("images", "names"), SAME_NAMES)
def test_images_of_one_name_get_different_results_in_any_order(images, names):
    make(*images)
    expected = {image: f"out/{name}" for image, name in zip(images, names, strict=True)}
    assert results(*images) == expected
    assert results(*reversed(images)) == expected
    assert results(*sorted({image[0] for image in images})) == expected


def test_images_that_share_folder_and_name_get_different_results_in_any_order():
    make("p/x/a.png", "q/x/a.png", "q/x/b.png")
    first = results("p/x", "q/x")
    assert len(set(first.values())) == 3 and first["q/x/b.png"] == "out/b.png"
    assert all(name.startswith("out/x-a.png-") for name in [*first.values()][:2])
    assert results("q/x", "p/x") == first
    assert results("q/x/a.png", "p/x/a.png", "q/x/b.png") == first


@posix
def test_a_link_of_the_same_folder_and_name_gets_a_result_of_its_own():
    make("p/x/a.png")
    Path("q/x").mkdir(parents=True)
    os.symlink(Path("p/x/a.png").absolute(), "q/x/a.png")
    assert len(set(results("p/x", "q/x").values())) == 2


def test_images_of_one_name_in_two_trees_keep_their_subfolder():
    make("one/sub/a.png", "two/sub/a.png", "two/a.png")
    assert results("one", "two", recursive=True) == {
        "one/sub/a.png": "out/sub/one-a.png",
        "two/sub/a.png": "out/sub/two-a.png",
        "two/a.png": "out/a.png",
    }


# --- results are never inputs --------------------------------------------------------------------


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("output", ["in", "in/../in", "in/sub/.."])
def test_results_among_the_images_of_a_folder_are_refused(output, recursive):
    make("in/a.jpg", "in/sub/b.jpg")
    with pytest.raises(ValueError, match=r"searched for images.*choose another -o"):
        batch.plan(["in"], Path(output), recursive=recursive)


def test_results_that_would_be_found_below_a_searched_folder_are_refused():
    make("in/in/new/a.png")
    with pytest.raises(ValueError, match="searched for images"):
        batch.plan(["in"], Path(), recursive=True)  # in/new/a.png
    assert results("in/in/new", output=".") == {"in/in/new/a.png": "a.png"}


def test_an_output_folder_within_a_searched_one_is_not_searched(passed_over):
    make("in/a.png", "in/sub/out/a.png")
    expected = {"in/a.png": "in/sub/out/a.png"}
    assert results("in", output="in/sub/out", recursive=True) == expected
    lines = passed_over("in", output="in/sub/out", recursive=True)
    assert lines == ["in: 1 subfolder passed over: the output folder"]


@posix
def test_a_link_to_a_searched_folder_is_no_way_round():
    make("in/a.jpg")
    os.symlink("in", "out")
    with pytest.raises(ValueError, match="searched for images"):
        batch.plan(["in"], Path("out"))


def test_a_result_that_is_an_input_is_refused():
    make("a.png", "a.jpg")
    with pytest.raises(ValueError, match=r"a\.png would replace an original"):
        batch.plan(["a.png"], Path())
    # As `*` in a folder that holds results of an earlier run: a.png may be that of a.jpg.
    with pytest.raises(ValueError, match=r"a\.png would replace an original"):
        batch.plan(["a.png", "a.jpg"], Path())
    assert results("a.jpg", output=".") == {"a.jpg": "a.png"}
    with pytest.raises(ValueError, match="would replace an original"):
        batch.plan(["a.jpg"], Path(), keep=["a.png"])


@posix
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_result_that_is_linked_with_an_input_is_refused(link):
    make("in/a.png")
    Path("out").mkdir()
    link(Path("in/a.png").absolute(), "out/b.png")
    with pytest.raises(ValueError, match="would replace an original"):
        batch.plan(["out/b.png"], Path("out"))
    os.rename("out/b.png", "out/a.png")
    with pytest.raises(ValueError, match="would replace an original"):
        batch.plan(["in/a.png"], Path("out"))


def test_a_result_that_is_an_input_by_another_case_is_refused():
    make("a.png")
    if not os.path.exists("A.PNG"):
        pytest.skip("this file system tells A from a")
    with pytest.raises(ValueError, match="would replace an original"):
        batch.plan(["A.PNG"], Path())


# --- writing -------------------------------------------------------------------------------------


def write(target, text="new", originals=(), replace=False):
    with batch.new_file(target, set(originals), replace) as temporary:
        assert temporary.suffix == Path(target).suffix and not temporary.exists()
        temporary.write_text(text)


def test_a_new_file_is_whole_or_absent():
    write("out/sub/a.png")
    assert Path("out/sub/a.png").read_text() == "new"
    with pytest.raises(KeyboardInterrupt), batch.new_file("out/b.png", set()) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert tree("out") == ["sub", "sub/a.png"]
    assert os.stat("out/sub/a.png").st_nlink == 1


@pytest.fixture(params=["links", "no links"])
def links(request, monkeypatch):
    def refuse(*paths):
        raise OSError("not supported")

    if request.param == "no links":  # as on FAT and on some network drives
        monkeypatch.setattr(os, "link", refuse)


def test_a_file_is_replaced_only_when_asked_for(links):
    make("out/a.png")
    with pytest.raises(FileExistsError, match=r"a\.png"):
        write("out/a.png")
    assert Path("out/a.png").read_text() == "out/a.png"
    write("out/a.png", replace=True)
    write("out/b.png")
    assert Path("out/a.png").read_text() == Path("out/b.png").read_text() == "new"
    assert tree("out") == ["a.png", "b.png"]


def test_a_file_that_appears_at_the_last_moment_stays(links, monkeypatch):
    check = batch.check_target

    def check_and_lose_the_race(*arguments):
        check(*arguments)
        make("out/a.png")

    monkeypatch.setattr(batch, "check_target", check_and_lose_the_race)
    with pytest.raises(FileExistsError, match=r"a\.png"):
        write("out/a.png")
    assert Path("out/a.png").read_text() == "out/a.png"
    assert tree("out") == ["a.png"]


def test_an_original_is_never_replaced():
    make("out/a.png")
    originals = batch.identities(["out/a.png"])
    with pytest.raises(ValueError, match=r"a\.png would replace an original"):
        write("out/a.png", originals=originals, replace=True)
    assert Path("out/a.png").read_text() == "out/a.png"


def test_what_a_run_made_it_does_not_replace():
    originals = set()
    with batch.new_file("out/a.png", originals, replace=True) as temporary:
        temporary.write_text("sheet")
    with pytest.raises(ValueError, match="would replace an original"):
        write("out/a.png", originals=originals, replace=True)
    assert Path("out/a.png").read_text() == "sheet"


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from tools.batch import new_file
with new_file("out/a.png", set()) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
    os._exit(9)
"""


def test_files_of_a_killed_run_are_deleted_by_the_next_one_and_those_of_a_live_one_are_not():
    make("out/.super_resolve-mine/a.png", "out/.tmp-mine.png", "out/.super_resolve-00.lock")
    mine = tree("out")
    command = [sys.executable, "-c", KILLED, str(Path(batch.__file__).parent.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().strip() == b"writing"
        write("out/b.png")
        assert len(tree("out")) == len(mine) + 4  # b.png; a folder, a.png in it and its lock
        process.stdin.close()
        assert process.wait() == 9
    assert len(tree("out")) == len(mine) + 4
    write("out/c.png")
    assert tree("out") == sorted([*mine, "b.png", "c.png"])


def test_a_lock_that_another_user_holds_is_left_alone():
    lock = "out/.super_resolve-0123456789ab.lock"
    make(lock, "out/.super_resolve-0123456789ab/a.png")
    with FileLock(lock):
        write("out/b.png")
        assert Path("out/.super_resolve-0123456789ab/a.png").exists()


# --- a batch -------------------------------------------------------------------------------------


def batch_of(*names):
    return {Path(name): Path("out", name) for name in names}


def read_text(image):
    return f"of {image}"


def write_later(image, content, target):
    """What `make_all` expects of `make`: all is left to a thread that writes."""
    return partial(target.write_text, content), 1


ERRORS = {
    "a.png": OSError("a.png: damaged"),
    "b.png": AssertionError(),
    "c.png": KeyError("palette"),
    "d.png": SyntaxError("not a TIFF file"),
    "e.png": MemoryError(),
}


@pytest.mark.parametrize("stage", ["read", "make", "write"])
def test_a_batch_goes_on_whatever_fails_and_says_what(stage, capsys):
    def fail(at, image):
        if at == stage and image.name in ERRORS:
            raise ERRORS[image.name]

    def read(image):
        fail("read", image)
        return f"of {image}"

    def make_result(image, content, target):
        def write():
            target.write_text("half")
            fail("write", image)
            target.write_text(content)

        fail("make", image)
        return write, 1

    planned = batch_of("0.png", *ERRORS, "f.png", "g.png")
    make("out/g.png")
    assert batch.make_all(planned, read, make_result, set()) == 5
    printed = capsys.readouterr()
    assert "2 enlarged, 1 skipped, 5 failed" in printed.out
    assert printed.err.splitlines() == [
        "  failed: a.png: damaged",
        "  failed: b.png: AssertionError",
        "  failed: c.png: KeyError: 'palette'",
        "  failed: d.png: SyntaxError: not a TIFF file",
        "  failed: e.png: MemoryError",
    ]
    assert tree("out") == ["0.png", "f.png", "g.png"]
    assert Path("out/g.png").read_text() == "out/g.png"
    assert Path("out/f.png").read_text() == "of f.png"


@pytest.mark.parametrize("writers", [1, 3])
def test_messages_come_in_the_order_of_the_images_each_with_its_own(writers, monkeypatch, capsys):
    """Whatever ends first: with three writers b does before a."""
    monkeypatch.setattr(sys, "stderr", sys.stdout)  # one stream shows the order
    monkeypatch.setattr(batch, "WRITERS", writers)
    b_is_written = threading.Event()

    def read(image):
        warnings.warn(f"{image}: read", stacklevel=1)

    def make_result(image, content, target):
        def write():
            if image.name == "a" and writers > 1:
                assert b_is_written.wait(60)
            warnings.warn("written", stacklevel=1)
            target.write_text("")
            if image.name == "b":
                b_is_written.set()

        for _ in range(2):
            warnings.warn("made", stacklevel=1)
        if image.name == "c":
            raise OSError("damaged")
        return write, 1

    make("out/skipped")
    planned = batch_of("a", "skipped", "b", "c", "d")
    assert batch.make_all(planned, read, make_result, set()) == 1
    own = ["  warning: read", "  warning: made"]
    expected = {
        "a": [*own, "  warning: written"],
        "skipped": ["  exists, skipped (--force replaces it)"],
        "b": [*own, "  warning: written"],
        "c": ["  failed: c: damaged", *own],
        "d": [*own, "  warning: written"],
    }
    lines = []
    for number, (name, said) in enumerate(expected.items(), start=1):
        lines += [f"[{number}/5] {name} -> {Path('out', name)}", *said]
    assert capsys.readouterr().out.splitlines() == [*lines, "3 enlarged, 1 skipped, 1 failed"]


def test_warnings_that_python_does_not_show_are_not_shown_in_a_batch(capsys):
    def make_result(image, content, target):
        warnings.warn("for programmers", DeprecationWarning, stacklevel=1)
        return write_later(image, content, target)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert batch.make_all(batch_of("a"), read_text, make_result, set()) == 0
    assert capsys.readouterr().err == ""


def test_reading_and_writing_go_on_while_a_result_is_made():
    """Each waits for what, one after the other, would come later."""
    read, written = ({name: threading.Event() for name in "abcd"} for _ in range(2))

    def read_image(image):
        read[image.name].set()

    def make_result(image, content, target):
        def write():
            if image.name == "b":
                assert making_c.wait(60)
            target.write_text("")
            written[image.name].set()

        if image.name == "a":
            assert read["b"].wait(60)
        if image.name == "c":
            making_c.set()
            assert written["b"].wait(60)
        return write, 1

    making_c = threading.Event()
    assert batch.make_all(batch_of(*"abcd"), read_image, make_result, set()) == 0
    assert tree("out") == list("abcd")


class Content:
    """Stands for the pixels of an image."""


@pytest.mark.parametrize(
    ("writers", "pixels", "most"),
    [(1, 1, 1), (3, 1, 3), (3, 20, 3), (3, 40, 2), (3, 60, 1), (3, 500, 1)],
)
def test_a_batch_holds_few_images_at_a_time(writers, pixels, most, monkeypatch):
    """Read: the one that is made and the next. Written: `most`, beside one that is made."""
    monkeypatch.setattr(batch, "WRITERS", writers)
    monkeypatch.setattr(batch, "WAITING", 100)
    contents, unwritten, held, waiting = weakref.WeakSet(), set(), [], []
    never = threading.Event()

    def read(image):
        content = Content()
        contents.add(content)
        held.append(len(contents))
        return content

    def make_result(image, content, target):
        def write():
            held.append(len(contents))
            never.wait(0.05)  # a moment, in which the next ones come
            target.write_text("")
            unwritten.discard(image)

        waiting.append(len(unwritten))
        unwritten.add(image)
        return write, pixels

    planned = batch_of(*map(str, range(8)))
    assert batch.make_all(planned, read, make_result, set()) == 0
    assert max(held) <= 2 and max(waiting) <= most


@pytest.mark.parametrize("stage", ["make", "write"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_batch_can_be_stopped(stage, stop, monkeypatch):
    """While results are written: they are complete or absent, and nothing is left over."""
    monkeypatch.setattr(batch, "WRITERS", 2)
    started, never, kept = threading.Event(), threading.Event(), []

    def make_result(image, content, target):
        def write():
            target.write_text("half")
            started.set()
            if image.name != "a":
                never.wait(0.2)  # in this moment it is stopped
                kept.append(target.exists())
            target.write_text(content)
            if image.name == "b" and stage == "write":
                raise stop

        if image.name == "d" and stage == "make":
            assert started.wait(60)
            target.write_text("half")
            raise stop
        return write, 1

    with pytest.raises(stop):
        batch.make_all(batch_of(*"abcdefgh"), read_text, make_result, set())
    assert "a" in tree("out") and set(tree("out")) <= set("abc")
    assert kept and all(kept)  # nothing was deleted while a thread wrote it
    assert all(path.read_text() == f"of {path.name}" for path in Path("out").iterdir())
    make_all = partial(batch.make_all, batch_of(*"abcdefgh"), read_text, write_later)
    assert make_all(set()) == 0  # the same again makes the rest
    assert tree("out") == list("abcdefgh")
