"""Help answers at once, imports nothing heavy and hides nothing."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import d2v.conf
import pytest

from d2v import __version__
from d2v.cli.commands import COMMANDS

CONF = Path(d2v.conf.__file__).parent

_PROGRAM = """
import runpy, sys
sys.argv = ["d2v", *sys.argv[1:]]
try:
    runpy.run_module("d2v.cli.main", run_name="__main__")
finally:
    heavy = {"torch", "lightning", "hydra", "omegaconf", "numpy", "datasets", "wandb", "timm", "transformers", "yaml"}
    print("HEAVY", *sorted(heavy & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        [],
        ["help"],
        ["--version"],
        ["help", "pretrain"],
        ["pretrain", "help"],
        ["help", "pretran"],
        *([name, "--help"] for name in COMMANDS),
        ["pretran"],
    ],
    ids=" ".join,
)
def test_help_is_fast_and_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    before = os.times()
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PROGRAM, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    after = os.times()
    assert "HEAVY\n" in result.stdout, result.stdout + result.stderr
    # processor time, since a busy machine makes any wall-clock limit fail
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1
    assert not any(tmp_path.iterdir())


def test_general_help_lists_the_commands(runs: ModuleType) -> None:
    for arguments in (["--help"], ["-h"], ["help"], []):
        result = runs.d2v_command(*arguments)
        assert result.status in (0, None)
        trains = {"pretrain", "finetune", "evaluate", "extract", "export", "import", "tokenizer"}
        assert set(COMMANDS) == trains | {"check", "runs", "info"}
        for name, row in COMMANDS.items():
            assert re.search(rf"^  {name} +{re.escape(row.about)}", result.out, re.MULTILINE)
    assert runs.d2v_command("--version").out == f"d2v {__version__}\n"


def test_help_of_a_command_has_three_spellings(runs: ModuleType) -> None:
    texts = {runs.d2v_command(*words).out for words in (["help", "export"], ["export", "help"], ["export", "-h"])}
    assert len(texts) == 1
    assert texts.pop().startswith("d2v export: ")


def test_pretrain_help_lists_experiments_groups_and_examples(runs: ModuleType) -> None:
    text = runs.d2v_command("pretrain", "--help").out
    files = list(CONF.rglob("*.yaml"))
    assert len(files) > 20
    others = runs.d2v_command("evaluate", "--help").out + runs.d2v_command("finetune", "--help").out
    for path in files:
        group, *rest = path.relative_to(CONF).with_suffix("").parts
        if rest and group != "inputs" and not rest[-1].startswith("_"):  # those are parts of other files
            shown = others if group in ("probe", "task", "decoder") else text
            assert "/".join(rest) in shown, path
            assert group in shown, path
    for words in ("d2v pretrain -m seed=0,1,2", "resume=auto", "init_from=", "--cfg job", "data.root=DIR"):
        assert words in text
    experiment = next(line for line in text.splitlines() if line.strip().startswith("image_base "))
    assert "ViT-B/16" in experiment


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_a_command_that_composes(
    runs: ModuleType, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = re.findall(r"^  d2v (\w+) ?(.*)$", runs.d2v_command(command, "--help").out, re.MULTILINE)
    assert command in {name for name, _ in examples}
    for name, words in examples:
        overrides = [word for word in shlex.split(words) if word not in ("-m", "--cfg", "job", *COMMANDS[name].actions)]
        overrides = [word.replace("seed=0,1,2", "seed=0") for word in overrides]
        if name == "import" and "=" not in overrides[0]:  # the path comes first
            overrides[0] = f"checkpoint={overrides[0]}"
        with runs.configuration(name, *overrides):
            pass


@pytest.mark.parametrize(
    ("typed", "meant"), [("pretran", "pretrain"), ("evalute", "evaluate"), ("exprot", "export"), ("train", "pretrain")]
)
def test_unknown_command_did_you_mean(runs: ModuleType, typed: str, meant: str) -> None:
    result = runs.d2v_command(typed)
    assert result.status == 1
    assert f"unknown command {typed!r}" in result.err
    assert f"Did you mean {meant!r}" in result.err
    for name in COMMANDS:
        assert name in result.err


def test_unknown_command_with_nothing_near(runs: ModuleType) -> None:
    result = runs.d2v_command("xyzzy")
    assert result.status == 1
    assert "Did you mean" not in result.err
    assert "Commands: pretrain" in result.err


def test_cfg_job_prints_the_configuration_and_stops(runs: ModuleType, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    start = time.monotonic()
    result = runs.d2v_command("pretrain", "--cfg", "job", f"output_dir={tmp_path / 'out'}", "optim.lr=0.5")
    assert result.status in (0, None), result.err
    config = OmegaConf.create(result.out)
    assert config.optim.lr == 0.5
    assert {"model", "mask", "data", "trainer", "seed", "resume"} <= set(config)
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - start < 300


def test_help_needs_no_locale_and_no_home(tmp_path: Path) -> None:
    """Texts are ASCII where the terminal is, and nothing is looked up below a home folder."""
    program = (
        "import sys\nfrom d2v.cli import main\nfrom d2v.cli.commands import COMMANDS\n"
        "for words in ([], *([name, '--help'] for name in COMMANDS), ['completion', 'bash']):\n"
        "    sys.argv = ['d2v', *words]\n"
        "    try:\n        main.main()\n"
        "    except SystemExit as ended:\n        assert not ended.code, ended\n"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")},
        **{"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "TMPDIR": str(tmp_path / "missing"),
    }
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "d2v pretrain: " in done.stdout
