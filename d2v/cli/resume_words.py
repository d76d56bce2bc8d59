"""Overrides of commands on a run or checkpoint that has its own configuration; imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence

_DOTTED = re.compile(r"(?!hydra\.)[A-Za-z_]\w*\.[\w.]+=", re.ASCII)


def loosened(command: str, arguments: Sequence[str]) -> list[str]:
    """Return overrides that Hydra accepts even if the command's default configuration lacks their keys.

    In ``d2v pretrain resume=RUN data.root=DIR`` and ``d2v extract checkpoint=RUN data.root=DIR`` the key belongs to the
    data of RUN, not to the default data. The ``.hydra`` folder of a resumed run does not change.

    Args:
        command: name of the command.
        arguments: words after the command.
    """
    if command in ("extract", "evaluate"):
        chosen = any(re.match(r"\+?data=", word) for word in arguments)
        return [f"++{word}" if not chosen and word.startswith("data.") else word for word in arguments]
    if command not in ("pretrain", "finetune") or not names_a_run(arguments):
        return list(arguments)
    words = [f"++{word}" if _DOTTED.match(word) else word for word in arguments]
    if not any(word.startswith("hydra.output_subdir=") for word in words):
        words.append("hydra.output_subdir=null")
    if command == "finetune" and not any(word.startswith(("task=", "~task")) for word in words):
        words += ["~task", "++task_name=null"]
    return words


def names_a_run(arguments: Sequence[str]) -> bool:
    """Return whether the words name the run to resume by a path."""
    given = [word.partition("=")[2].strip("'\"") for word in arguments if re.match(r"(\+\+?)?resume=", word)]
    return bool(given) and given[-1] not in ("", "auto", "null")
