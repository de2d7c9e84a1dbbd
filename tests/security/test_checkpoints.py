"""Checkpoints from strangers: no code is run, and no more memory is taken than the file is large."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="checkpoints are read with torch: pip install 'msconv-deploy[torch]'")

from msconv_deploy.cli.main import main  # noqa: E402
from msconv_deploy.errors import BadInputError, ExitCode  # noqa: E402
from msconv_deploy.exporting.checkpoint import read_state_dict  # noqa: E402

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


class Payload:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def repacked(path: Path, compression: int = zipfile.ZIP_STORED, **changed: bytes) -> Path:
    """The archive written again, with entries changed by the end of their name."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, changed.get(name.rpartition("/")[2].replace(".", "_"), content))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def peak_in_mib(path: Path) -> tuple[str, float]:
    """The message of the refusal, and by how much the process grew while the file was read, in a process of its own."""
    code = (
        "import resource, sys\n"
        "from msconv_deploy.errors import BadInputError\n"
        "from msconv_deploy.exporting.checkpoint import read_state_dict\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try: read_state_dict(sys.argv[1])\n"
        "except BadInputError as error: print(error)\n"
        "print((peak() - before) / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *message, peak = done.stdout.splitlines()
    return "\n".join(message), float(peak)


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
@pytest.mark.parametrize(
    "payload", [Payload(os.system, "touch pwned"), Payload(eval, "open('pwned', 'w')")], ids=["os.system", "eval"]
)
def test_export_refuses_a_checkpoint_with_code_and_runs_nothing(tmp_path, monkeypatch, capsys, payload, legacy):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(2), "x": payload}, "evil.pt", _use_new_zipfile_serialization=not legacy)
    recipe = ROOT / "export" / "minimal.toml"
    assert main(["export", str(recipe), "--checkpoint", "evil.pt", "-o", "out"]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert "evil.pt: refused: reading it would run code" in said
    assert "safetensors" in said
    assert "Traceback" not in said
    assert not Path("pwned").exists()
    assert not list(Path("out").rglob("*.onnx"))


def test_the_payload_of_these_tests_is_one(tmp_path, monkeypatch):
    """Without a guard it runs: the tests above would notice."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload(eval, "open('pwned', 'w').close()")))
    assert Path("pwned").exists()


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"w": torch.zeros(GIB // 16)}, tmp_path / "bomb.pt")  # 256 MiB of zeros
    bomb = repacked(tmp_path / "bomb.pt", zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 20
    message, grown = peak_in_mib(bomb)
    assert "it is compressed, which torch.save never does" in message
    assert grown < 64


def test_entries_larger_than_the_file_are_refused(tmp_path):
    """One entry's bytes named many times by the directory at the archive's end."""
    torch.save({"w": torch.zeros(1 << 16)}, tmp_path / "c.pt")
    whole = (tmp_path / "c.pt").read_bytes()
    start = whole.index(b"PK\x01\x02")
    directory, end = whole[start : whole.rindex(b"PK\x05\x06")], bytearray(whole[whole.rindex(b"PK\x05\x06") :])
    directory = directory[: directory.find(b"PK\x06\x06")] if b"PK\x06\x06" in directory else directory
    with zipfile.ZipFile(tmp_path / "c.pt") as archive:
        count = len(archive.namelist())
    copies = 50
    struct.pack_into("<HHLL", end, 8, count * copies, count * copies, len(directory) * copies, start)
    (tmp_path / "c.pt").write_bytes(whole[:start] + directory * copies + end)
    assert "refused: it says that it holds" in refusal(tmp_path / "c.pt")


def test_a_bytearray_of_a_stated_length_is_refused(tmp_path):
    torch.save({"w": torch.zeros(2), "x": Payload(bytearray, GIB // 2)}, tmp_path / "c.pt")
    message, grown = peak_in_mib(tmp_path / "c.pt")
    assert "refused: it makes a bytearray" in message
    assert grown < 64


def test_a_tensor_without_values_in_the_file_is_refused(tmp_path):
    """It would be memory as it was found, or none."""
    torch.save({"w": Payload(torch.Tensor, 1 << 14, 1 << 14)}, tmp_path / "c.pt")
    assert "w is larger than what the file holds" in refusal(tmp_path / "c.pt")
    torch.save({"w": torch.zeros(2, device="meta")}, tmp_path / "c.pt")
    assert "w has no values" in refusal(tmp_path / "c.pt")
    torch.save({"w": torch.eye(2).to_sparse()}, tmp_path / "c.pt")
    assert "w is not dense" in refusal(tmp_path / "c.pt")


@pytest.mark.parametrize("extent", [1 << 31, 1 << 40])
def test_a_legacy_file_that_declares_a_huge_storage_takes_no_memory(tmp_path, extent):
    """8 GiB, which an allocator promises but nobody fills, and 4 TiB, which it refuses."""
    torch.save({"w": torch.zeros(70001)}, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    small, large = b"J" + struct.pack("<i", 70001), b"\x8a\x06" + struct.pack("<q", extent)[:6]
    content = (tmp_path / "c.pt").read_bytes()
    assert small in content
    content = content.replace(small, large).replace(struct.pack("<q", 70001), struct.pack("<q", extent))
    (tmp_path / "c.pt").write_bytes(content)
    message, grown = peak_in_mib(tmp_path / "c.pt")
    assert "not a checkpoint, or truncated" in message
    assert grown < 64


def test_storages_that_an_archive_declares_larger_than_they_are(tmp_path):
    torch.save({"w": torch.zeros(70001)}, tmp_path / "c.pt")
    with zipfile.ZipFile(tmp_path / "c.pt") as archive:
        content = archive.read("c/data.pkl")
    small, large = b"J" + struct.pack("<i", 70001), b"\x8a\x06" + struct.pack("<q", 1 << 40)[:6]
    assert small in content
    repacked(tmp_path / "c.pt", data_pkl=content.replace(small, large))
    assert "not a checkpoint, or truncated" in refusal(tmp_path / "c.pt")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_truncated_archives_are_refused(tmp_path, kept):
    torch.save({"w": torch.zeros(5000)}, tmp_path / "c.pt")
    whole = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "c.pt").write_bytes(whole[: int(len(whole) * kept)])
    assert "truncated" in refusal(tmp_path / "c.pt")


def test_a_deeply_nested_pickle_ends_in_a_message(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "c.pt")
    depth = 100_000
    content = b"\x80\x02" + b"}X\x01\x00\x00\x00a" * depth + b"}" + b"s" * depth + b"."
    assert "not a state dict" in refusal(repacked(tmp_path / "c.pt", data_pkl=content))


def safetensors_file(path: Path, header: bytes, data: bytes, length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def tensor(offsets: tuple[int, int], shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        pytest.param({"a": tensor((0, 8)), "b": tensor((0, 8))}, 8, id="overlapping"),
        pytest.param({"a": tensor((0, 8)), "b": tensor((4, 12))}, 12, id="half-overlapping"),
        pytest.param({"a": tensor((0, 8))}, 16, id="bytes-of-nobody"),
        pytest.param({"a": tensor((0, 1 << 40), (1 << 38,))}, 8, id="beyond-the-end"),
        pytest.param({"a": tensor((0, 8), (1 << 40, 1 << 40))}, 8, id="overflowing-shape"),
        pytest.param({"a": tensor((0, 8), (-2,))}, 8, id="negative-extent"),
        pytest.param({"a": tensor((0, 8), dtype="PICKLE")}, 8, id="unknown-type"),
    ],
)
def test_safetensors_with_a_wrong_header_are_refused(tmp_path, header, data):
    path = safetensors_file(tmp_path / "c.safetensors", json.dumps(header).encode(), bytes(data))
    assert "not a safetensors file" in refusal(path)


@pytest.mark.parametrize("length", [0, 3, 1 << 20, (1 << 62) - 1, (1 << 64) - 1])
def test_safetensors_with_a_wrong_header_length_are_refused(tmp_path, length):
    path = safetensors_file(tmp_path / "c.safetensors", b'{"a":{}}', bytes(8), length)
    message, grown = peak_in_mib(path)
    assert "not a safetensors file" in message
    assert grown < 64


def test_a_safetensors_header_of_great_depth_is_refused(tmp_path):
    path = safetensors_file(tmp_path / "c.safetensors", b'{"a":' * 100_000, b"")
    assert "recursion limit" in refusal(path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_a_checkpoint_must_be_an_ordinary_file(tmp_path, kind):
    """A pipe would block, /dev/zero never ends."""
    path = {"folder": tmp_path, "pipe": tmp_path / "pipe", "device": Path("/dev/zero")}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    assert "no such checkpoint file" in refusal(path)


def test_what_torch_saves_is_still_read(tmp_path):
    """The checks refuse nothing that is honest: views, shared and empty tensors, parameters, attributes, optimizers."""
    whole = torch.arange(12.0)
    marked = torch.zeros(2)
    marked.note = "attributes are saved as well"
    state = {"a": whole, "b": whole[3:5], "c": torch.nn.Parameter(whole.view(3, 4)), "d": torch.zeros(0), "e": marked}
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    for legacy in (False, True):
        content = {"state_dict": state, "optimizer": optimizer.state_dict(), "epoch": 3}
        torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
        read = read_state_dict(tmp_path / "c.pt")
        assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    buffer = io.BytesIO()
    torch.save({"h": torch.zeros(3, dtype=torch.bfloat16)}, buffer)
    (tmp_path / "b.pt").write_bytes(buffer.getvalue())
    assert read_state_dict(tmp_path / "b.pt")["h"].dtype == torch.bfloat16
