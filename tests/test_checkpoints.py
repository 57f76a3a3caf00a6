"""Checkpoints and the log: what is written comes back to the bit; what is damaged is noticed."""

import errno
import hashlib
import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tools import checkpoints

TENSORS = {
    "weight": torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(0)),
    "last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "turned": torch.arange(6).view(2, 3).T,
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "strange": torch.tensor([float("nan"), float("inf"), -0.0]),
    "step": torch.tensor(7),
    "bytes": torch.arange(256, dtype=torch.uint8),
    "none": torch.zeros(0, 3),
    "trained": torch.ones(2, requires_grad=True),
}
FACTS = {"epoch": 3, "loss": 0.1, "name": '照片 "一"\n', "rows": [{"step": 1}], "none": None}


def to_bytes(tensor):
    return tensor.detach().contiguous().view(-1).view(torch.uint8).tolist()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run" / "checkpoint-000000007.safetensors"
    checkpoints.write(path, TENSORS, FACTS)
    return path


def signed(data):
    """Bytes with a metadata entry "sha256" of 64 dots, with the checksum that makes them valid."""
    unsigned = data.replace(64 * b".", checkpoints.UNSIGNED.encode(), 1)
    return data.replace(64 * b".", hashlib.sha256(unsigned).hexdigest().encode(), 1)


# --- files ----------------------------------------------------------------------------------------


def test_what_is_written_comes_back_to_the_bit(path):
    tensors, facts = checkpoints.read(path)
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (value.dtype, value.shape)
        assert to_bytes(tensors[name]) == to_bytes(value)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_programs_read_it_as_safetensors(path):
    assert to_bytes(safetensors.torch.load_file(path)["weight"]) == to_bytes(TENSORS["weight"])


def test_every_flipped_bit_is_noticed(path):
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    positions = {*range(0, header, 3), *range(header, len(data), 7), *range(8), len(data) - 1}
    assert len(positions) > 417
    for k in sorted(positions):
        damaged = bytearray(data)
        damaged[k] ^= 1 << k % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path.name} is damaged"):
            checkpoints.read(path)


def test_every_missing_or_additional_byte_is_noticed(path):
    data = path.read_bytes()
    cut = [data[:k] for k in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1)]
    longer = [data + b"\0", data + data, b"\0" + data, data[:500] + b" " + data[500:]]
    for damaged in cut + longer:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path.name} is damaged"):
            checkpoints.read(path)


def header(metadata, length=None, **tensors):
    """A file of this header with four bytes of data; `length` is what it says of the header."""
    text = json.dumps({"__metadata__": metadata, **tensors}).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(4)


SHA = {"sha256": 64 * "."}
FORGED = {
    "another program's": safetensors.torch.save({"a": torch.ones(1)}),
    "no facts": signed(safetensors.torch.save({"a": torch.ones(1)}, SHA)),
    "facts that are not JSON": signed(
        safetensors.torch.save({"a": torch.ones(1)}, {"facts": "{", **SHA})
    ),
    "no checksum": header({"facts": "{}"}),
    "an empty checksum": header({"facts": "{}", "sha256": ""}),
    "a checksum that is a number": header({"facts": "{}", "sha256": 5}),
    "metadata that is a list": header([]),
    "a header as long as all memory": header(SHA, 2**64 - 1),
    "no header": header(SHA, 0),
    "a deep header": (10**5).to_bytes(8, "little") + 10**5 * b"[",
    "a tensor of 4 TB": signed(
        header({"facts": "{}", **SHA}, a=dict(dtype="F32", shape=[10**12], data_offsets=[0, 4]))
    ),
    "a tensor beyond the end": signed(
        header({"facts": "{}", **SHA}, a=dict(dtype="F32", shape=[2], data_offsets=[0, 8]))
    ),
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED.keys())
def test_a_forged_file_is_refused(data, path):
    """Some have a valid checksum: whoever forges a file can compute one."""
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name} is damaged, or not written by this program"):
        checkpoints.read(path)


def test_the_forger_s_tool_can_make_a_valid_file(path):
    """Else the forged files above might be refused for their checksum only."""
    path.write_bytes(
        signed(header({"facts": "[5]", **SHA}, a=dict(dtype="F32", shape=[1], data_offsets=[0, 4])))
    )
    tensors, facts = checkpoints.read(path)
    assert facts == [5] and tensors["a"].tolist() == [0]


def test_a_file_with_code_in_it_runs_none(path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (path.with_name("was here"),)

    for data in (pickle.dumps(Evil()), b"\x80\x02}q\0." + pickle.dumps(Evil())):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is damaged"):
            checkpoints.read(path)
    torch.save({"weight": Evil()}, path)
    with pytest.raises(ValueError, match="is damaged"):
        checkpoints.read(path)
    assert not path.with_name("was here").exists()
    pickle.loads(pickle.dumps(Evil()))
    assert path.with_name("was here").exists(), "the code would do something"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.safetensors.*No such file"):
        checkpoints.read(tmp_path / "none.safetensors")


def test_a_write_that_fails_leaves_the_file_as_it_was(path, monkeypatch):
    before = path.read_bytes()

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.write(path, {"a": torch.ones(9)}, {})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failed_write_is_explained_with_what_is_still_valid(path):
    failed = pytest.raises(OSError, match=r"run: cannot be written \(disk full\)\. Make room.*0007")
    with failed as caught, checkpoints.explained(path.parent, path):
        raise OSError(errno.ENOSPC, "disk full")
    assert caught.value.errno == errno.ENOSPC


# --- the checkpoints of a folder ------------------------------------------------------------------


def save(folder, *steps, **options):
    for step in steps:
        checkpoints.save(folder, step, {"a": torch.tensor(step)}, {"step": step}, **options)


def steps(folder):
    return [checkpoints.read(path)[1]["step"] for path in checkpoints.files(folder)]


@pytest.mark.parametrize(("keep", "expected"), [(1, [30]), (2, [20, 30]), (9, [0, 5, 20, 30])])
def test_the_last_checkpoints_are_kept(keep, expected, tmp_path):
    save(tmp_path, 0, 5, 20, 30, keep_last=keep)
    assert steps(tmp_path) == expected


def test_two_are_kept_by_default_and_a_step_saved_twice_counts_once(tmp_path):
    save(tmp_path, 5, 20, 20)
    assert steps(tmp_path) == [5, 20]


def test_steps_are_in_the_order_of_their_numbers(tmp_path):
    save(tmp_path, 9, 10, 999_999_999, keep_last=9)
    assert steps(tmp_path) == [9, 10, 999_999_999]


def test_saving_leaves_other_files_alone_and_removes_what_a_killed_process_left(tmp_path):
    others = ["log.jsonl", "epoch-001.safetensors", "checkpoint-000000001-best.safetensors"]
    for name in [*others, ".tmp-0123456789ab.safetensors"]:
        (tmp_path / name).touch()
    save(tmp_path, 1, 2, 3, keep_last=1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*others, "checkpoint-000000003.safetensors"}


def test_damaged_later_checkpoints_do_not_drive_out_valid_ones(tmp_path):
    save(tmp_path, 10, 20, 30, 40, keep_last=4)
    for path in checkpoints.files(tmp_path)[2:]:
        path.write_bytes(b"damaged")
    save(tmp_path, 25, keep_last=2)
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoints.read_latest(tmp_path)[2] == {"step": 25}
    assert checkpoints.read(checkpoints.files(tmp_path)[0])[1] == {"step": 20}
    save(tmp_path, 45, 50)
    assert steps(tmp_path) == [45, 50]


def test_the_latest_checkpoint_is_read(tmp_path):
    assert checkpoints.read_latest(tmp_path) is None
    assert checkpoints.read_latest(tmp_path / "none") is None
    save(tmp_path, 5, 20)
    path, tensors, facts = checkpoints.read_latest(tmp_path)
    assert path.name == "checkpoint-000000020.safetensors"
    assert tensors["a"] == 20 and facts == {"step": 20}


def test_a_damaged_latest_checkpoint_is_named_and_the_one_before_it_is_read(tmp_path):
    save(tmp_path, 5, 20)
    older, latest = checkpoints.files(tmp_path)
    latest.write_bytes(latest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"checkpoint-000000020\.safetensors is damaged.*before"):
        assert checkpoints.read_latest(tmp_path)[0] == older
    older.write_bytes(b"")
    invalid = pytest.raises(ValueError, match=r"no checkpoint in .* is valid: move the folder away")
    with pytest.warns(UserWarning, match="is damaged"), invalid:
        checkpoints.read_latest(tmp_path)


# --- networks and optimizers (with Muon: test_muon.py) --------------------------------------------


def test_a_network_of_another_shape_is_refused():
    packed = checkpoints.pack("net", torch.nn.Linear(3, 2))
    assert packed.keys() == {"net.weight", "net.bias"}
    for other in (torch.nn.Linear(3, 3), torch.nn.Linear(3, 2, bias=False), torch.nn.PReLU()):
        with pytest.raises(RuntimeError, match="Error"):
            checkpoints.unpack(packed, "net", other)


def test_names_are_kept_apart():
    tensors = {"a.x": 1, "a.x.y": 2, "ab.x": 3}
    assert checkpoints.under("a.", tensors) == {"x": 1, "x.y": 2}


# --- the log --------------------------------------------------------------------------------------


def test_rows_are_logged_and_read_by_kind(tmp_path):
    folder = tmp_path / "new"
    assert checkpoints.read_log(folder, "train") == []
    checkpoints.log_row(folder, "train", {"step": 1, "loss": 0.1})
    checkpoints.log_row(folder, "valid", {"step": 1, "psnr": 30.5})
    with pytest.raises(ValueError, match="JSON"):  # which knows no infinity
        checkpoints.log_row(folder, "valid", {"step": 1, "psnr": float("inf")})
    checkpoints.log_row(folder, "train", {"step": 2, "loss": 1e-9})
    assert checkpoints.read_log(folder, "train") == [
        {"step": 1, "loss": 0.1},
        {"step": 2, "loss": 1e-9},
    ]
    assert checkpoints.read_log(folder, "valid") == [{"step": 1, "psnr": 30.5}]
    assert len((folder / "log.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("end", ['{"kind": "train", "st', '{"kind": "train", "step": 3', "\0\0\0"])
def test_a_line_that_was_cut_off_is_left_out(end, tmp_path):
    checkpoints.log_row(tmp_path, "train", {"step": 1})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write(end)
    assert checkpoints.read_log(tmp_path, "train") == [{"step": 1}]


def test_a_log_is_rewritten_in_the_order_of_steps(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoints.log_row(tmp_path, "train", {"step": step, "loss": 0.5})
    history = {"train": [{"step": 1}, {"step": 3}], "valid": [{"step": 0}, {"step": 3}]}
    checkpoints.rewrite_log(tmp_path, history)
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert [(row["step"], row["kind"]) for row in lines] == [
        (0, "valid"),
        (1, "train"),
        (3, "train"),
        (3, "valid"),
    ]
    assert {kind: checkpoints.read_log(tmp_path, kind) for kind in history} == history
