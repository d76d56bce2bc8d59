"""What the shell offers: commands, actions, groups, options and keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from d2v.cli.commands import COMMANDS
from d2v.cli.completion import SCRIPTS, complete


def test_commands_and_actions() -> None:
    assert complete("d2v ") == sorted([*COMMANDS, "help", "completion"])
    assert complete("d2v pre") == ["pretrain"]
    assert complete("d2v help ex") == ["export", "extract"]
    assert complete("d2v completion ") == ["bash", "fish", "zsh"]
    assert complete("d2v tokenizer ") == ["train"]
    assert complete("d2v tokenizer train vo") == ["vocab_size="]
    assert complete("d2v nothing ") == []


def test_options_of_groups() -> None:
    assert complete("d2v pretrain experiment=speech_") == [
        "experiment=speech_base", "experiment=speech_large", "experiment=speech_tiny",
    ]  # fmt: skip
    assert complete("d2v evaluate probe=k") == ["probe=knn"]
    assert "task=glue/cola" in complete("d2v finetune task=")
    assert complete("d2v pretrain ~dat") == ["~data", "~data."]
    assert complete("d2v pretrain data.root=") == []  # the shell's file names


def test_keys_of_what_was_chosen() -> None:
    assert complete("d2v pretrain optim.lr") == ["optim.lr="]
    assert complete("d2v pretrain glob") == ["global_batch_size="]
    assert complete("d2v pretrain opti") == ["optim.", "optim="]
    assert "data.root=" not in complete("d2v pretrain data.")
    assert "data.root=" in complete("d2v pretrain data=image_folder data.")
    assert complete("d2v finetune freeze") == ["freeze_steps="]
    assert complete("d2v pretrain nothing.") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path: Path) -> None:
    """By the function that the script defines, with words broken at = as bash breaks them."""
    (tmp_path / "d2v").write_text(f'#!/bin/sh\nexec {sys.executable} -m d2v.cli.main "$@"\n')
    (tmp_path / "d2v").chmod(0o755)
    lines = ["d2v pretrai", "d2v pretrain experiment=text_", "d2v pretrain optim.w", "d2v pretrain data.root="]
    asked = [f'COMP_LINE="{x}"; COMP_POINT={len(x)}; _d2v; echo "${{#COMPREPLY[@]}} ${{COMPREPLY[*]}}"' for x in lines]
    script = "\n".join([SCRIPTS["bash"], *asked])
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment)
    said = ["1 pretrain ", "3 text_base  text_large  text_tiny ", "1 optim.weight_decay=", "0 "]
    assert done.stdout.splitlines() == said
    assert subprocess.run(["bash", "-n", "-c", SCRIPTS["bash"]]).returncode == 0


def test_the_command_prints_scripts(runs: ModuleType) -> None:
    for shell, script in SCRIPTS.items():
        assert runs.d2v_command("completion", shell).out == f"{script}\n"
    assert "~/.zshrc" in runs.d2v_command("completion", "--help").out
    refused = runs.d2v_command("completion", "csh")
    assert refused.status == 1
    assert "give one of bash, zsh, fish" in refused.err
