"""Entry point of ``d2v``. Help and unknown commands are handled with the standard library only, to be fast."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from pathlib import Path

from d2v.cli.commands import COMMANDS, configuration_folder, module_of, options
from d2v.version import __version__

HELP = ("-h", "--help", "help")


def main() -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    if not arguments or (arguments[0] in HELP and not arguments[1:]):
        print(general_help())
        return
    if arguments[0] in ("-V", "--version", "version"):
        print(f"d2v {__version__}")
        return
    if arguments[0] in HELP:  # d2v help COMMAND
        arguments = [*arguments[1:], "--help"]
    command, rest = arguments[0], arguments[1:]
    if command == "completion":
        completion = importlib.import_module("d2v.cli.completion")
        sys.exit(completion.main(rest))
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        sys.exit(f"d2v: unknown command {command!r}.{hint} Commands: {', '.join(COMMANDS)}.")
    if any(argument in ("-h", "--help") for argument in rest) or rest[:1] == ["help"]:
        print(command_help(command))
        return
    row = COMMANDS[command]
    if row.actions and (not rest or rest[0] not in row.actions):
        given = f" {rest[0]!r}" if rest else ""
        wanted = " or ".join(row.actions)
        sys.exit(f"d2v {command}: unknown action{given}. Write d2v {command} {wanted} [key=value ...].")
    rest = rest[len(row.actions[:1]) :]
    if row.positional and rest and not rest[0].startswith("-") and ("=" not in rest[0] or Path(rest[0]).exists()):
        rest[0] = f"{row.positional}={rest[0]}"
    # A spinning OpenMP thread blocks a core that others need, which is costly if cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Lightning starts a process for every further device by running sys.argv anew: it must name a file that can be run.
    sys.argv = [str(Path(__file__).with_name(f"{module_of(command).rpartition('.')[2]}.py")), *rest]
    sys.modules["__main__"].__spec__ = None  # and after "python -m d2v.cli.main" it would start that module instead
    launch = importlib.import_module("d2v.cli.launch")
    sys.exit(launch.run(command))


def general_help() -> str:
    """Return the text of ``d2v --help``."""
    lines = [f"d2v {__version__}: pretrain data2vec encoders", "", "usage: d2v COMMAND [key=value ...]", ""]
    lines += [f"  {name:10} {row.about}" for name, row in COMMANDS.items()]
    lines += [
        "",
        "d2v COMMAND --help (or d2v help COMMAND) lists its configuration and examples; d2v --version: the version.",
        'eval "$(d2v completion bash)" completes words in bash; zsh and fish: d2v completion --help.',
    ]
    return "\n".join(lines)


def command_help(command: str) -> str:
    """Return the text of ``d2v COMMAND --help``: examples, experiments, groups and their options."""
    row = COMMANDS[command]
    action = f" {row.actions[0]}" if row.actions else ""
    lines = [f"d2v {command}: {row.about}", "", f"usage: d2v {command}{action} [key=value ...]", "", "examples:"]
    lines += [f"  {example}\n      {text}" for example, text in row.examples]
    if row.experiments:
        folder = configuration_folder() / "experiment"
        lines += ["", "experiments (experiment=NAME):"]
        lines += [f"  {name:14} {_about(folder / f'{name}.yaml')}" for name in options("experiment")]
    if row.groups:
        lines += ["", "configuration groups (GROUP=OPTION):"]
        lines += [f"  {group:14} {', '.join(options(group))}" for group in row.groups]
    lines += [
        "",
        f"d2v {command} --cfg job prints every key with its value; --hydra-help shows Hydra's own options (multirun, "
        "launchers). A key that is given twice has its last value.",
    ]
    return "\n".join(lines)


def _about(path: Path) -> str:
    """Return the description of an experiment: its third line, after its command and its package."""
    return path.read_text(encoding="utf-8").splitlines()[2].removeprefix("#").strip()


if __name__ == "__main__":
    main()
