"""VGG weights: which file is taken, what is refused and why, the download from a local server."""

import hashlib
import http.server
import threading

import pytest
import torch

from models import VGGFeatures
from tools import transfer, vgg_weights

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
