"""The configuration: everything composes, every key has a reader, every experiment trains."""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import d2v.conf
import lightning as L
import pytest
import torch
import yaml
from composing import modality_of
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from torch.overrides import TorchFunctionMode

from d2v.arguments import parameters, returned_by
from d2v.cli.commands import COMMANDS, options
from d2v.cli.settings import Pretrain, built, checked, plain
from d2v.interop.build import part_named

CONF = Path(d2v.conf.__file__).parent

EXPERIMENTS = sorted(path.relative_to(CONF / "experiment").with_suffix("").as_posix()
                     for path in (CONF / "experiment").rglob("*.yaml"))  # fmt: skip

FILES = sorted(CONF.rglob("*.yaml"))


def _composed(runs: ModuleType, command: str, *overrides: str) -> dict[str, Any]:
    """The command's resolved configuration; what only the user can give stays ``???``."""
    with runs.configuration(command, *overrides) as cfg:
        container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return container


def test_every_experiment_is_known() -> None:
    files = [path for path in (CONF / "experiment").rglob("*") if path.is_file()]
    assert len(EXPERIMENTS) == len(files) > 0
    assert options("experiment") == EXPERIMENTS
    assert {"image_tiny", "image_base", "image_large", "image_huge14"} <= set(EXPERIMENTS)
    assert {"v1_image_base", "v1_speech_base", "v1_text_base"} <= set(EXPERIMENTS)


def _own_data(runs: ModuleType, folder: Path, name: str) -> list[str]:
    """Small data for an experiment that asks for data."""
    with runs.configuration("pretrain", f"experiment={name}") as cfg:
        if not OmegaConf.is_missing(cfg.data, "root"):
            return []
    if modality_of(name) == "image":
        return [f"data.root={runs.image_folder(folder, train=2, val=1, size=32)}"]
    if modality_of(name) == "speech":
        parts = ["data.train=train-clean-100", "data.val=null", "data.probe_train=null"]
        return [f"data.root={runs.librispeech(folder)}", *parts]
    if modality_of(name) == "spectrogram":
        return [f"data.root={runs.sounds(folder)}"]
    folder.mkdir()
    return [f"data.root={runs.text_file(folder / 'text.txt')}", "data.vocab_size=300"]


def _small(runs: ModuleType, name: str) -> list[str]:
    """Overrides to small sizes; data2vec 1.0 has no decoder, the autoencoder no convolutions in its, and no targets."""
    absent = {"v1_": ("model.decoders.", "cls_loss"), "mae_": ("groups", "kernel", "cls_loss", "top_k", "proj")}
    words = next((words for prefix, words in absent.items() if name.startswith(prefix)), ())
    return [o for o in runs.SMALL[modality_of(name)] if not any(word in o for word in words)]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_takes_a_step(runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """On little data, with its own masks, optimizer and schedules; only sizes are smaller."""
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))
    batch = 6 if modality_of(name) == "speech" else 2
    result = runs.d2v_command(
        "pretrain", f"experiment={name}", f"output_dir={tmp_path / 'out'}", *_own_data(runs, tmp_path / "data", name),
        *_small(runs, name), f"global_batch_size={batch}", "micro_batch_size=null", "num_threads=1",
        "num_workers=0", "trainer.accelerator=cpu", "trainer.max_steps=1", "trainer.log_every_n_steps=1",
    )  # fmt: skip
    assert result.status in (0, None), result.err
    (run,) = (tmp_path / "out" / name).iterdir()
    assert runs.checkpoints(run) == ["step-00000001.ckpt"]
    (row,) = runs.metrics(run)
    assert math.isfinite(float(row["train/loss"]))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_instantiates(runs: ModuleType, name: str) -> None:
    """At full size, without the memory."""
    with runs.configuration("pretrain", f"experiment={name}") as cfg:
        with open_dict(cfg):
            for key in [key for key in cfg.data if OmegaConf.is_missing(cfg.data, key)]:
                cfg.data[key] = "somewhere"
            if "in_chans" in cfg.data and cfg.data.in_chans is None:
                cfg.data.in_chans = 3  # as a run finds it in the images
        checked(Pretrain, plain(cfg))
        with _Meta():
            model = built(cfg, "model")
        optimizer = built(cfg, "optim")(model.student)
        schedule = built(cfg, "schedule", max_steps=cfg.trainer.max_steps)
        ema, mask = built(cfg, "ema"), built(cfg, "mask")
        node = cfg.model.encoder
        frontend = {
            "image": _patches, "speech": _convolutions, "text": _embeddings, "spectrogram": _squares
        }[modality_of(name)]  # fmt: skip
        blocks = (node.depth + node.prenet_depth) * _block_parameters(node.embed_dim)
        if node.get("layer_scale_init") is not None:
            blocks += node.depth * 2 * node.embed_dim
        assert sum(p.numel() for p in model.student.parameters()) == blocks + frontend(cfg)
        assert optimizer.param_groups[0]["lr"] == cfg.optim.lr
        steps = cfg.trainer.max_steps
        warmup, end = cfg.schedule.get("warmup_steps"), cfg.schedule.min_factor
        assert schedule(0) < schedule(round(cfg.schedule.warmup_fraction * steps) if warmup is None else warmup) == 1
        assert schedule(steps) == pytest.approx(end, abs=1e-9)
        assert ema(0) == cfg.ema.decay_start
        assert ema(cfg.ema.anneal_steps) == cfg.ema.decay_end
        (frontend,) = model.student.frontends.values()
        mask.validate(frontend.token_grid(frontend.example()))


def _block_parameters(width: int) -> int:
    """Attention, MLP and two norms."""
    return 4 * (width * width + width) + 8 * width * width + 5 * width + 4 * width


def _patches(cfg: Any) -> int:
    """Patch embedding, CLS token, norm of the input; BEiT's: of the output, a mask token, biases of offsets."""
    node, width = cfg.model.encoder.frontends.image, cfg.model.encoder.embed_dim
    total: int = (cfg.data.in_chans * node.patch_size**2 + 1) * width + width + 2 * width
    if "shared_bias" in node:
        side = cfg.data.img_size // node.patch_size
        total += width + ((2 * side - 1) ** 2 + 3) * cfg.model.encoder.num_heads
    return total


def _squares(cfg: Any) -> int:
    """Patch embedding of one channel, CLS token, norm of the input; positions are no parameters."""
    width: int = cfg.model.encoder.embed_dim
    return (cfg.data.patch_size**2 + 1) * width + width + 2 * width


def _convolutions(cfg: Any) -> int:
    """Convolutions with norms, projection, positions, a scale for every head, norm of the input."""
    node, width = cfg.model.encoder.frontends.speech, cfg.model.encoder.embed_dim
    total, channels = 0, 1
    for out, kernel, _ in node.conv_layers:
        total, channels = total + channels * out * kernel + 2 * out, out
    positions = node.pos_depth * (width * width // node.pos_groups * node.pos_kernel_size + width)
    own = cfg.model.encoder.num_heads if node.alibi else width  # scales, or data2vec 1.0's mask token
    return total + 2 * channels + (channels + 1) * width + positions + own + 2 * width


def _embeddings(cfg: Any) -> int:
    """Tokens, positions after the id of padding, norm."""
    return (cfg.data.vocab_size + cfg.data.block_size + cfg.data.pad_id + 1 + 2) * cfg.model.encoder.embed_dim


class _Meta(TorchFunctionMode):
    """The meta device for everything but the numbers that a constructor reads."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.linspace and func in _FACTORIES and "device" not in kwargs:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


_FACTORIES = torch.utils._device._device_constructors()  # type: ignore[attr-defined]


def _nodes(config: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every ``_target_`` node with its place."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield path, config
        for key, value in config.items():
            yield from _nodes(value, f"{path}.{key}".strip("."))
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from _nodes(value, f"{path}[{i}]")


# First words of experiments, by what options and their files say of their modality.
FIRST = {"spectrogram": "eat", "eat_": "eat", "speech": "speech", "text": "text"}


def _choice(group: str, option: str) -> list[str]:
    """An option with an experiment whose data and model are of its modality."""
    file = (CONF / group / f"{option}.yaml").read_text()
    about = option if group == "model" else f"{option} {file}".lower()
    fitting = [first for word, first in FIRST.items() if word in about]
    if (group, option) == ("mask", "block"):  # experiments set lengths of others
        return ["mask=block", "~mask.mask_length", "~mask.mask_ratio_adjust"]
    if (group, option) == ("mask", "random"):
        fitting = ["text"]  # other experiments set lengths of blocks
    if group in ("data", "mask", "model") and fitting:
        return [f"experiment={fitting[0]}_tiny", f"{group}={option}"]
    if group == "schedule" and option != "warmup_cosine":
        return [f"schedule={option}", "~schedule.warmup_steps"]  # experiments count their warm-up in steps
    return [f"{group}={option}"]


PRETRAIN_CHOICES = [
    [], *([f"experiment={name}"] for name in EXPERIMENTS),
    *(_choice(group, option) for group in COMMANDS["pretrain"].groups for option in options(group)),
]  # fmt: skip

FINETUNE = ["task=image_classification", "checkpoint=null", "data.root=DIR"]  # a task that other groups are tried with

FINETUNE_CHOICES = [
    [f"task={option}", "checkpoint=null"] if group == "task" else [*FINETUNE, f"{group}={option}"]
    for group in COMMANDS["finetune"].groups if group not in ("model", "data") for option in options(group)
]  # fmt: skip

GIVEN = {"run_dir", "data", "labels", "letters", "num_outputs"}  # filled in when a node is built

CALLED_WITH = {  # by what is left to wait for the rest
    "d2v.objective.schedules.warmup_linear": {"step"},
    "d2v.objective.schedules.cosine": {"step"},
    "d2v.objective.schedules.tri_stage": {"step"},
    "d2v.objective.schedules.warmup_cosine": {"step"},
    "d2v.objective.schedules.ema_decay": {"step"},
    "d2v.objective.schedules.reconstruction_first": {"step"},
    "d2v.lit.optim.adamw": {"model"},
    "d2v.lit.optim.muon": {"model"},
}


@pytest.mark.parametrize("choice", PRETRAIN_CHOICES, ids=lambda choice: " ".join(choice) or "default")
def test_every_node_mirrors_its_constructor(runs: ModuleType, choice: list[str]) -> None:
    """Each key is an argument, each argument a key: nothing is ignored, nothing is hidden."""
    _check_nodes(_composed(runs, "pretrain", *choice), at_least=12)


@pytest.mark.parametrize("choice", FINETUNE_CHOICES, ids=" ".join)
def test_every_node_of_finetuning_mirrors_its_constructor(runs: ModuleType, choice: list[str]) -> None:
    with runs.configuration("finetune", *choice) as cfg:
        with open_dict(cfg):
            cfg.data.pop("label_fraction", None)  # of every kind of data
        config: Any = OmegaConf.to_container(cfg, resolve=True)
    _check_nodes(config, at_least=9)


def _check_nodes(config: dict[str, Any], at_least: int) -> None:
    nodes = list(_nodes(config))
    assert len(nodes) >= at_least
    for path, node in nodes:
        module, _, name = node["_target_"].rpartition(".")
        target = getattr(importlib.import_module(module), name)
        plain = parameters(target).keys() - {"**"}
        keys = node.keys() - {"_target_", "_partial_", "_convert_"}
        called_with = CALLED_WITH.get(node["_target_"], set())
        supplied = called_with | (GIVEN & plain) | ({"embed_dim"} if path == "head" else set())
        assert keys == plain - supplied, f"{path}: {keys ^ (plain - supplied)}"
        assert bool(node.get("_partial_")) == bool(called_with), path


def test_trainer_keys_are_the_trainers(runs: ModuleType) -> None:
    keys = _composed(runs, "pretrain")["trainer"].keys()
    assert keys <= inspect.signature(L.Trainer.__init__).parameters.keys()


def test_every_key_of_the_command_is_read() -> None:
    """Keys that no node holds are read by name in the command."""
    for command in COMMANDS:
        keys = yaml.safe_load((CONF / f"{command}.yaml").read_text()).keys() - {"defaults", "hydra"}
        source = "".join(path.read_text() for path in Path(d2v.cli.__file__).parent.glob("*.py"))
        interpolated = (CONF / f"{command}.yaml").read_text()
        for key in keys:
            read = any(f"{name}.{key}" in source for name in ("cfg", "settings"))
            assert read or f"${{{key}}}" in interpolated or key == "run_dir", f"{command}: {key}"


@pytest.mark.parametrize(
    ("command", "group", "option"),
    [
        (command, group, option)
        for command, row in COMMANDS.items()
        for group in row.groups
        for option in options(group)
    ],
)
def test_every_option_composes(runs: ModuleType, command: str, group: str, option: str) -> None:
    choice = _choice(group, option) if command == "pretrain" else [f"{group}={option}"]
    task = ["task=image_classification"] if command == "finetune" and group != "task" else []
    with runs.configuration(command, *task, *choice) as cfg:
        assert group in ("debug", "launcher", "task") or cfg[group]  # these files are global


def test_every_file_is_an_option_of_a_listed_group() -> None:
    """``d2v COMMAND --help`` hides nothing."""
    listed = {f"{group}/{option}" for row in COMMANDS.values() for group in row.groups for option in options(group)}
    listed |= {f"experiment/{name}" for name in EXPERIMENTS} | set(COMMANDS)
    parts = {path for path in FILES if path.name.startswith("_") or path.parent.name == "inputs"}  # of other files
    assert {path.relative_to(CONF).with_suffix("").as_posix() for path in FILES if path not in parts} == listed


@pytest.mark.parametrize("modality", ["image", "speech", "text", "spectrogram"])
def test_inputs_are_what_the_data_call_their_inputs(runs: ModuleType, modality: str) -> None:
    """One file says what data and model share; data of the modality hold all of it, and the model reads data only."""
    inputs = yaml.safe_load((CONF / "inputs" / f"{modality}.yaml").read_text())
    found = set()
    for option in options("data"):
        node = yaml.safe_load((CONF / "data" / f"{option}.yaml").read_text())
        made = returned_by(part_named(node["_target_"]))
        if made.modality != modality:
            continue
        found.add(made)
        assert tuple(inputs) == made.input_keys, option
        with runs.configuration("check", f"data={option}") as cfg:
            assert inputs.keys() <= cfg.data.keys(), option
            own = {key: value for key, value in inputs.items() if key not in node}
            assert OmegaConf.masked_copy(cfg.data, list(own)) == own, option
    assert found
    for path in (CONF / "data").glob("*.yaml"):
        assert "${model" not in path.read_text(), path


def test_unknown_key_fails() -> None:
    with initialize_config_module("d2v.conf", version_base="1.3"), pytest.raises(HydraException):
        compose("pretrain", overrides=["optim.learning_rate=1"])


def _values(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _values(value)
    elif isinstance(node, list):
        for value in node:
            yield from _values(value)
    elif isinstance(node, str):
        yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONF).as_posix())
def test_no_file_holds_a_path_of_somebodys_machine(path: Path) -> None:
    content = yaml.safe_load(path.read_text()) or {}
    content.pop("defaults", None)  # Hydra's absolute names of groups begin with a slash
    for value in _values(content):
        assert not re.match(r"(/|~|[A-Za-z]:\\|file:)", value), value
    assert not re.search(r"/(home|root|mnt|tmp|work|Users|scratch)/", path.read_text())


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_only_override(runs: ModuleType, name: str) -> None:
    """Whatever an experiment sets exists without it, once its groups are chosen."""
    content = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    choices = []
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):
            ((key, value),) = entry.items()
            assert key.startswith("override /"), entry
            choices.append(f"{key.removeprefix('override /')}={value}")
    base = _composed(runs, "pretrain", "~experiment", "name=x", "trainer.max_steps=1", *choices)
    for key in _leaves(content):
        node: Any = base
        for part in key.split("."):
            assert part in node, key
            node = node[part]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_begins_with_the_exact_command(runs: ModuleType, name: str) -> None:
    header = [line for line in (CONF / "experiment" / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert header[0] == "# @package _global_"
    (command,) = [line.removeprefix("# d2v ") for line in header if line.startswith("# d2v pretrain ")]
    assert header[1].startswith("# d2v pretrain ")
    assert f"experiment={name}" in command.split()
    assert _composed(runs, *command.split())["optim"] == _composed(runs, "pretrain", f"experiment={name}")["optim"]


def test_which_files_are_global() -> None:
    for path in FILES:
        parts = path.relative_to(CONF).parts
        is_global = "@package _global_" in path.read_text()
        assert is_global == (len(parts) == 1 or parts[0] in ("experiment", "task", "debug", "launcher")), path


@pytest.mark.parametrize("name", options("task"))
def test_a_task_begins_with_its_command(name: str) -> None:
    first, command = (CONF / "task" / f"{name}.yaml").read_text().splitlines()[:2]
    assert first == "# @package _global_"
    assert command.startswith(f"# d2v finetune task={name} ")
