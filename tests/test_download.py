"""Downloads from a local server that drops connections and sends damaged files."""

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import random
import shutil
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
from killing import contents, count_lines, run_killed
from PIL import Image

import tools.download as module
import tools.transfer as transfer
from create_data_lists import main
from tools.download import SETS, Archive, Source, check, download, is_whole


class Server:
    """Serves `files`; `faults` has by path what goes wrong.

    status: answers with it. drop: bytes sent before the connection closes. no_ranges: always sends
    the whole file. length: the one it announces. once: other content, the first time. answer: a
    function that writes the whole answer instead.
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
        if "answer" in fault:
            handler.close_connection = True
            with contextlib.suppress(OSError):  # the client has left
                fault["answer"](handler)
            return
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
    monkeypatch.setattr(transfer, "BACKOFF", 0)
    monkeypatch.setattr(transfer, "CHUNK", 1000)  # many pieces of small files
    monkeypatch.setattr(module, "SETS", dict(SETS))
    monkeypatch.setattr(module, "CHECKSUMS", tmp_path / "checksums.txt")
    publish({})
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


def mini(*mirrors, known=True, hr=HR_ZIP, lr=LR_ZIP):
    """A set in two archives, of which the SHA-256 is known, or the pixels of the images."""
    archives = {}
    for name, folder, content in [("hr.zip", "mini_HR/", hr), ("lr.zip", "mini_LR_bicubic/", lr)]:
        sha256 = hashlib.sha256(content).hexdigest() if known else None
        archives[name] = Archive(len(content) if known else 60000, sha256, folder)
    publish({} if known else IMAGES)
    images = {name: name for name in IMAGES}
    return {"mini": [Source(list(mirrors), images, archives, len(hr) + len(lr))]}


def one_by_one(*mirrors):
    """The same set, image by image."""
    publish(IMAGES)
    return {"mini": [Source(list(mirrors), {name: name for name in IMAGES}, {}, 1000)]}


def publish(images):
    """Make these the images whose pixels are known."""
    lines = []
    for name, content in images.items():
        array = np.array(Image.open(io.BytesIO(content)))
        lines.append(f"{name} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}\n")
    module.CHECKSUMS.write_text("".join(lines))


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
    assert "mini: could not be fetched" in str(error.value) and "SRGAN_MIRRORS" in str(error.value)
    for text in ("/a/hr.zip: 404", "/b/hr.zip: 404", "127.0.0.1:9/hr.zip"):
        assert text in str(error.value)


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not(server):
    url = serve(server)
    server.faults["/a/hr.zip"] = {"status": 503}
    with pytest.raises(OSError, match="503"):
        get(mini(url))
    assert [path for path, _ in server.requests].count("/a/hr.zip") == transfer.ATTEMPTS
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
    with pytest.raises(OSError, match=r"lacks 2 images, mini_HR/1.png"):
        get(mini(serve(server, hr=hr), hr=hr))
    assert not Path("data/mini_HR").exists()


def test_images_come_one_by_one_and_damaged_ones_from_the_next_mirror(server):
    server.files |= {f"/a/{name}": content for name, content in IMAGES.items()}
    server.files |= {f"/b/{name}": content for name, content in IMAGES.items()}
    server.files["/a/mini_HR/1.png"] = IMAGES["mini_HR/1.png"][:5000]
    server.files["/a/mini_HR/2.png"] = b"<html>moved</html>"
    mirrors = [server.url + "/a", server.url + "/b"]
    get(one_by_one(*mirrors))
    assert_whole()
    asked = sorted(path for path, _ in server.requests if path.startswith("/b"))
    assert asked == ["/b/mini_HR/1.png", "/b/mini_HR/2.png"]


def test_the_next_source_is_tried(server):
    first = mini(server.url + "/nowhere")["mini"]
    get({"mini": first + mini(serve(server), known=False)["mini"]})
    assert_whole()


# --- hostile servers ------------------------------------------------------------------------------


def answer(head, body=b""):
    """A fault: the server writes exactly this."""

    def write(handler):
        handler.wfile.write(f"HTTP/1.1 {head}\r\n\r\n".encode("latin-1"))
        for piece in [body] if isinstance(body, bytes) else body:
            handler.wfile.write(piece)

    return {"answer": write}


ENDLESS = iter(lambda: b"x" * 1000, None)
CUT_OFF = b"2000\r\n" + HR_ZIP[:0x2000] + b"\r\n2000\r\n" + HR_ZIP[0x2000:9000]
HOSTILE = {
    "no end": ("200 OK", ENDLESS, "sends more than"),
    "10 TB": ("200 OK\r\nContent-Length: 10000000000000", ENDLESS, "offers 10000000000000"),
    "packed": ("200 OK\r\nContent-Encoding: gzip", b"", "compressed, as gzip"),
    "packed twice": ("200 OK\r\nContent-Encoding: identity, br", b"", "compressed, as"),
    "length below 0": ("200 OK\r\nContent-Length: -5", b"x", "without progress|zip archive"),
    "length is no number": ("200 OK\r\nContent-Length: many", b"x", "without progress|zip archive"),
    "two lengths": ("200 OK\r\nContent-Length: 3\r\nContent-Length: 4", b"xxx", "zip: "),
    "huge length": ("200 OK\r\nContent-Length: " + "9" * 5000, b"x", "zip: "),
    "chunks cut off": ("200 OK\r\nTransfer-Encoding: chunked", CUT_OFF, "without progress"),
    "bad chunk": ("200 OK\r\nTransfer-Encoding: chunked", b"-1\r\nxxx", "without progress"),
    "a page": ("200 OK", b"<html>log in</html>", "without progress|not a whole zip"),
    "another range": ("206 OK\r\nContent-Range: bytes 5-9/10", b"xxxxx", "from 5, not from 0"),
    "no range": ("206 OK", b"x", "HTTP status 206"),
    "a range of words": ("206 OK\r\nContent-Range: bytes all", b"x", "HTTP status 206"),
    "huge range": ("206 OK\r\nContent-Range: bytes " + "9" * 5000 + "-/", b"x", "zip: "),
    "nothing": ("204 No Content", b"", "HTTP status 204"),
    "not modified": ("304 Not Modified", b"", "HTTP status 304"),
    "beyond the end": ("416 Range Not Satisfiable", b"", "416"),
    "come back tomorrow": ("503 Busy\r\nRetry-After: 86400", b"", "Retry-After: 86400"),
    "come back in 2300": (
        "429 Busy\r\nRetry-After: Fri, 31 Dec 2300 9:00:00 GMT",
        b"",
        "Retry-After: Fri",
    ),
    "come back some day": ("503 Busy\r\nRetry-After: some day", b"", "header: some day"),
    "come back never": ("503 Busy\r\nRetry-After: " + "9" * 5000, b"", "zip: "),
    "no such year": (
        "503 Busy\r\nRetry-After: Fri, 31 Dec " + "9" * 30 + " 9:00:00 GMT",
        b"",
        "zip: ",
    ),
    "to a file": ("302 Found\r\nLocation: file:///etc/passwd", b"", "file:///etc/passwd"),
    "to FTP": ("302 Found\r\nLocation: ftp://127.0.0.1/hr.zip", b"", "ftp://127.0.0.1"),
    "to half an address": ("302 Found\r\nLocation: http://[::1/hr.zip", b"", "IPv6"),
    "to a bad port": ("302 Found\r\nLocation: http://[::1]:99999999", b"", "zip: "),
    "to no host": ("302 Found\r\nLocation: http:///hr.zip", b"", "zip: "),
    "in a circle": ("302 Found\r\nLocation: hr.zip", b"", "redirects"),
    "in an endless circle": ("302 Found\r\nLocation: hr.zip", ENDLESS, "redirects"),
    "to nowhere": ("302 Found", b"", "HTTP status 302"),
    "header without end": ("200 OK\r\nX: " + "x" * 100000, b"", "without progress"),
    "no HTTP": ("hello\r\n\r\n\0\0\0", b"\xff" * 100, "zip: "),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_server_ends_in_the_next_one(server, fault):
    head, body, message = HOSTILE[fault]
    server.faults["/bad/hr.zip"] = answer(head, body)
    get(mini(server.url + "/bad", serve(server, "/good")))
    assert_whole()
    assert 1 <= [path for path, _ in server.requests].count("/bad/hr.zip") <= 31
    with pytest.raises(OSError, match=message) as error:
        get(mini(server.url + "/bad", known=False), data="other")
    assert "mini: could not be fetched" in str(error.value)
    files = [file for file in Path("other").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 60000  # no more than the limit


def test_a_short_wait_that_a_server_asks_for_is_kept(server, monkeypatch):
    waits = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    busy = answer("503 Busy\r\nRetry-After: 59")["answer"]

    def once(handler):
        server.faults.clear()
        busy(handler)

    url = serve(server)
    server.faults["/a/hr.zip"] = {"answer": once}
    get(mini(url))
    assert_whole()
    assert 59 in waits


def test_a_server_that_is_too_slow_is_left_and_the_next_one_resumes(server, monkeypatch):
    """Without clocks: any period is over at once, and no speed is fast enough."""
    monkeypatch.setattr(transfer, "SLOW_PERIOD", 0.001)
    monkeypatch.setattr(transfer, "SLOWEST", 10**9)
    drip, stop = (HR_ZIP[k : k + 1] for k in range(len(HR_ZIP))), threading.Event()

    def slow(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for byte in drip:
            handler.wfile.write(byte)
            stop.wait(0.01)

    server.faults["/bad/hr.zip"] = {"answer": slow}
    with pytest.raises(OSError, match=r"is too slow: .* bytes in"):
        get(mini(server.url + "/bad"))
    stop.set()
    monkeypatch.setattr(transfer, "SLOWEST", 0)
    have = Path("data/.downloads/mini/hr.zip.part").stat().st_size
    assert 0 < have < len(HR_ZIP)
    get(mini(serve(server, "/good")))
    assert_whole()
    assert ("/good/hr.zip", f"bytes={have}-") in server.requests


def test_a_server_that_gives_a_byte_per_connection_is_left(server):
    url = serve(server, "/good")
    serve(server, "/bad")
    server.faults["/bad/hr.zip"] = {"drop": 1}
    get(mini(server.url + "/bad", url))
    assert_whole()
    assert [path for path, _ in server.requests].count("/bad/hr.zip") == transfer.ATTEMPTS


def test_a_redirect_is_followed_but_what_comes_with_it_is_not_read(server):
    head = f"301 Moved\r\nLocation: {serve(server)}/hr.zip\r\nTransfer-Encoding: chunked"
    server.faults["/moved/hr.zip"] = answer(head, iter(lambda: b"3\r\nxxx\r\n", None))
    server.files["/moved/lr.zip"] = LR_ZIP
    get(mini(server.url + "/moved"))
    assert_whole()


def test_https_is_not_left_for_http(server, monkeypatch):
    send = requests.adapters.HTTPAdapter.send

    def redirect(self, request, **options):
        if not request.url.startswith("https:"):
            return send(self, request, **options)
        response = requests.Response()
        response.status_code, response.url, response.request = 302, request.url, request
        response.headers["Location"] = serve(server) + "/hr.zip"
        response.raw = io.BytesIO()
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirect)
    with pytest.raises(OSError, match="redirects from https to http:"):
        get(mini("https://example.com"))
    assert not server.requests


def test_words_of_a_server_are_printed_without_control_characters(server):
    evil = "\x1b[31mred\x9b2J\x07" + "y" * 5000
    words = [
        f"404 {evil}",
        "302 F\r\nLocation: x://y/\x1b[31mred",
        f"206 P\r\nContent-Range: {evil}",
    ]
    for head in words:
        server.faults["/bad/hr.zip"] = answer(head)
        with pytest.raises(OSError) as error:
            get(mini(server.url + "/bad"))
        lines = str(error.value).splitlines()
        assert all(line.isprintable() for line in lines) and len(str(error.value)) < 1000
        assert "red" in str(error.value)


@pytest.mark.parametrize(
    "head, body",
    [
        ("206 P\r\nContent-Range: bytes 9500-20000/20001", b"x" * 1000),  # leaves a gap
        ("416 Range Not Satisfiable", b""),
        ("200 OK", b"<html>please log in</html>"),
        ("200 OK\r\nContent-Length: 26", b"<html>please log in</html>"),
        ("404 Not Found", b""),
    ],
)
def test_what_is_there_survives_a_server_that_cannot_resume_it(server, head, body):
    part = Path("data/.downloads/mini/hr.zip.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(HR_ZIP[:9000])
    server.faults["/bad/hr.zip"] = answer(head, body)
    get(mini(server.url + "/bad", serve(server, "/good")))
    assert_whole()
    assert ("/good/hr.zip", "bytes=9000-") in server.requests


def test_a_range_that_begins_too_early_is_joined_at_the_right_byte(server):
    part = Path("data/.downloads/mini/hr.zip.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(HR_ZIP[:9000])
    size = len(HR_ZIP)
    url = serve(server)
    head = f"206 P\r\nContent-Range: bytes 8000-{size - 1}/{size}\r\nContent-Length: {size - 8000}"
    server.faults["/a/hr.zip"] = answer(head, HR_ZIP[8000:])
    get(mini(url))
    assert_whole()
    assert [path for path, _ in server.requests].count("/a/hr.zip") == 1


# --- hostile archives -----------------------------------------------------------------------------


def damaged_archives():
    """{what is wrong: archive}; each begins as a good one."""
    hr = {name: content for name, content in IMAGES.items() if "HR" in name}
    first = HR_ZIP.index(b"mini_HR/1.png")
    central = HR_ZIP.rindex(b"mini_HR/1.png") - 46  # of this member, in the directory at the end

    def changed(offset, new, local=None):
        content = bytearray(HR_ZIP)
        content[central + offset : central + offset + len(new)] = new
        if local is not None:
            content[first - 30 + local : first - 30 + local + len(new)] = new
        return bytes(content)

    def packed(method):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            for name, content in hr.items():
                archive.writestr(name, content)
        return out.getvalue()

    with pytest.warns(UserWarning, match="Duplicate name"):
        out = io.BytesIO(HR_ZIP)
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr("mini_HR/1.png", png(99))
    return {
        "method 14": changed(10, b"\x0e\0", local=8),
        "method 9": changed(10, b"\x09\0", local=8),
        "method 99": changed(10, b"\x63\0", local=8),
        "bzip2": packed(zipfile.ZIP_BZIP2),
        "LZMA": packed(zipfile.ZIP_LZMA),
        "encrypted": changed(8, b"\x01\0", local=6),
        "4 GB": changed(24, b"\xfe\xff\xff\xff"),
        "shorter": changed(24, (1000).to_bytes(4, "little")),
        "CRC": changed(16, b"\0\0\0\0", local=14),
        "another place": changed(42, b"\xf0\xff\xff\x0f"),
        "another version": changed(6, b"\xff\0"),
        "another name inside": HR_ZIP.replace(b"mini_HR/1.png", b"mini_HR/\x1b.png", 1),
        "not there": HR_ZIP.replace(b"mini_HR/1.png", b"mini_HR/9.png"),
        "not there by case": HR_ZIP.replace(b"mini_HR/1.png", b"MINI_HR/1.PNG"),
        "directory cut off": HR_ZIP[:central],
        "directory elsewhere": HR_ZIP[:-6] + b"\xff\xff\xff\x7f\0\0",
        "another image": zipped({**hr, "mini_HR/1.png": png(99)}),
        "another image behind": out.getvalue(),
        "another size": zipped({**hr, "mini_HR/1.png": png(1, 32)}),
        "no image": zipped({**hr, "mini_HR/1.png": b"<html>"}),
        "a bomb": zipped({**hr, "mini_HR/1.png": bytes(3_000_000)}),
    }


DAMAGED = damaged_archives()


@pytest.mark.parametrize("damage", DAMAGED)
def test_an_archive_that_cannot_be_unpacked_is_fetched_again_then_from_the_next_server(
    server, damage, monkeypatch
):
    monkeypatch.setattr(module, "IMAGE_LIMIT", 1_000_000)
    server.files["/bad/hr.zip"] = DAMAGED[damage]
    with pytest.raises(OSError, match="could not be fetched") as error:
        get(mini(server.url + "/bad", known=False))
    assert all(line.isprintable() for line in str(error.value).splitlines())
    assert ("has 3000000 bytes" in str(error.value)) == (damage == "a bomb")
    assert len(server.requests) == 2 and not list(Path("data").glob("mini*"))
    get(mini(server.url + "/bad", serve(server, "/good"), known=False))
    assert_whole()
    assert [path for path, _ in server.requests].count("/good/hr.zip") == 1


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", ["hr.zip", "hr.zip.part"])
@pytest.mark.parametrize("damage", ["method 14", "another image", "directory cut off"])
def test_a_finished_archive_of_an_earlier_run_is_compared_first(server, known, name, damage):
    Path("data/.downloads/mini").mkdir(parents=True)
    Path("data/.downloads/mini", name).write_bytes(DAMAGED[damage])
    get(mini(serve(server, "/good"), known=known))
    assert_whole()


# --- files of the user's own ----------------------------------------------------------------------


def place(name, content):
    Path("data", name).parent.mkdir(parents=True, exist_ok=True)
    Path("data", name).write_bytes(content)


def in_another_format(name):
    out = io.BytesIO()
    Image.open(io.BytesIO(IMAGES[name])).save(out, "BMP")
    return out.getvalue()


@pytest.mark.parametrize("make", [mini, functools.partial(mini, known=False), one_by_one])
def test_an_own_file_with_the_published_pixels_stays_as_it_is(server, make):
    server.files |= {f"/a/{name}": content for name, content in IMAGES.items()}
    place("mini_HR/1.png", in_another_format("mini_HR/1.png"))
    get(make(serve(server)))
    found = contents(Path("data"))
    assert found.pop("mini_HR/1.png") == in_another_format("mini_HR/1.png")
    assert {name: found[name] for name in IMAGES if name != "mini_HR/1.png"} == {
        name: content for name, content in IMAGES.items() if name != "mini_HR/1.png"
    }
    assert "/a/mini_HR/1.png" not in [path for path, _ in server.requests]
    assert "mini_HR/1.png" not in json.loads(found[".downloads/mini.json"])
    assert is_whole("mini") and check() == {}


@pytest.mark.parametrize("own", [png(99), b"", b"notes"])
@pytest.mark.parametrize("make", [mini, functools.partial(mini, known=False), one_by_one])
def test_another_own_file_is_never_replaced(server, make, own):
    server.files |= {f"/a/{name}": content for name, content in IMAGES.items()}
    place("mini_HR/1.png", own)
    before = contents(Path("data"))
    with pytest.raises(OSError, match=r"mini_HR.1.png \(.*\); move it away, then run this again"):
        get(make(serve(server)))
    early = own != png(99) or make is not mini  # known before anything is fetched
    assert bool(server.requests) != early
    after = contents(Path("data"))
    assert {name: after[name] for name in after if ".downloads" not in name} == before
    Path("data/mini_HR/1.png").rename("data/mine.png")
    if not early:
        server.files.clear()  # all has come
    get(make(server.url + "/a"))
    assert Path("data/mine.png").read_bytes() == own
    Path("data/mine.png").unlink()
    assert_whole()


def test_an_image_that_was_edited_after_it_was_fetched_is_the_users_own(server):
    get(mini(serve(server)))
    place("mini_HR/1.png", png(99))
    Path("data/mini_HR/2.png").unlink()
    with pytest.raises(OSError, match=r"mini_HR.1.png .has changed since it was fetched"):
        get(mini(server.url + "/a"))
    assert Path("data/mini_HR/1.png").read_bytes() == png(99)


def test_an_own_file_that_comes_while_the_set_is_fetched_is_not_replaced(server):
    url = serve(server)

    def meanwhile(handler):
        place("mini_HR/1.png", png(99))
        place("mini_LR_bicubic/X4/0x4.png", IMAGES["mini_LR_bicubic/X4/0x4.png"])
        server.faults.clear()
        server.answer(handler)

    server.faults["/a/hr.zip"] = {"answer": meanwhile}
    with pytest.raises(OSError, match=r"mini_HR.1.png .is not the published image"):
        get(mini(url))
    assert Path("data/mini_HR/1.png").read_bytes() == png(99)
    assert sorted(os.listdir("data/mini_HR")) == ["1.png"]


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_a_link_to_a_disk_that_is_away_is_not_replaced(server):
    Path("data/mini_HR").mkdir(parents=True)
    Path("data/mini_HR/1.png").symlink_to("/nowhere/1.png")
    with pytest.raises(OSError, match=r"mini_HR.1.png \(is missing\)"):
        get(mini(serve(server)))
    assert os.readlink("data/mini_HR/1.png") == "/nowhere/1.png"


def test_only_what_is_missing_is_fetched(server):
    server.files |= {f"/a/{name}": content for name, content in IMAGES.items()}
    get(mini(serve(server)))
    shutil.rmtree("data/mini_LR_bicubic")
    server.requests.clear()
    get(mini(server.url + "/a"))
    assert_whole()
    assert [path for path, _ in server.requests] == ["/a/lr.zip"]
    Path("data/mini_HR/1.png").unlink()
    server.requests.clear()
    get(one_by_one(server.url + "/a"))
    assert_whole()
    assert [path for path, _ in server.requests] == ["/a/mini_HR/1.png"]


def test_a_set_that_cannot_be_fetched_does_not_keep_the_others_away(server, capsys):
    sets = mini(serve(server)) | {"lost": mini(server.url + "/nowhere")["mini"]}
    sets["lost"] = [sets["lost"][0]._replace(images={"lost/1.png": "lost/1.png"}, archives={})]
    with pytest.raises(OSError, match="lost: could not be fetched"):
        get(sets, names=["lost", "mini"])
    assert "lost: not fetched" in capsys.readouterr().out
    assert is_whole("mini")


# --- disk, what is there already, checking --------------------------------------------------------


def test_a_full_disk_is_an_error_before_anything_is_fetched(server, monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"GB are needed .* free"):
        get(mini(serve(server)))
    assert not server.requests


def test_a_disk_that_fills_up_keeps_its_reserve_and_what_has_come(server, monkeypatch):
    usage, frees = shutil.disk_usage("."), iter([10**9] * 6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=next(frees, 10**7)))
    with pytest.raises(OSError, match=r"data: 0.1 GB are needed .* free some space, then run this"):
        get(mini(serve(server)))
    have = Path("data/.downloads/mini/hr.zip.part").stat().st_size
    assert 0 < have < len(HR_ZIP)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    get(mini(server.url + "/a"))
    assert_whole()
    assert server.requests[1] == ("/a/hr.zip", f"bytes={have}-")


def test_a_disk_that_refuses_a_write_ends_the_run_and_asks_no_other_server(server, monkeypatch):
    def full(part):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "check_space", lambda *_: None)
    monkeypatch.setattr(transfer, "check_space", full)
    with pytest.raises(OSError, match="data: No space left on device; free some space"):
        get(mini(serve(server), server.url + "/b"))
    assert len(server.requests) == 1


def test_what_a_stopped_run_left_counts_as_space_that_is_there(server, monkeypatch):
    usage = shutil.disk_usage(".")
    sets = mini(serve(server))
    size = 2 * (len(HR_ZIP) + len(LR_ZIP))
    free = transfer.RESERVE + size - 8000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    with pytest.raises(OSError, match="free some space"):
        get(sets)
    Path("data/.downloads/mini").mkdir(parents=True)
    Path("data/.downloads/mini/hr.zip.part").write_bytes(HR_ZIP[:9000])
    get(sets)
    assert_whole()


def test_a_folder_that_cannot_be_written_is_an_error_with_a_way_out(server, monkeypatch):
    def read_only(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(OSError, match=r"Read-only .*data.*; make it writable, or name another"):
        get(mini(serve(server)))


def test_a_whole_set_is_not_written_to(server):
    for name, content in IMAGES.items():
        place(name, content)
    get(mini(serve(server)))
    assert contents(Path("data")) == IMAGES and not Path("data/.downloads").exists()


def test_a_damaged_manifest_is_an_error_that_names_it(server):
    get(mini(serve(server)))
    Path("data/.downloads/mini.json").write_bytes(b'{"mini_HR')
    with pytest.raises(OSError, match=r"mini.json: damaged .* delete it, then run this again"):
        check()
    Path("data/.downloads/mini.json").unlink()
    assert check() == {}


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
    publish(IMAGES)
    assert check() == {"mini_HR/2.png": "is not the published image"}


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
    source = SETS["Set5"][0]._replace(mirrors=[])
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


def check_kills(server, kills, seed, make=mini):
    server.files |= {f"/a/{name}": content for name, content in IMAGES.items()}
    sets = make(serve(server))
    server.faults |= {"/a/hr.zip": {"drop": 15000}, "/a/lr.zip": {"drop": 3000}}
    get(sets, data="undisturbed")
    expected = contents(Path("undisturbed"))
    modules = [module, transfer, sys.modules["utils"]]
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
@pytest.mark.parametrize("make", [mini, functools.partial(mini, known=False), one_by_one])
def test_killed_while_downloading_at_many_moments(server, make):
    check_kills(server, 20, seed=1, make=make)


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_no_flipped_byte_of_a_downloaded_archive_reaches_the_images(server, known):
    sets = mini(serve(server), known=known)
    generator, work = random.Random(2), Path("data/.downloads/mini")
    for k in range(250):
        archive = bytearray(HR_ZIP)
        archive[generator.randrange(len(archive))] ^= generator.randint(1, 255)
        work.mkdir(parents=True)
        (work / generator.choice(["hr.zip", "hr.zip.part"])).write_bytes(archive)
        server.requests.clear()
        get(sets)
        assert_whole()
        fetched = "/a/hr.zip" in [path for path, wanted in server.requests if wanted is None]
        assert fetched or not known, f"flip {k} was accepted"
        shutil.rmtree("data")


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
            for archive in source.archives.values():
                assert archive.size > 0 and len(archive.sha256 or 64 * "0") == 64


# Of the whole sets, as they were checked against the authors' files: names, shapes and pixels.
DIGESTS = {
    "Set5": "bf3125c845cb714ef80d761cf91c258c20700a07861e8b47a606fa026f4ca64a",
    "Set14": "14a92e4f0fc2382d13d26de0ebce9a9c68dd04820e93b1140b819efbd4de7316",
    "B100": "b45173a0062a92c9935369a38923457c06b30129b1ce0f3b139c25a94a3bbc7a",
    "Urban100": "90da5b40cb6f0e8e5a410751b9e40070c05c9841679f747e96ec3e5f13c997a4",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_every_image_of_the_small_sets_has_its_checksum(name):
    lines = [
        line
        for line in module.CHECKSUMS.read_text().splitlines(keepends=True)
        if line.startswith(f"{name}/")
    ]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == DIGESTS[name]
    assert [line.split(" ")[0] for line in lines] == sorted(SETS[name][0].images.values())


@pytest.mark.parametrize("name", DIGESTS)
def test_the_images_that_are_there_are_the_published_ones(name):
    root = Path(__file__).parent.parent / "data"
    if not is_whole(name, root):
        pytest.skip(f"{name} is not there")
    assert check([name], root) == {}
