"""Checkpoints from strangers: what loads, and what is refused with which words."""

import os
import pickle

import pytest

torch = pytest.importorskip("torch", reason="checkpoints are read with torch: pip install 'msconv-deploy[torch]'")
from safetensors.torch import save_file  # noqa: E402

from msconv_deploy.errors import BadInputError  # noqa: E402
from msconv_deploy.exporting.checkpoint import load_into, read_state_dict  # noqa: E402
from msconv_deploy.nn import MSConv2d  # noqa: E402

STATE = MSConv2d([3, 2, 0, 4], 8, 3, padding=1).state_dict()


class Evil:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    ],
)
def test_state_dicts_and_their_usual_wrappings_load(tmp_path, wrap):
    torch.save(wrap(STATE), tmp_path / "c.pt")
    state = read_state_dict(tmp_path / "c.pt")
    assert set(state) == set(STATE)
    assert all(torch.equal(state[k], STATE[k]) for k in STATE)


def test_safetensors_load(tmp_path):
    save_file(STATE, tmp_path / "c.safetensors")
    assert set(read_state_dict(tmp_path / "c.safetensors")) == set(STATE)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "x": Evil()}, "c.pt")
    with pytest.raises(BadInputError, match=r"refused: reading it would run code.*posix\.system"):
        read_state_dict("c.pt")
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BadInputError, match="refused|not a checkpoint"):
        read_state_dict("raw.pkl")
    assert not (tmp_path / "pwned").exists()


def test_whole_modules_are_refused(tmp_path):
    torch.save(MSConv2d([3, 0, 0, 1], 4, 3), tmp_path / "c.pt")
    with pytest.raises(BadInputError, match="would run code.*MSConv2d"):
        read_state_dict(tmp_path / "c.pt")


@pytest.mark.parametrize("name", ["c.pt", "c.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 not a zip", bytes(range(64)), b"\x80\x02}q\x00." * 9])
def test_files_that_are_no_checkpoints(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError, match="not a|refused"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("name", ["c.pt", "c.safetensors"])
def test_truncated_checkpoints(tmp_path, name):
    (save_file if name.endswith("safetensors") else torch.save)(STATE, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInputError, match="truncated"):
        read_state_dict(tmp_path / name)


def test_missing_file_and_other_content(tmp_path):
    with pytest.raises(BadInputError, match="no such checkpoint"):
        read_state_dict(tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(BadInputError, match="holds a list"):
        read_state_dict(tmp_path / "list.pt")
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "mixed.pt")
    with pytest.raises(BadInputError, match="also holds epoch"):
        read_state_dict(tmp_path / "mixed.pt")


def test_keys_that_do_not_match_are_named():
    state = {("wrong.weight" if k == "nch_block.weight" else k): v for k, v in STATE.items()}
    with pytest.raises(
        BadInputError, match=r"c: keys .*missing in the checkpoint: nch_block.weight; not in the module: wrong.weight"
    ):
        load_into(MSConv2d([3, 2, 0, 4], 8, 3, padding=1), state, "c")


def test_the_other_semantics_and_wrong_shapes_are_explained():
    with pytest.raises(BadInputError, match=r'padding_semantics="source".*with_padding_semantics'):
        load_into(MSConv2d([3, 2, 0, 4], 8, 3, padding=1, padding_semantics="tiled"), STATE, "c")
    with pytest.raises(BadInputError, match=r"nchw_block.weight.*\[8, 3, 3, 3\].*\[6, 3, 3, 3\]"):
        load_into(MSConv2d([3, 2, 0, 4], 6, 3, padding=1), STATE, "c")
