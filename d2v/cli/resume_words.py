"""Words of a command that is about a run or checkpoint with a configuration of its own; imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence

_DOTTED = re.compile(r"(?!hydra\.)[A-Za-z_]\w*\.[\w.]+=", re.ASCII)


def loosened(command: str, arguments: Sequence[str]) -> list[str]:
    """Words as Hydra takes them where a run's own configuration has keys that the command's default one lacks.

    ``d2v pretrain resume=RUN data.root=DIR`` is about the data of RUN, whatever data the default is;
    ``d2v extract checkpoint=RUN data.root=DIR`` likewise. The words of a resume are not what the run was begun with:
    its ``.hydra`` stays as it is.

    Args:
        command: its name.
        arguments: its words.
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
    """Return whether the words say by a path which run to go on with."""
    given = [word.partition("=")[2].strip("'\"") for word in arguments if re.match(r"(\+\+?)?resume=", word)]
    return bool(given) and given[-1] not in ("", "auto", "null")
