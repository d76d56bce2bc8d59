"""Errors that a user can fix, and installation hints for missing packages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Packages of every extra, as in pyproject.toml, because d2v itself is on no index.
EXTRAS = {
    "hf": ("datasets",),
    "speech": ("jiwer", "soundfile", "torchaudio"),
    "text": ("tokenizers",),
    "plots": ("matplotlib",),
    "decode": ("flashlight-text",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "transformers": ("transformers>=5",),
    "slurm": ("hydra-submitit-launcher",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}


class UserError(Exception):
    """Base class of errors in data, values or machine that only the user can fix.

    The command line prints the message without a stack trace, at any time of a run.

    Attributes:
        state: state of a run that ends with the error, as ``d2v runs`` lists it: "failed" or "diverged".
    """

    state = "failed"


# An argument at the beginning of a word, and names within it, such as frontends.image.embed_dim.
_NAME = re.compile(r"(?<![^\s(])([a-z_]\w*)((?:\.\w+)*)(?![\w/-])")
# The value that a message begins with, which is the user's own text.
_FIRST_VALUE = re.compile(r"[a-z_][\w.]*(?:\[\d+\])*=(?:.*?(?=: )|\S*)")
_BEFORE_NAMES_OF_USERS = ("column", "columns", "class", "classes", "has")


def in_keys(message: str, keys: Mapping[str, str], *, only_values: bool = False) -> str:
    """Replace arguments in a message by configuration keys: "img_size=30: ..." by "data.img_size=30: ...".

    An argument is recognised before ``=``, as the first word before a colon, and elsewhere if it has an underscore and
    is in no list of names. The value that a message begins with is the user's and stays.

    Args:
        message: names arguments as Python does.
        keys: configuration key of every argument.
        only_values: recognise an argument before ``=`` only: for summaries, which list names of users.
    """
    first = _FIRST_VALUE.match(message)
    start, end = (first[0].index("="), first.end()) if first else (0, 0)

    def key(match: re.Match[str]) -> str:
        name, within = match.groups()
        after, before = message[match.end() : match.end() + 1], message[: match.start()]
        if start < match.start() < end and not (after == "=" and before.endswith(", ")):
            return match[0]
        if after == "=" or (after == "[" and not before):
            return keys.get(match[0]) or keys.get(name, name) + within
        if only_values or match[0] not in keys:
            return match[0]
        is_first = after == ":" and not before
        return keys[match[0]] if is_first or _is_argument(name, before, after) else match[0]

    return _NAME.sub(key, message)


def _is_argument(name: str, before: str, after: str) -> bool:
    """Return whether a bare word of a message is an argument, and no name from a list."""
    if "_" not in name or before.endswith((", ", ": ")):
        return False
    previous = before.split()[-1].strip("(") if before.split() else ""
    return previous in ("or", "and", "set") if after == "," else previous not in _BEFORE_NAMES_OF_USERS


def name_keys(error: BaseException, keys: Mapping[str, str]) -> None:
    """Name keys in the message of an error (:func:`in_keys`); its class, cause and notes stay."""
    if len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (in_keys(error.args[0], keys),)


@contextmanager
def naming_keys(keys: Mapping[str, str]) -> Iterator[None]:
    """Errors about values name keys and not arguments."""
    try:
        yield
    except (ValueError, OSError, UserError) as error:
        name_keys(error, keys)
        raise


def how_to_install(*extras: str) -> str:
    """Return the commands that install the packages of some extras, for a message."""
    packages = [package for extra in extras for package in EXTRAS[extra]]
    shown = " ".join(f"'{package}'" if ">" in package else package for package in packages)
    return f"pip install {shown} (or, in a checkout of d2v, pip install '.[{','.join(extras)}]')"


def without_stack(message: str) -> str:
    """Return the message of an error without the stack trace that PyTorch adds to errors of data workers."""
    caught = re.match(r"Caught (\w+) in DataLoader worker process \d+\.\n", message)
    return message.rpartition(f"{caught[1]}: ")[2].strip() if caught else message
