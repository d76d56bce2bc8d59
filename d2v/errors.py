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


# A name, and names of what is within it, such as frontends.image.embed_dim, where a word begins.
_NAME = re.compile(r"(?<![^\s(])([a-z_]\w*)((?:\.\w+)*)(?![\w/-])")


def in_keys(message: str, keys: Mapping[str, str]) -> str:
    """Return a message about arguments as one about keys: "img_size=30: ..." as "data.img_size=30: ...".

    A name counts where ``=`` follows, as the first word before a colon, and elsewhere if it has an underscore, as no
    other words have.

    Args:
        message: names arguments as Python does.
        keys: configuration key of every argument.
    """

    def key(match: re.Match[str]) -> str:
        whole, (name, within) = match[0], match.groups()
        after = message[match.end() : match.end() + 1]
        if after != "=" and not (after == ":" and match.start() == 0) and "_" not in whole.rpartition(".")[2]:
            return whole
        return keys.get(whole) or keys.get(name, name) + within

    return _NAME.sub(key, message)


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
