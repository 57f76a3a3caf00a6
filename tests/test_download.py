"""Downloads from a local server that drops connections and sends damaged files."""

import contextlib
import functools
import hashlib
import io
import os
import random
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from killing import contents, count_lines, run_killed
from PIL import Image

import tools.download as module
from create_data_lists import main
from tools.download import SETS, Source, check, download, is_whole, pixel_digest


class Server:
    """Serves `files`; `faults` has by path what goes wrong.

    status: answers with it. drop: bytes sent before the connection closes. no_ranges: always sends
    the whole file. length: the one it announces. once: other content, the first time.
    """

    def __init__(self):
        self.files, self.faults, self.requests = {}, {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"

    def answer(self, handler):
        wanted, fault = handler.headers.get("Range"), self.faults.get(handler.path, {})
        self.requests.append((handler.path, wanted))
        content = self.files.get(handler.path)
        status = fault.get("status", 404 if content is None else 200)
        if status != 200:
            handler.send_error(status)
            return
        content = fault.pop("once", content)
        begin = 0
        if wanted and not fault.get("no_ranges"):
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if begin >= len(content) > 0:
            handler.send_response(416)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        length = fault.get("length", len(content))
        handler.send_response(206 if begin else 200)
        handler.send_header("Content-Length", str(length - begin))
        if begin:
            handler.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{length}")
        handler.end_headers()
        part = content[begin:] if fault.get("drop") is None else content[begin:][: fault["drop"]]
        with contextlib.suppress(OSError):  # the client has left
            handler.wfile.write(part)
        if fault.get("drop") is not None or "length" in fault:
            handler.close_connection = True


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "BACKOFF", 0)
    monkeypatch.setattr(module, "CHUNK", 1000)  # many pieces of small files
    monkeypatch.setattr(module, "SETS", dict(SETS))
    for name in ("SRGAN_MIRRORS", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.httpd.shutdown()
    server.httpd.server_close()


def png(seed, size=64):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


IMAGES = {
    **{f"mini_HR/{k}.png": png(k) for k in range(3)},
    **{f"mini_LR_bicubic/X4/{k}x4.png": png(k, 16) for k in range(3)},
}


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


HR_ZIP = zipped(
    {"mini_HR/": b"", **{k: v for k, v in IMAGES.items() if "HR" in k}, "readme.txt": b"hello"}
)
LR_ZIP = zipped({f"somewhere/else/{k}": v for k, v in IMAGES.items() if "LR" in k})


def described(content):
    return len(content), hashlib.sha256(content).hexdigest()


def mini(*mirrors, known=True, pixels=None, hr=HR_ZIP, lr=LR_ZIP):
    """A set in two archives."""
    archives = {"hr.zip": described(hr), "lr.zip": described(lr)}
    if not known:
        archives = {"hr.zip": (None, None), "lr.zip": (None, None)}
    images = {name: name for name in IMAGES}
    return {"mini": [Source(list(mirrors), images, archives, len(hr) + len(lr), pixels)]}


def serve(server, place="/a", hr=HR_ZIP, lr=LR_ZIP):
    server.files |= {f"{place}/hr.zip": hr, f"{place}/lr.zip": lr}
    return server.url + place


def get(sets, **options):
    module.SETS = sets  # the fixture `server` puts the real ones back
    download(**options)


def assert_whole(data="data"):
    found = contents(Path(data))
    assert {path: found.pop(path) for path in IMAGES} == IMAGES
    assert list(found) == [".downloads/mini.json"]  # archives and partial files are gone
    assert is_whole("mini", data)


# --- connections ----------------------------------------------------------------------------------


def test_a_set_arrives_whole_and_is_fetched_once(server, capsys):
    sets = mini(serve(server))
    get(sets)
    assert_whole()
    assert len(server.requests) == 2
    get(sets)
    assert len(server.requests) == 2 and "mini: is there" in capsys.readouterr().out


@pytest.mark.parametrize("known", [True, False])
def test_dropped_connections_are_resumed(server, known):
    url = serve(server)
    server.faults["/a/hr.zip"] = {"drop": 9000}
    get(mini(url, known=known))
    assert_whole()
    begins = [int(wanted[6:-1]) for path, wanted in server.requests if wanted and "hr" in path]
    assert begins == list(range(9000, len(HR_ZIP), 9000))  # every byte came once


def test_a_server_without_ranges_is_given_up_when_nothing_new_comes(server):
    url = serve(server)
    server.faults["/a/hr.zip"] = {"drop": 9000, "no_ranges": True}
    with pytest.raises(OSError, match=r"a/hr.zip: gave up after 5 attempts without progress"):
        get(mini(url))
    assert not Path("data/mini_HR").exists()
    server.faults.clear()
    get(mini(url))
    assert_whole()


def test_another_run_resumes_where_the_last_one_stopped(server):
    url = serve(server)
    server.faults["/a/hr.zip"] = {"drop": 9000, "no_ranges": True}
    with pytest.raises(OSError):
        get(mini(url))
    server.faults.clear()
    server.requests.clear()
    get(mini(url))
    assert server.requests[0] == ("/a/hr.zip", "bytes=9000-")
    assert_whole()


def test_two_versions_of_a_file_joined_are_found_and_fetched_again(server):
    url = serve(server, hr=zipped({"mini_HR/0.png": png(77, 100)}))
    server.faults["/a/hr.zip"] = {"drop": 9000, "no_ranges": True}
    with pytest.raises(OSError):
        get(mini(url, known=False))
    server.faults.clear()
    server.requests.clear()
    serve(server)
    get(mini(url, known=False))
    assert_whole()
    assert server.requests[:2] == [("/a/hr.zip", "bytes=9000-"), ("/a/hr.zip", None)]


@pytest.mark.parametrize("rubbish", [b"x" * 9000, b"x" * 200000, HR_ZIP[:-1] + b"x", HR_ZIP, b""])
def test_what_an_earlier_run_left_is_checked(server, rubbish):
    Path("data/.downloads/mini").mkdir(parents=True)
    Path("data/.downloads/mini/hr.zip.part").write_bytes(rubbish)
    get(mini(serve(server)))
    assert_whole()


def test_the_next_mirror_is_tried_and_resumes_the_part(server):
    serve(server, "/a")
    serve(server, "/b")
    server.faults["/a/hr.zip"] = {"drop": 9000, "no_ranges": True}
    get(mini(server.url + "/a", server.url + "/b"))
    assert_whole()
    assert ("/b/hr.zip", "bytes=9000-") in server.requests


def test_named_mirrors_come_first_then_those_of_the_environment_then_those_of_the_table(
    server, monkeypatch
):
    url = serve(server, "/d")
    monkeypatch.setenv("SRGAN_MIRRORS", f"{server.url}/b/ {server.url}/c")
    get(mini(url), mirrors=[server.url + "/a"])
    assert [path for path, _ in server.requests if "hr" in path] == [f"/{k}/hr.zip" for k in "abcd"]
    assert_whole()


def test_the_error_says_what_each_mirror_gave(server):
    with pytest.raises(OSError) as error:
        get(mini(server.url + "/a", server.url + "/b", "http://127.0.0.1:9"))
    assert "mini: could not be fetched" in str(error.value) and "--mirror URL" in str(error.value)
    for text in ("/a/hr.zip: 404", "/b/hr.zip: 404", "127.0.0.1:9/hr.zip"):
        assert text in str(error.value)


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not(server):
    url = serve(server)
    server.faults["/a/hr.zip"] = {"status": 503}
    with pytest.raises(OSError, match="503"):
        get(mini(url))
    assert [path for path, _ in server.requests].count("/a/hr.zip") == module.ATTEMPTS
    server.faults["/a/hr.zip"] = {"status": 403}
    server.requests.clear()
    with pytest.raises(OSError, match="403"):
        get(mini(url))
    assert len(server.requests) == 1


# --- wrong content --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad, fault, known, message",
    [
        (HR_ZIP[:-100], {}, True, "offers .* bytes, .* were published"),
        (HR_ZIP + b"more", {}, True, "offers .* bytes, .* were published"),
        (HR_ZIP, {"length": len(HR_ZIP) + 7}, True, "offers .* bytes, .* were published"),
        (HR_ZIP[:5000] + b"x" + HR_ZIP[5001:], {}, True, "SHA-256"),
        (HR_ZIP[:5000] + b"x" + HR_ZIP[5001:], {}, False, r"not a whole zip .*mini_HR/0.png"),
        (HR_ZIP[:-100], {}, False, "not a whole zip"),
        (b"<html>please log in</html>", {}, False, "not a whole zip"),
        (b"", {}, False, "not a whole zip"),
    ],
)
def test_wrong_content_is_refused_and_the_next_mirror_asked(server, bad, fault, known, message):
    serve(server, "/bad", hr=bad)
    server.faults["/bad/hr.zip"] = fault
    with pytest.raises(OSError, match=message):
        get(mini(server.url + "/bad", known=known))
    assert not list(Path("data").glob("mini*"))
    get(mini(server.url + "/bad", serve(server, "/good"), known=known))
    assert_whole()


@pytest.mark.parametrize("known", [True, False])
def test_damage_on_the_way_is_fetched_again(server, known):
    url = serve(server)
    server.faults["/a/hr.zip"] = {"once": HR_ZIP[:5000] + b"x" + HR_ZIP[5001:]}
    get(mini(url, known=known))
    assert_whole()
    assert [path for path, _ in server.requests].count("/a/hr.zip") == 2


@pytest.mark.parametrize(
    "name", ["../evil.png", "mini_HR/../../../evil.png", "/evil.png", "..\\evil.png", "C:/evil.png"]
)
def test_archives_cannot_write_elsewhere(server, tmp_path, name):
    hr = zipped({**IMAGES, name: b"evil"})
    get(mini(serve(server, hr=hr), hr=hr))
    assert_whole()
    assert not list(tmp_path.parent.rglob("*evil*"))


def test_an_archive_without_all_images_is_an_error(server):
    hr = zipped({"mini_HR/0.png": IMAGES["mini_HR/0.png"]})
    with pytest.raises(OSError, match=r"2 images did not come, mini_HR/1.png"):
        get(mini(serve(server, hr=hr), hr=hr))
    assert not Path("data/mini_HR").exists()


def test_images_come_one_by_one_and_damaged_ones_from_the_next_mirror(server):
    server.files |= {f"/a/{name}": content for name, content in IMAGES.items()}
    server.files |= {f"/b/{name}": content for name, content in IMAGES.items()}
    server.files["/a/mini_HR/1.png"] = IMAGES["mini_HR/1.png"][:5000]
    server.files["/a/mini_HR/2.png"] = b"<html>moved</html>"
    mirrors = [server.url + "/a", server.url + "/b"]
    images = {name: name for name in IMAGES}
    get({"mini": [Source(mirrors, images, {}, 1000, pixel_digest_of(IMAGES))]})
    assert_whole()
    asked = sorted(path for path, _ in server.requests if path.startswith("/b"))
    assert asked == ["/b/mini_HR/1.png", "/b/mini_HR/2.png"]


def pixel_digest_of(images):
    for name, content in images.items():
        path = Path("published") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return pixel_digest(list(images), "published")


def test_other_pixels_than_published_are_refused(server):
    url = serve(server)
    published = pixel_digest_of(IMAGES)
    other = {**IMAGES, "mini_HR/0.png": png(99)}
    with pytest.raises(OSError, match="not the published ones"):
        get(mini(url, pixels=pixel_digest_of(other)))
    assert not Path("data/mini_HR").exists()
    get(mini(url, pixels=published))
    assert_whole()


def test_the_next_source_is_tried(server):
    first = mini(server.url + "/nowhere")["mini"]
    get({"mini": first + mini(serve(server), known=False)["mini"]})
    assert_whole()


# --- disk, what is there already, checking --------------------------------------------------------


def test_a_full_disk_is_an_error_before_anything_is_fetched(server, monkeypatch):
    usage = module.shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"GB are needed .* free"):
        get(mini(serve(server)))
    assert not server.requests


def test_an_incomplete_folder_is_completed(server):
    get(mini(serve(server)))
    Path("data/mini_HR/1.png").unlink()
    Path("data/mini_HR/2.png").write_bytes(b"cut short")
    Path("data/mini_HR/mine.txt").write_text("keep")
    assert not is_whole("mini")
    get(mini(server.url + "/a"))
    assert Path("data/mini_HR/mine.txt").read_text() == "keep"
    Path("data/mini_HR/mine.txt").unlink()
    assert_whole()


def test_a_folder_laid_out_by_hand_is_accepted(server):
    for name, content in IMAGES.items():
        Path("data", name).parent.mkdir(parents=True, exist_ok=True)
        Path("data", name).write_bytes(content)
    get(mini(serve(server)))
    assert not server.requests
    assert check() == {}
    Path("data/mini_HR/2.png").write_bytes(IMAGES["mini_HR/2.png"][:5000])
    assert "damaged" in check().pop("mini_HR/2.png")
    Path("data/mini_HR/2.png").write_bytes(png(99))
    assert check() == {}
    module.SETS = mini(pixels=pixel_digest_of(IMAGES))
    assert check() == {"mini": "its images are whole, but not the published ones"}


def test_check_finds_what_has_changed(server):
    get(mini(serve(server)))
    assert check() == {}
    Path("data/mini_HR/0.png").write_bytes(png(0)[:-1] + b"x")
    Path("data/mini_HR/1.png").unlink()
    assert check(["mini"]) == {
        "mini_HR/0.png": "has changed since it was fetched",
        "mini_HR/1.png": "is missing",
    }


@pytest.mark.parametrize("function", [download, check])
def test_an_unknown_set_is_an_error(server, function):
    with pytest.raises(ValueError, match="Set6: no such set; known are DIV2K_train"):
        function(["Set6"])


def test_the_command_line_fetches_lists_and_checks(server, capsys):
    for name in ("HR", "LR"):
        for k in range(1, 6):
            server.files[f"/a/Set5/image_SRF_4/img_00{k}_SRF_4_{name}.png"] = png(
                k, 128 if name == "HR" else 32
            )
    source = SETS["Set5"][0]._replace(pixels=None, mirrors=[])
    module.SETS["Set5"] = [source]
    assert main(["--download", "Set5", "--mirror", server.url + "/a"]) == 0
    out = capsys.readouterr().out
    assert "data/lists/Set5.csv" in out and "data/lists/valid.csv" in out
    assert "not there: DIV2K_train" in out and "--download DIV2K_train DIV2K_valid Set14" in out
    assert main(["--check"]) == 0 and "all is as published" in capsys.readouterr().out
    Path("data/Set5/HR/baby.png").unlink()
    assert (
        main(["--check", "Set5"]) == 1 and "Set5/HR/baby.png: is missing" in capsys.readouterr().out
    )
    server.files.clear()
    assert main(["--download", "Set5", "--mirror", server.url + "/a"]) == 1
    assert "error: Set5: could not be fetched" in capsys.readouterr().err


# --- killed ---------------------------------------------------------------------------------------


def test_what_a_killed_run_left_is_removed(server):
    get(mini(serve(server)))
    Path("data/.downloads/mini").mkdir()
    Path("data/.downloads/mini/hr.zip").write_bytes(HR_ZIP)
    server.requests.clear()
    get(mini(server.url + "/a"))
    assert_whole()
    assert not server.requests


def test_half_a_file_that_a_killed_run_left_does_not_reach_the_set(server):
    half = Path("data/.downloads/mini/images/mini_HR/.tmp-0123.png")
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    get(mini(serve(server)))
    assert sorted(os.listdir("data/mini_HR")) == ["0.png", "1.png", "2.png"]


def check_kills(server, kills, seed):
    sets = mini(serve(server))
    server.faults |= {"/a/hr.zip": {"drop": 15000}, "/a/lr.zip": {"drop": 3000}}
    get(sets, data="undisturbed")
    expected = contents(Path("undisturbed"))
    modules = [module, sys.modules["utils"]]
    lines = count_lines(lambda: get(sets, data="counted"), modules)
    moments = random.Random(seed)
    for k in range(kills):
        fetch = functools.partial(get, sets, data=f"killed{k}")
        while run_killed(fetch, modules, moments.randint(1, lines)):
            for folder in ("mini_HR", "mini_LR_bicubic/X4"):  # what has appeared is whole
                if Path(f"killed{k}", folder).exists():
                    assert {path.name for path in Path(f"killed{k}", folder).iterdir()} == {
                        Path(name).name for name in IMAGES if name.startswith(folder)
                    }
        fetch()
        assert contents(Path(f"killed{k}")) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_killed_download_run_again_ends_in_the_same_bytes(server):
    check_kills(server, 3, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_while_downloading_at_many_moments(server):
    check_kills(server, 20, seed=1)


# --- the table ------------------------------------------------------------------------------------


def test_the_table_has_the_official_sets():
    counts = {name: len(sources[0].images) // 2 for name, sources in SETS.items()}
    assert counts == {
        "DIV2K_train": 800,
        "DIV2K_valid": 100,
        "Set5": 5,
        "Set14": 14,
        "B100": 100,
        "Urban100": 100,
    }
    assert (
        SETS["Set5"][0].images["Set5/image_SRF_4/img_003_SRF_4_LR.png"] == "Set5/LR/butterfly.png"
    )
    assert "DIV2K_train_LR_bicubic/X4/0800x4.png" in SETS["DIV2K_train"][0].images.values()
    for sources in SETS.values():
        for source in sources:
            assert all(mirror.startswith("https://") for mirror in source.mirrors)
            assert all(
                sha256 is None or len(sha256) == 64 for _, sha256 in source.archives.values()
            )


@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_the_pixels_of_the_small_sets_are_the_published_ones(name):
    root = Path(__file__).parent.parent / "data"
    if not is_whole(name, root):
        pytest.skip(f"{name} is not there")
    assert pixel_digest(SETS[name][0].images.values(), root) == SETS[name][0].pixels
