"""Checks of foreign files of ``torch.save``, before and after loading.

``torch.load(weights_only=True)`` executes no code, but it allocates as much memory as a file requests (a byte array of
a terabyte), and builds tensors without storage of their size (one number expanded a trillion times, meta tensors).
Files of d2v and similar libraries need none of these.
"""

from __future__ import annotations

import argparse
import pickletools
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from d2v.bounds import TooMuch, walk

MAX_BYTES = 256 << 20  # of the pickled structure, without the content of tensors
MAX_OPCODES = 5_000_000
MAX_VALUES = 2_000_000
_MAX_PICKLES = 5  # of a file from before PyTorch 1.6, at its beginning

_CALLED = {
    *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"),
    *("torch._utils._rebuild_parameter", "torch.serialization._get_layout", "torch.Size", "torch.device"),
    *("collections.OrderedDict", "argparse.Namespace", "builtins.set", "_codecs.encode"),
    *("__builtin__.set", "torch._utils._rebuild_parameter_with_state"),
}


_LEAVES = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout)


class Unusual(ValueError):
    """A pickle names an object that checkpoints of tensors and plain values do not need."""


def check_pickle(path: Path) -> None:
    """Read the instructions of a file of ``torch.save`` without executing them.

    Raises:
        Unusual: the file calls anything but constructors of tensors and plain containers; the message names it.
        TooMuch: it has too many instructions.
        ValueError: it is damaged.
    """
    with path.open("rb") as file:
        if file.peek(4)[:4] == b"PK\x03\x04":  # distinguished as in torch
            _check_archive(path)
            return
        for _ in range(_MAX_PICKLES):
            if not file.peek(1):
                return
            _check_names(file)


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.filename.lower().endswith(".pkl"):  # torch ignores case
                    continue
                if entry.file_size > MAX_BYTES:
                    raise TooMuch(f"{entry.filename} is larger than {MAX_BYTES >> 20} MiB")
                with archive.open(entry) as file:
                    _check_names(file)
    # zipfile raises NotImplementedError for compression that it lacks, RuntimeError for encrypted entries.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error)) from error


def _check_names(file: IO[bytes]) -> None:
    for name in _names(file):
        module, _, part = name.rpartition(".")
        is_type = module in ("torch", "torch.cuda", "torch.storage") and (
            part.endswith("Storage") or isinstance(getattr(torch, part, None), torch.dtype)
        )
        if name not in _CALLED and not is_type:
            raise Unusual(name)


def _names(file: IO[bytes]) -> Iterator[str]:
    """Yield every dotted name that a pickle mentions."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number > MAX_OPCODES:
            raise TooMuch(f"more than {MAX_OPCODES:,} instructions")
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):  # names from the stack or memo
            yield opcode.name


def check_content(content: Any, num_bytes: int) -> None:
    """Raise ValueError unless loaded content holds only plain values and tensors with storage in the file.

    Args:
        content: loaded content.
        num_bytes: size of the file.
    """
    tensors: list[Tensor] = []
    for value in walk(content, MAX_VALUES, lambda v: vars(v).values() if isinstance(v, argparse.Namespace) else None):
        if isinstance(value, Tensor):
            tensors.append(value)
        elif not isinstance(value, _LEAVES):
            raise ValueError(f"a value of the type {type(value).__name__}")
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
            raise ValueError(f"a tensor of the kind {type(tensor).__name__}, {tensor.layout}")
        if tensor.is_meta or tensor.is_quantized or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise TooMuch(f"a tensor of shape {tuple(tensor.shape)} without content")
    if sum(tensor.nbytes for tensor in tensors) > 4 * num_bytes + (1 << 20):  # parts may be shared, within reason
        raise TooMuch("tensors larger than the file")
