"""Errors that a user can mend, and how to install what is missing."""

from __future__ import annotations

import re

# Packages of every extra, as in pyproject.toml: d2v itself is on no index.
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
    """Base class of errors in the data, the values or the machine that only the user can mend.

    The command line prints their message without a stack trace, however late in a run they come.

    Attributes:
        state: of a run that ends by one, as d2v runs lists it: "failed", or "diverged".
    """

    state = "failed"


def how_to_install(*extras: str) -> str:
    """Words of a message: the packages of some extras, by pip, or from a checkout."""
    packages = [package for extra in extras for package in EXTRAS[extra]]
    shown = " ".join(f"'{package}'" if ">" in package else package for package in packages)
    return f"pip install {shown} (or, in a checkout of d2v, pip install '.[{','.join(extras)}]')"


def without_stack(message: str) -> str:
    """An error's own words, where PyTorch has wrapped those of a data worker into the worker's stack trace."""
    caught = re.match(r"Caught (\w+) in DataLoader worker process \d+\.\n", message)
    return message.rpartition(f"{caught[1]}: ")[2].strip() if caught else message
