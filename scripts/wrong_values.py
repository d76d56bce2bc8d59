"""Give every key of every command invalid values, and count how clear the errors are.

    python scripts/wrong_values.py [COMMAND ...]

An answer is clear if it is a ValueError that names the key in full, the value and the fix. Prints a table by command,
and then every answer that is not clear. Nothing is built: the configuration alone is checked, as every
command does before anything else.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from d2v.cli import settings
from d2v.cli.settings import checked

_TEXT = ["experiment=text_tiny", "data=text_files", "data.root=texts"]
_RGB = ["data.in_chans=3", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]", "data.crop_pct=1.0"]
_FINETUNE = ["checkpoint=run", "data.root=images"]
# Command -> its schema, and compositions that together have every group's keys.
COMMANDS: dict[str, tuple[Any, list[list[str]]]] = {
    "pretrain": (
        settings.Pretrain,
        [
            ["callbacks=probe", "logger=wandb"],
            ["data=image_folder", "data.root=images", *_RGB],
            ["data=hf_images", "data.path=images", *_RGB],
            ["experiment=speech_tiny", "data=audio_folder", "data.root=recordings"],
            ["experiment=speech_tiny", "data=audio_manifest", "data.manifest=a.tsv"],
            ["experiment=eat_tiny", "data=sound_folder", "data.root=recordings"],
            ["experiment=eat_tiny", "data=sound_manifest", "data.manifest=a.tsv"],
            _TEXT,
            [*_TEXT[:1], "data=hf_text", "data.path=texts"],
            ["experiment=v1_image_tiny32", "mask=block", *_RGB],
        ],
    ),
    "finetune": (
        settings.Finetune,
        [
            ["task=image_classification", *_FINETUNE],
            ["task=glue/rte", "checkpoint=run", "data.root=glue"],
            ["task=ctc", "checkpoint=run", "data.root=speech", "decoder=beam"],
        ],
    ),
    "evaluate": (settings.Evaluate, [["checkpoint=run"]]),
    "extract": (settings.Extract, [["checkpoint=run", "output=a.npz"]]),
    "export": (settings.Export, [["checkpoint=run", "output=out"]]),
    "import": (settings.Import, [["checkpoint=run", "output=out"]]),
    "tokenizer": (settings.Tokenizer, [["files=texts"]]),
    "info": (settings.Info, [[]]),
}

NAN, INF = float("nan"), float("inf")
_BY_KIND: dict[str, dict[type, list[Any]]] = {
    "not a number": {int: ["soon", NAN], float: ["soon", NAN]},
    "infinite": {int: [INF], float: [INF, -INF]},
    "a flag for a number, or a number for a flag": {int: [True], float: [False], bool: [1, 0.5]},
    "a list for one value": {int: [[1]], float: [[0.5]], bool: [[True]], str: [["a"]]},
    "one value for a list": {list: [0.5, "x"]},
    "bad elements": {list: [[NAN], [None], [{"a": 1}]]},
    "a word for a flag": {bool: ["maybe", "on"]},
    "far too large": {int: [10**20], bool: [10**20]},
    "far below zero": {int: [-(10**9)]},
    "a number for a text": {str: [3, 0.5]},
    "a mapping": {int: [{"a": 1}], float: [{"a": 1}], bool: [{}], str: [{"_target_": "os.system"}], list: [{"a": 1}]},
}


# Keys that also take what is a wrong value of other keys with such defaults.
_MAY_BE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("layers", "num_workers", "num_threads", "batch_size"), ("a number for a text",)),
    **dict.fromkeys(("devices", "checkpoint"), ("a list for one value",)),  # of evaluate: several checkpoints
    **dict.fromkeys(("train", "val", "probe_train"), ("one value for a list", "a list for one value")),
}


class Answer(NamedTuple):
    """Answer to one value.

    Attributes:
        kind: of the value.
        key: in full.
        value: that was given.
        verdict: "clear", "accepted", "without the key", "without a fix", or "stack trace".
        words: of the answer.
    """

    kind: str
    key: str
    value: Any
    verdict: str
    words: str


def configuration(command: str, overrides: list[str]) -> dict[str, Any]:
    """Return a command's configuration as plain containers."""
    with initialize_config_module("d2v.conf", version_base="1.3"):
        cfg = compose(command, overrides=[*overrides, *([] if command in _PLAIN else ["run_dir=run", "name=name"])])
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    without_model = command != "pretrain"
    for key in ("data",) if without_model and raw.get("data") is None else ():
        raw.pop(key, None)
    if without_model:  # it comes from the checkpoint
        raw.pop("model", None)
    plain: Any = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    if isinstance(plain.get("data"), dict):
        plain["data"].pop("label_fraction", None)
    return plain


_PLAIN = ("extract", "export", "import", "tokenizer", "info")


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key in full and its value; lists are values."""
    for name, value in node.items():
        full = f"{key}.{name}" if key else name
        if isinstance(value, dict) and value:
            yield from leaves(value, full)
        elif not name.startswith("_"):
            yield full, value


def answers(command: str) -> Iterator[Answer]:
    """Give every key of a command every wrong value of its type, and yield how each was answered."""
    schema, compositions = COMMANDS[command]
    done = set()
    for overrides in compositions:
        config = configuration(command, overrides)
        checked(schema, config)  # as it is, it passes
        for key, value in leaves(config):
            target = (config.get(key.partition(".")[0]) or {}).get("_target_") if "." in key else None
            if (target, key) in done:
                continue
            done.add((target, key))
            for kind, values in _BY_KIND.items():
                if kind in _MAY_BE.get(key.rpartition(".")[2], ()):
                    continue
                for wrong in values.get(type(value), values.get(list, []) if isinstance(value, tuple) else []):
                    yield answer(schema, config, kind, key, wrong)
            yield answer(schema, config, "an unknown key", f"{key}_x", 1)


def answer(schema: Any, config: dict[str, Any], kind: str, key: str, value: Any) -> Answer:
    """Check a configuration in which one value is another."""
    config = copy.deepcopy(config)
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[name] = value
    try:
        checked(schema, config)
    except ValueError as error:
        words = str(error)
        if key.removesuffix("_x") not in words:
            return Answer(kind, key, value, "without the key", words)
        fixes = ("give ", "choose ", "remove it", "leave it out", "did you mean", "set ")
        return Answer(kind, key, value, "clear" if any(fix in words for fix in fixes) else "without a fix", words)
    except Exception as error:
        return Answer(kind, key, value, "stack trace", f"{type(error).__name__}: {error}")
    return Answer(kind, key, value, "accepted", "")


def main() -> int:
    """Print the table; the exit status is 1 if any answer is not clear."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", metavar="COMMAND")
    all_answers = [(command, one) for command in parser.parse_args().commands or COMMANDS for one in answers(command)]
    verdicts = ("clear", "without a fix", "without the key", "stack trace", "accepted")
    print("| command | values | " + " | ".join(verdicts) + " |")
    print("|---|---:|" + "---:|" * len(verdicts))
    for command in dict.fromkeys(name for name, _ in all_answers):
        counts = Counter(one.verdict for name, one in all_answers if name == command)
        print(f"| {command} | {counts.total()} | " + " | ".join(str(counts[v]) for v in verdicts) + " |")
    bad = [(command, one) for command, one in all_answers if one.verdict != "clear"]
    for command, one in bad:
        print(f"{command}: {one.key}={one.value!r}: {one.verdict} {one.words}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
