"""Errors that a user can fix, and installation hints for missing packages."""

from __future__ import annotations

import re

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


def how_to_install(*extras: str) -> str:
    """Return the commands that install the packages of some extras, for a message."""
    packages = [package for extra in extras for package in EXTRAS[extra]]
    shown = " ".join(f"'{package}'" if ">" in package else package for package in packages)
    return f"pip install {shown} (or, in a checkout of d2v, pip install '.[{','.join(extras)}]')"


def without_stack(message: str) -> str:
    """Return the message of an error without the stack trace that PyTorch adds to errors of data workers."""
    caught = re.match(r"Caught (\w+) in DataLoader worker process \d+\.\n", message)
    return message.rpartition(f"{caught[1]}: ")[2].strip() if caught else message
