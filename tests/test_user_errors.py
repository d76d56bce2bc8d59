"""Words of errors: names of arguments in the library, keys on the command line."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from d2v.data.bad_samples import BadSample
from d2v.errors import UserError, in_keys, naming_keys, without_stack


class Broken(Dataset[Any]):
    """Fails in a worker."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise self.error("data.root=/a: b.png: cut off\nin two lines: here")


@pytest.mark.parametrize("error", [BadSample, OSError, RuntimeError])
def test_a_workers_error_keeps_its_words_without_its_stack(error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        next(iter(DataLoader(Broken(error), num_workers=1)))
    assert "Traceback" in str(raised.value)
    assert without_stack(str(raised.value)) == "data.root=/a: b.png: cut off\nin two lines: here"
    assert without_stack("as it is: this") == "as it is: this"


KEYS = {
    "img_size": "data.img_size",
    "root": "data.root",
    "tokenizer": "data.tokenizer",
    "encoder": "model.encoder",
    "model.encoder.frontends.image.patch_size": "data.patch_size",
}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("img_size=30: choose another img_size", "data.img_size=30: choose another data.img_size"),
        ("root=/a: no such folder (root=...)", "data.root=/a: no such folder (data.root=...)"),
        ("root: no file there", "data.root: no file there"),
        ("lower img_size.", "lower data.img_size."),
        ("data.img_size=30, other.root=3", "data.img_size=30, other.root=3"),  # are keys already
        ("the root of a tokenizer: tokenizer.json", "the root of a tokenizer: tokenizer.json"),  # plain words, a file
        ("path=/root=1/img_size/x: img_size/x, img_size-x", "path=/root=1/img_size/x: img_size/x, img_size-x"),
        ("my_img_size=3 and img_sizes=4", "my_img_size=3 and img_sizes=4"),
        ("encoder.frontends.image.mask_token=true", "model.encoder.frontends.image.mask_token=true"),
        ("encoder.depth is 3", "encoder.depth is 3"),
        ("set model.encoder.frontends.image.patch_size=2", "set data.patch_size=2"),
        ("several lines:\nroot=1", "several lines:\ndata.root=1"),
        ("img_size[0]=x: give a number", "data.img_size[0]=x: give a number"),
        ("root=/a img_size=3: no image", "data.root=/a img_size=3: no image"),  # the user's own folder
        ("root=/a, img_size=3: choose one", "data.root=/a, data.img_size=3: choose one"),
        ("root.png: cut off", "root.png: cut off"),
        ("root=/a: it has the columns img_size, root_x", "data.root=/a: it has the columns img_size, root_x"),
        ("the columns label, img_size", "the columns label, img_size"),
        ("set img_size, or root=1", "set data.img_size, or data.root=1"),
    ],
)
def test_messages_in_keys(message: str, expected: str) -> None:
    assert in_keys(message, KEYS) == expected


def test_names_of_users_stay_in_summaries() -> None:
    summary = "2 classes: img_size and img_size\nsuggested: img_size=3"
    assert in_keys(summary, KEYS, only_values=True) == "2 classes: img_size and img_size\nsuggested: data.img_size=3"


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, PermissionError, UserError])
def test_an_error_keeps_class_cause_and_notes(kind: type[Exception]) -> None:
    cause, error = OSError("why"), kind("root=1")
    error.add_note("root=2")
    with pytest.raises(kind, match=r"^data\.root=1\n") as raised, naming_keys(KEYS):
        raise error from cause
    assert type(raised.value) is kind
    assert raised.value.__cause__ is cause
    assert raised.value.__notes__ == ["root=2"]


def test_errors_of_the_system_and_of_programs_are_left_alone() -> None:
    with pytest.raises(OSError, match="root=1") as raised, naming_keys(KEYS):
        raise OSError(2, "root=1")
    assert raised.value.errno == 2
    with pytest.raises(TypeError, match=r"^root=1$"), naming_keys(KEYS):
        raise TypeError("root=1")


D2V = Path(__file__).parent.parent / "d2v"
NAMES = "data|mask|model|optim|schedule|ema|trainer|task|labels|probe|decoder|callbacks|logger"
SECTIONS = rf"(?<![\w./~@+-])({NAMES})\.(?!safetensors|onnx)[a-z_{{]"
ABOUT_CONFIGURATIONS = ("cli", "runs/resuming.py", "interop/fairseq/data2vec.py", "interop/huggingface/writing.py")


def keys_named(source: str) -> list[str]:
    """Strings but docstrings that hold a key with its section, where the library is to name an argument."""
    tree = ast.parse(source)
    docstrings = {node.body[0].value for node in ast.walk(tree) if isinstance(node, DOCUMENTED) and is_documented(node)}
    fields = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    texts = {node: node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    texts |= {node: as_text(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
    return [
        text
        for node, text in texts.items()
        if isinstance(text, str) and node not in docstrings | fields and re.search(SECTIONS, text)
    ]


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def is_documented(node: Any) -> bool:
    return bool(node.body) and isinstance(node.body[0], ast.Expr)


def as_text(node: ast.JoinedStr) -> str:
    return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)


def test_the_library_names_arguments_and_no_keys() -> None:
    found = {
        f"{path.relative_to(D2V)}: {text}"
        for path in D2V.rglob("*.py")
        if not str(path.relative_to(D2V)).startswith(ABOUT_CONFIGURATIONS)
        for text in keys_named(path.read_text())
    }
    assert not {text for text in found if "{task." not in text}  # a field of rich


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 'set data.root=1'", ["set data.root=1"]),
        ("x = f'data.{name}=1'", ["data.{}=1"]),
        ("x = f'{data.root}=1'", []),
        ("'see data.root'", []),
        ("import d2v.data.images", []),
        ("x = 'd2v.data.images, ../data.root'", []),
    ],
)
def test_the_search_finds_keys(source: str, found: list[str]) -> None:
    assert keys_named(source) == found
