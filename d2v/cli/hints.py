"""Hints on command lines that Hydra cannot compose: the word, the reason, and a correction."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf

from d2v.cli.commands import COMMANDS, configuration_folder, groups, options
from d2v.cli.words import for_the_shell

# Corrections of keys that users expect from other frameworks, by command.
_ELSEWHERE = {
    "pretrain": {
        "epochs": "pretraining counts optimizer steps: write trainer.max_steps=N",
        "max_epochs": "pretraining counts optimizer steps: write trainer.max_steps=N",
        "task": "labels are trained on by d2v finetune task=...",
        "checkpoint": "write init_from=PATH to start from weights, or resume=PATH to go on with a run",
        "batch_size": "write global_batch_size=N, the samples of an optimizer step over all devices",
        "lr": "write optim.lr=...",
    },
    "finetune": {
        "init_from": "write checkpoint=PATH",
        "batch_size": "write global_batch_size=N, the samples of an optimizer step over all devices",
        "lr": "write optim.lr=...",
    },
}


def explain(error: Exception, arguments: list[str], command: str) -> str:
    """Return one message about words that could not be composed.

    Args:
        error: error of Hydra.
        arguments: words of the command line, without the command.
        command: name of the command.
    """
    message = str(error)
    if isinstance(error, OverrideParseException):
        return _explain_syntax(error.override)
    ambiguous = re.search(r"Ambiguous value for argument '(.*)'\n", message)
    if ambiguous:
        return (
            f"{ambiguous[1]}: several values, for one run: add -m to run each of them, or quote it to give one text: "
            f"{for_the_shell(ambiguous[1])}"
        )
    if "Config group override must be" in message:
        return _explain_group_value(arguments)
    option = re.search(r"Could not (?:find|load) '(\w+)/([^']+)'", message)
    if option:
        return _explain_option(option[1], option[2])
    missing = re.search(r"You must specify '(\w+)'", message)
    if missing:
        return f"choose {missing[1]}=...: one of {', '.join(options(missing[1]))}"
    unknown = re.search(r"Could not override '([^']+)'", message) or re.search(r"'([^']+)' does not exist", message)
    if unknown:
        return f"unknown key {unknown[1]!r}." + _explain_key(unknown[1], arguments, command)
    there = re.search(r"An item is already at '([^']+)'", message)
    if there:
        return f"+{there[1]}=...: is a key already: write it without the plus"
    if error.__cause__ is not None:
        message += f"\n{str(error.__cause__).splitlines()[0]}"
    return message


def _explain_syntax(override: str) -> str:
    key, equals, _ = override.partition("=")
    if not equals or not re.fullmatch(r"(\+\+?|~)?[\w./@-]+", key):
        return f"{override}: give key=value, such as seed=1; {key!r} is no key"
    if key.startswith("~"):
        return f"{override}: write {key} alone to leave it out"
    return (
        f"{override}: characters of the value mean something else here (lists are [a,b], mappings {{a: b}}); to give "
        f"it as text, quote it for the shell and for d2v: {for_the_shell(override)}"
    )


def _explain_group_value(arguments: list[str]) -> str:
    """Return the message for a group set to null, a number or a flag."""
    for word in arguments:
        group, _, value = word.partition("=")
        if group in groups() and value.lower() == "null":
            return f"{word}: to leave a group out write '~{group}'"
        if group in groups() and value not in options(group):
            return f"{word}: choose from {', '.join(options(group))}"
    return f"{' '.join(arguments)}: give key=value"


def _explain_option(group: str, option: str) -> str:
    known = options(group)
    leaves = {name.rpartition("/")[2]: name for name in known}
    near = difflib.get_close_matches(option, known, n=3) or [
        leaves[leaf] for leaf in difflib.get_close_matches(option.rpartition("/")[2], leaves, n=3)
    ]
    hint = f" Did you mean {' or '.join(f'{group}={name}' for name in near)}?" if near else ""
    if os.path.exists(option) and _options_with(group, "root"):
        hint = f" For a folder write {group}={' or '.join(_options_with(group, 'root'))} and {group}.root={option}."
    return f"unknown option {group}={option}.{hint} Choose from {', '.join(known)}."


def _explain_key(unknown: str, arguments: list[str], command: str) -> str:
    group, _, leaf = unknown.rpartition(".")
    elsewhere = _ELSEWHERE.get(command, {}).get(unknown)
    if elsewhere:
        return f" {elsewhere[0].upper()}{elsewhere[1:]}."
    others = _options_with(group, leaf)
    known = _known_keys(command, arguments)
    if unknown in known:
        return f" d2v {command} takes no options of it: leave it out."
    same_leaf = [key for key in known if key.rpartition(".")[2] == leaf]
    if others and not same_leaf and _has_group(command, group, others[0]):
        target = _target_of(composed(command, chosen(command, arguments)).get(group))
        alike = [name for name in others if _target_of(_option(group, name)) == target] or others
        return f" It is a key of other {group}: choose {' or '.join(f'{group}={name}' for name in alike)}."
    close = list(same_leaf)
    close += [key for key in difflib.get_close_matches(unknown, known, n=3, cutoff=0.75) if key not in close]
    if not close:
        owners = [name for name in COMMANDS if name != command and unknown in _known_keys(name, [])]
        if owners:
            return f" It is a key of d2v {', d2v '.join(owners)}."
        close = [key for key in known if group and key.startswith(f"{group}.")]
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" d2v {command} --cfg job lists the known ones."


def _has_group(command: str, group: str, option: str) -> bool:
    """Return whether a command has a group."""
    with initialize_config_module("d2v.conf", version_base="1.3"):
        try:
            compose(command, overrides=chosen(command, [f"{group}={option}"]))
        except HydraException as error:
            return "Could not override" not in str(error)
    return True


def _options_with(group: str, leaf: str) -> list[str]:
    """Return the options of a group that have a key."""
    return [name for name in options(group) if leaf in _option(group, name)] if group else []


def _option(group: str, name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(configuration_folder() / group / f"{name}.yaml"))


def _target_of(node: Any) -> str:
    """Return the module of a node's class, which is the same for all data of a modality."""
    return str(node.get("_target_", "")).rpartition(".")[0] if isinstance(node, dict) else ""


def _known_keys(command: str, arguments: list[str]) -> list[str]:
    """Return all keys of a command's configuration, with the user's choices of groups."""
    return [key for key in _leaves(composed(command, chosen(command, arguments)), "") if not key.endswith("_")]


def chosen(command: str, arguments: list[str]) -> list[str]:
    """Return the words that choose options of groups; fine-tuning needs a task."""
    words = [a for a in arguments if re.fullmatch(r"[a-z]+=[a-z][\w/]*", a)]
    needs_task = command == "finetune" and not any(a.startswith("task=") for a in words)
    return [*words, "task=image_classification"] if needs_task else words


def composed(command: str, overrides: list[str]) -> Any:
    """Return the plain configuration of a command; without overrides if they do not compose; {} if nothing does."""
    with initialize_config_module("d2v.conf", version_base="1.3"):
        for words in (overrides, [word for word in overrides if word.startswith("task=")]):
            try:
                return OmegaConf.to_container(compose(command, overrides=words))
            except (HydraException, ValueError):
                continue
    return {}


def _leaves(node: object, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            yield name
            yield from _leaves(value, name)
