"""Files of torch.save that would execute code, or take memory that they do not hold, are refused."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v.interop.native import read_safely
from d2v.interop.pickles import check_content, check_pickle


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def saved(path: Path, content: Any, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


REFUSED: dict[str, Callable[[], Any]] = {
    "code": lambda: Calls(print, "EXECUTED"),
    "a byte array of a terabyte": lambda: Calls(bytearray, 1 << 40),
    "numbers of a terabyte": lambda: Calls(torch.FloatTensor, 1 << 38),
    "a tensor without content": lambda: torch.empty(1 << 40, device="meta"),
    "a sparse tensor": lambda: torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (1 << 40,)),
    "one number, repeated": lambda: torch.ones(1).expand(1 << 40),
    "one tensor under many names": lambda: [torch.ones(1 << 16).view(1 << 16)[:] for _ in range(2)] * 100,
    "an attribute access": lambda: Calls(getattr, "text", "upper"),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        path = saved(tmp_path / "evil.ckpt", {"state": REFUSED[name]()}, legacy)
    except NotImplementedError:
        pytest.skip("the old format has none of them")
    with pytest.raises(ValueError, match=r"checkpoint=.*evil"):
        read_safely(path)
    assert "EXECUTED" not in capsys.readouterr().out


def test_a_structure_of_billions_of_values(tmp_path: Path) -> None:
    laughs: Any = ["x"]
    for _ in range(40):
        laughs = [laughs, laughs]
    with pytest.raises(ValueError, match="values"):
        read_safely(saved(tmp_path / "evil.ckpt", {"laughs": laughs}))
    for _ in range(200):
        laughs = [laughs]
    with pytest.raises(ValueError, match=r"deep|values"):
        read_safely(saved(tmp_path / "deep.ckpt", {"laughs": laughs}))


def test_names_that_stand_elsewhere_in_the_pickle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"a": OrderedDict()}, protocol=4))
    with pytest.raises(ValueError, match="STACK_GLOBAL"):
        check_pickle(path)


def test_a_pickle_with_an_archive_behind_it_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "evil.ckpt", Calls(bytearray, 1 << 40), legacy=True)
    saved(tmp_path / "good.ckpt", {})
    with path.open("ab") as file:
        file.write((tmp_path / "good.ckpt").read_bytes())
    assert zipfile.is_zipfile(path)
    with pytest.raises(ValueError, match="bytearray"):
        read_safely(path)


def test_a_pickle_under_another_spelling(tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/data.PKL", pickle.dumps(bytearray(3), protocol=2))
    with pytest.raises(ValueError, match="bytearray"):
        check_pickle(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_checkpoints_hold_is_read(legacy: bool, tmp_path: Path) -> None:
    weight = torch.ones(3, 2)
    content = {
        "state_dict": OrderedDict(weight=weight, tied=weight, half=weight.half(), view=torch.ones(4, 4)[1:, ::2]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "rng": torch.get_rng_state(),
        "args": argparse.Namespace(a=1, b=[2.5, None]),
        "plain": ("text", b"bytes", {1: {2, 3}}, torch.Size([1, 2]), torch.float32, torch.device("cpu")),
    }
    found = read_safely(saved(tmp_path / "good.ckpt", content, legacy))
    assert found["state_dict"]["view"].equal(torch.ones(3, 2))
    assert found["plain"] == content["plain"]
    assert found["args"] == content["args"]


def test_the_size_of_tensors_is_compared_with_the_files() -> None:
    check_content([torch.ones(1 << 20)] * 2, num_bytes=4 << 20)
    with pytest.raises(ValueError, match="larger than the file"):
        check_content([torch.ones(1 << 20)] * 8, num_bytes=4 << 20)
