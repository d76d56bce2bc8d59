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
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.overrides import TorchFunctionMode

from d2v.cli.main import COMMANDS, GROUPS, options

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


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_takes_a_step(runs: ModuleType, tmp_path: Path, name: str) -> None:
    """On two images, with its own masks, optimizer and schedules; only sizes are smaller."""
    with runs.configuration("pretrain", f"experiment={name}") as cfg:
        needs_root = OmegaConf.is_missing(cfg.data, "root")
    root = [f"data.root={runs.image_folder(tmp_path / 'images', train=2, val=1, size=32)}"] if needs_root else []
    result = runs.d2v_command(
        "pretrain", f"experiment={name}", f"output_dir={tmp_path / 'out'}", *root, *runs.MODEL, "global_batch_size=2",
        "num_threads=1", "num_workers=0", "trainer.accelerator=cpu", "trainer.max_steps=1",
        "trainer.log_every_n_steps=1",
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
        with _Meta():
            model = instantiate(cfg.model, _convert_="all")
        optimizer = instantiate(cfg.optim)(model.student.named_parameters())
        schedule, ema, mask = instantiate(cfg.schedule), instantiate(cfg.ema), instantiate(cfg.mask)
        node = cfg.model.encoder
        encoder = model.student
        assert sum(p.numel() for p in encoder.parameters()) == _vit_parameters(
            node.embed_dim, node.depth + node.prenet_depth, node.frontends.image.patch_size, cfg.data.in_chans
        )
        assert optimizer.param_groups[0]["lr"] == cfg.optim.lr
        assert schedule(0) < schedule(cfg.schedule.warmup_steps) == 1
        assert schedule(cfg.trainer.max_steps) == pytest.approx(0, abs=1e-9)
        assert ema(0) == cfg.ema.decay_start
        assert ema(cfg.ema.anneal_steps) == cfg.ema.decay_end
        mask.validate((cfg.data.img_size // cfg.data.patch_size,) * 2)


class _Meta(TorchFunctionMode):
    """The meta device for everything but the numbers that a constructor reads."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.linspace and func in _FACTORIES and "device" not in kwargs:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


_FACTORIES = torch.utils._device._device_constructors()  # type: ignore[attr-defined]


def _vit_parameters(width: int, blocks: int, patch_size: int, in_chans: int) -> int:
    """Patch embedding, CLS token, norm of the input, post-norm blocks."""
    block = 4 * (width * width + width) + 8 * width * width + 5 * width + 4 * width
    return (in_chans * patch_size**2 + 1) * width + width + 2 * width + blocks * block


# The published recipes, as released. CLS weight: .01 x images on each GPU x masks.
PUBLISHED = {
    "image_base": {
        "model.encoder.prenet_depth": 2, "model.encoder.depth": 10, "model.encoder.embed_dim": 768,
        "model.encoder.num_heads": 12, "model.average_top_k_layers": 10, "mask.num_masks": 16, "mask.mask_ratio": 0.8,
        "mask.mask_ratio_adjust": 0.07, "ema.decay_start": 0.9998, "ema.decay_end": 0.99999,
        "ema.anneal_steps": 100_000, "optim.lr": 1e-3, "schedule.warmup_steps": 50_040, "trainer.max_steps": 375_300,
        "model.cls_loss_weight": 0.01 * 16 * 16, "model.decoders.image.depth": 6,
        "model.decoders.image.kernel_size": 3, "model.decoders.image.decoder_dim": 768,
        "model.encoder.frontends.image.patch_size": 16, "global_batch_size": 16 * 16, "micro_batch_size": 16,
    },
    "image_large": {
        "model.encoder.prenet_depth": 0, "model.encoder.depth": 24, "model.encoder.embed_dim": 1024,
        "model.encoder.num_heads": 16, "model.average_top_k_layers": 18, "mask.num_masks": 16, "mask.mask_ratio": 0.75,
        "mask.mask_ratio_adjust": 0.1, "ema.decay_start": 0.9998, "ema.decay_end": 0.99999,
        "ema.anneal_steps": 150_000, "optim.lr": 4e-4, "schedule.warmup_steps": 50_040, "trainer.max_steps": 375_300,
        "model.cls_loss_weight": 0.01 * 8 * 16, "model.decoders.image.depth": 3,
        "model.decoders.image.kernel_size": 5, "model.decoders.image.decoder_dim": 1024,
        "model.encoder.frontends.image.patch_size": 16, "global_batch_size": 8 * 16, "micro_batch_size": 8,
    },
    "image_huge14": {
        "model.encoder.prenet_depth": 0, "model.encoder.depth": 32, "model.encoder.embed_dim": 1280,
        "model.encoder.num_heads": 16, "model.average_top_k_layers": 24, "mask.num_masks": 16, "mask.mask_ratio": 0.75,
        "mask.mask_ratio_adjust": 0.1, "ema.decay_start": 0.9998, "ema.decay_end": 1.0,
        "ema.anneal_steps": 300_000, "optim.lr": 4e-4, "schedule.warmup_steps": 50_040, "trainer.max_steps": 500_000,
        "model.cls_loss_weight": 0.01 * 8 * 16, "model.decoders.image.depth": 3,
        "model.decoders.image.kernel_size": 5, "model.decoders.image.decoder_dim": 1024,
        "model.encoder.frontends.image.patch_size": 14, "global_batch_size": 8 * 32, "micro_batch_size": 8,
    },
}  # fmt: skip
COMMON = {
    "mask.mask_length": 3, "optim.betas": [0.9, 0.95], "optim.eps": 1e-8, "optim.weight_decay": 0.05,
    "optim.exempt_norms_and_biases": False, "trainer.gradient_clip_val": 4.0, "model.loss_scale": None,
    "model.loss_beta": 0.0, "model.layer_norms": ["instance"], "model.target_norms": ["layer"],
    "model.end_of_block_targets": False, "model.encoder.norm_first": False, "model.encoder.drop_rate": 0.0,
    "model.encoder.attn_drop_rate": 0.0, "model.encoder.mlp_drop_rate": 0.0, "model.encoder.post_mlp_drop_rate": 0.0,
    "model.encoder.drop_path_rate": 0.0, "model.encoder.mlp_ratio": 4.0, "model.encoder.norm_eps": 1e-6,
    "model.encoder.frontends.image.num_prefix_tokens": 1, "model.decoders.image.groups": 16,
    "model.decoders.image.mask_noise_std": 0.01, "model.decoders.image.input_drop_rate": 0.0, "data.img_size": 224,
    "data.in_chans": 3, "data.crop_scale": [0.2, 1.0], "data.hflip": 0.5, "data.mean": [0.485, 0.456, 0.406],
    "data.std": [0.229, 0.224, 0.225], "schedule.min_factor": 0.0,
    "mask._target_": "d2v.objective.masking.InverseBlockMask", "data._target_": "d2v.data.images.imagenet",
    "optim._target_": "d2v.lit.optim.adamw", "schedule._target_": "d2v.objective.schedules.warmup_cosine",
    "ema._target_": "d2v.objective.schedules.ema_decay",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe(runs: ModuleType, name: str) -> None:
    with runs.configuration("pretrain", f"experiment={name}") as cfg:
        for key, value in (PUBLISHED[name] | COMMON).items():
            found = OmegaConf.select(cfg, key, throw_on_missing=True)
            found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
            assert found == (pytest.approx(value) if isinstance(value, float) else value), key
        mask = instantiate(cfg.mask)
        tokens = (cfg.data.img_size // cfg.data.patch_size) ** 2
        assert mask.num_visible(tokens) == {"image_base": 39, "image_large": 49, "image_huge14": 64}[name]


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


PRETRAIN_CHOICES = [
    [], *([f"experiment={name}"] for name in EXPERIMENTS),
    *([f"{group}={option}"] for group in GROUPS["pretrain"] for option in options(group)),
]  # fmt: skip

AT_RUN_TIME = {  # arguments that do not come from the configuration
    "d2v.lit.optim.adamw": {"named_parameters"},
    "d2v.objective.schedules.warmup_cosine": {"step"},
    "d2v.objective.schedules.ema_decay": {"step"},
    "d2v.lit.callbacks.probe.OnlineKNN": {"data"},
}


@pytest.mark.parametrize("choice", PRETRAIN_CHOICES, ids=lambda choice: " ".join(choice) or "default")
def test_every_node_mirrors_its_constructor(runs: ModuleType, choice: list[str]) -> None:
    """Each key is an argument, each argument a key: nothing is ignored, nothing is hidden."""
    nodes = list(_nodes(_composed(runs, "pretrain", *choice)))
    assert len(nodes) >= 12
    for path, node in nodes:
        module, _, name = node["_target_"].rpartition(".")
        target = getattr(importlib.import_module(module), name)
        parameters = inspect.signature(target).parameters
        plain = {n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        keys = node.keys() - {"_target_", "_partial_", "_convert_"}
        if any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
            assert node["_target_"] == "d2v.lit.loggers.wandb_logger"
            wandb_logger = importlib.import_module("lightning.pytorch.loggers").WandbLogger
            plain |= keys & inspect.signature(wandb_logger).parameters.keys()
        supplied = AT_RUN_TIME.get(node["_target_"], set())
        assert keys == plain - supplied, f"{path}: {keys ^ (plain - supplied)}"
        assert bool(node.get("_partial_")) == bool(supplied), path


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
            assert f"cfg.{key}" in source or f"${{{key}}}" in interpolated or key == "run_dir", f"{command}: {key}"


@pytest.mark.parametrize(
    ("command", "group", "option"),
    [(command, group, option) for command, groups in GROUPS.items() for group in groups for option in options(group)],
)
def test_every_option_composes(runs: ModuleType, command: str, group: str, option: str) -> None:
    with runs.configuration(command, f"{group}={option}") as cfg:
        assert group == "debug" or cfg[group]  # debug files are global


def test_every_file_is_an_option_of_a_listed_group() -> None:
    """``d2v COMMAND --help`` hides nothing."""
    listed = {f"{group}/{option}" for groups in GROUPS.values() for group in groups for option in options(group)}
    listed |= {f"experiment/{name}" for name in EXPERIMENTS} | set(COMMANDS)
    assert {path.relative_to(CONF).with_suffix("").as_posix() for path in FILES} == listed


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
    assert f"experiment={name}" in command.split()
    assert _composed(runs, *command.split())["optim"] == _composed(runs, "pretrain", f"experiment={name}")["optim"]


def test_only_primary_experiment_and_debug_files_are_global() -> None:
    for path in FILES:
        parts = path.relative_to(CONF).parts
        is_global = "@package _global_" in path.read_text()
        assert is_global == (len(parts) == 1 or parts[0] in ("experiment", "debug")), path
