"""``checkpoint=latest``, ``resume=latest`` and ``init_from=latest``: the newest run below ``output_dir``."""

from __future__ import annotations

from pathlib import Path

from d2v.cli.words import quoted
from d2v.runs.listing import TRAINING, newest_run, summarise

_KEYS = ("checkpoint", "resume", "init_from")


def name_latest(command: str, arguments: list[str]) -> list[str]:
    """Return the command line with ``latest`` replaced by the path of the newest run, and print that path.

    ``resume=`` takes a run of the same command; fine-tuning and ``init_from=`` take a pretraining run.

    Raises:
        ValueError: there is no such run.
    """
    output_dir = next((a.partition("=")[2] for a in reversed(arguments) if a.startswith("output_dir=")), "outputs")
    named = []
    for word in arguments:
        key, _, value = word.partition("=")
        if key.lstrip("+") in _KEYS and value == "latest" and not Path(value).exists():
            resumes = key == "resume"
            kinds = (command,) if resumes else ("pretrain",) if command in TRAINING else TRAINING
            run = newest_run(output_dir.strip("'\""), kinds)
            if run is None:
                kind = f" of d2v {kinds[0]}" if len(kinds) == 1 else ""
                raise ValueError(
                    f"{word}: no run{kind} with a checkpoint below output_dir={output_dir}; d2v runs lists the runs"
                )
            print(f"{word}: {summarise(run)}", flush=True)
            word = f"{key}={quoted(str(run))}"
        named.append(word)
    return named
