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
from omegaconf import OmegaConf, open_dict
from torch.overrides import TorchFunctionMode

from d2v.cli.commands import COMMANDS, options
from d2v.cli.settings import Pretrain, built, checked, plain
from d2v.interop.build import part_named
from d2v.values import parameters, returned_by

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


def _modality(name: str) -> str:
    return name.removeprefix("v1_").removeprefix("mae_").partition("_")[0]


def _own_data(runs: ModuleType, folder: Path, name: str) -> list[str]:
    """Small data for an experiment that asks for data."""
    with runs.configuration("pretrain", f"experiment={name}") as cfg:
        if not OmegaConf.is_missing(cfg.data, "root"):
            return []
    if _modality(name) == "image":
        return [f"data.root={runs.image_folder(folder, train=2, val=1, size=32)}"]
    if _modality(name) == "speech":
        parts = ["data.train=train-clean-100", "data.val=null", "data.probe_train=null"]
        return [f"data.root={runs.librispeech(folder)}", *parts]
    folder.mkdir()
    return [f"data.root={runs.text_file(folder / 'text.txt')}", "data.vocab_size=300"]


def _small(runs: ModuleType, name: str) -> list[str]:
    """Overrides to small sizes; data2vec 1.0 has no decoder, the autoencoder no convolutions in its, and no targets."""
    absent = {"v1_": ("model.decoders.", "cls_loss"), "mae_": ("groups", "kernel", "cls_loss", "top_k", "proj")}
    words = next((words for prefix, words in absent.items() if name.startswith(prefix)), ())
    return [o for o in runs.SMALL[_modality(name)] if not any(word in o for word in words)]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_takes_a_step(runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """On little data, with its own masks, optimizer and schedules; only sizes are smaller."""
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))
    batch = {"image": 2, "speech": 6, "text": 2}[_modality(name)]
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
        checked(Pretrain, plain(cfg))
        with _Meta():
            model = built(cfg.model)
        optimizer = built(cfg.optim)(model.student)
        schedule, ema, mask = built(cfg.schedule, max_steps=cfg.trainer.max_steps), built(cfg.ema), built(cfg.mask)
        node = cfg.model.encoder
        frontend = {"image": _patches, "speech": _convolutions, "text": _embeddings}[_modality(name)]
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


# The published recipes, as released. CLS weight: .01 x images on each GPU x masks.
PUBLISHED = {
    "image_base": {
        "model.encoder.prenet_depth": 2, "model.encoder.depth": 10, "model.encoder.embed_dim": 768,
        "model.encoder.num_heads": 12, "model.average_top_k_layers": 10, "mask.num_masks": 16, "mask.mask_ratio": 0.8,
        "mask.mask_ratio_adjust": 0.07, "ema.decay_start": 0.9998, "ema.decay_end": 0.99999,
        "ema.anneal_steps": 100_000, "optim.lr": 1e-3, "schedule.warmup_steps": 50_040, "trainer.max_steps": 375_300,
        "model.cls_loss_weight": 0.01 * 16 * 16, "model.decoders.image.depth": 6,
        "model.decoders.image.kernel_size": 3, "model.decoders.image.decoder_dim": 768,
        "data.patch_size": 16, "global_batch_size": 16 * 16, "micro_batch_size": 16,
    },
    "image_large": {
        "model.encoder.prenet_depth": 0, "model.encoder.depth": 24, "model.encoder.embed_dim": 1024,
        "model.encoder.num_heads": 16, "model.average_top_k_layers": 18, "mask.num_masks": 16, "mask.mask_ratio": 0.75,
        "mask.mask_ratio_adjust": 0.1, "ema.decay_start": 0.9998, "ema.decay_end": 0.99999,
        "ema.anneal_steps": 150_000, "optim.lr": 4e-4, "schedule.warmup_steps": 50_040, "trainer.max_steps": 375_300,
        "model.cls_loss_weight": 0.01 * 8 * 16, "model.decoders.image.depth": 3,
        "model.decoders.image.kernel_size": 5, "model.decoders.image.decoder_dim": 1024,
        "data.patch_size": 16, "global_batch_size": 8 * 16, "micro_batch_size": 8,
    },
    "image_huge14": {
        "model.encoder.prenet_depth": 0, "model.encoder.depth": 32, "model.encoder.embed_dim": 1280,
        "model.encoder.num_heads": 16, "model.average_top_k_layers": 24, "mask.num_masks": 16, "mask.mask_ratio": 0.75,
        "mask.mask_ratio_adjust": 0.1, "ema.decay_start": 0.9998, "ema.decay_end": 1.0,
        "ema.anneal_steps": 300_000, "optim.lr": 4e-4, "schedule.warmup_steps": 50_040, "trainer.max_steps": 500_000,
        "model.cls_loss_weight": 0.01 * 8 * 16, "model.decoders.image.depth": 3,
        "model.decoders.image.kernel_size": 5, "model.decoders.image.decoder_dim": 1024,
        "data.patch_size": 14, "global_batch_size": 8 * 32, "micro_batch_size": 8,
    },
}  # fmt: skip
IMAGES = {
    "mask.mask_length": 3, "optim.betas": [0.9, 0.95], "optim.eps": 1e-8, "optim.weight_decay": 0.05,
    "optim.exempt_norms_and_biases": False, "trainer.gradient_clip_val": 4.0, "model.loss_scale": None,
    "model.loss_beta": 0.0, "model.layer_norms": ["instance"], "model.target_norms": ["layer"],
    "model.end_of_block_targets": False, "model.encoder.norm_first": False, "model.encoder.drop_rate": 0.0,
    "model.encoder.attn_drop_rate": 0.0, "model.encoder.mlp_drop_rate": 0.0, "model.encoder.post_mlp_drop_rate": 0.0,
    "model.encoder.drop_path_rate": 0.0, "model.encoder.mlp_ratio": 4.0, "model.encoder.norm_eps": 1e-6,
    "model.encoder.layer_drop_rate": 0.0, "model.teacher_scope": "encoder", "model.decoders.image.residual": True,
    "model.decoders.image.proj_depth": 1,
    "model.encoder.frontends.image.num_prefix_tokens": 1, "model.decoders.image.groups": 16,
    "model.decoders.image.mask_noise_std": 0.01, "model.decoders.image.input_drop_rate": 0.0, "data.img_size": 224,
    "data.in_chans": 3, "data.crop_scale": [0.2, 1.0], "data.hflip": 0.5, "data.mean": [0.485, 0.456, 0.406],
    "data.std": [0.229, 0.224, 0.225], "schedule.min_factor": 0.0,
    "mask._target_": "d2v.objective.masking.InverseBlockMask", "data._target_": "d2v.data.images.factories.imagenet",
    "optim._target_": "d2v.lit.optim.adamw", "schedule._target_": "d2v.objective.schedules.warmup_cosine",
    "ema._target_": "d2v.objective.schedules.ema_decay",
}  # fmt: skip


SEQUENCES = {
    "optim.betas": [0.9, 0.98], "optim.eps": 1e-6, "optim.weight_decay": 0.01, "optim.exempt_norms_and_biases": False,
    "model.loss_beta": 0.0, "model.cls_loss_weight": 0.0, "model.end_of_block_targets": False,
    "model.encoder.norm_first": False, "model.encoder.norm_eps": 1e-5, "model.encoder.mlp_ratio": 4.0,
    "model.encoder.drop_rate": 0.1, "model.encoder.attn_drop_rate": 0.1, "model.encoder.mlp_drop_rate": 0.0,
    "model.encoder.post_mlp_drop_rate": 0.1, "model.encoder.drop_path_rate": 0.0, "schedule.min_factor": 0.0,
}  # fmt: skip
SPEECH = SEQUENCES | {
    "mask._target_": "d2v.objective.masking.SpanMask", "mask.mask_length": 5, "model.loss_scale": None,
    "model.layer_norms": ["instance"], "model.target_norms": [], "model.teacher_scope": "context",
    "data.conv_layers": [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2],
    "model.encoder.frontends.speech.pos_depth": 5, "model.encoder.frontends.speech.pos_kernel_size": 95 // 5,
    "model.encoder.frontends.speech.pos_groups": 16, "model.encoder.frontends.speech.alibi": True,
    "model.encoder.frontends.speech.input_drop_rate": 0.1, "model.decoders.speech.kernel_size": 7,
    "model.decoders.speech.depth": 4, "model.decoders.speech.groups": 16, "model.decoders.speech.residual": True,
    "model.decoders.speech.mask_noise_std": 0.01, "model.decoders.speech.input_drop_rate": 0.1,
    "data.min_seconds": 2.0, "data.max_seconds": 20.0, "data.sample_rate": 16000,
}  # fmt: skip
TEXT = SEQUENCES | {
    "mask._target_": "d2v.objective.masking.RandomMask", "model.loss_scale": 1.0, "model.teacher_scope": "blocks",
    "trainer.gradient_clip_val": 1.0, "model.encoder.layer_drop_rate": 0.0, "model.encoder.prenet_depth": 0,
    "model.encoder.frontends.text.drop_rate": 0.1, "model.encoder.frontends.text.max_positions": 512,
    "model.encoder.frontends.text.token_init_std": 0.02, "model.encoder.frontends.text.pos_init_std": 0.02,
    "model.decoders.text.kernel_size": 9,
    "model.decoders.text.depth": 5, "model.decoders.text.groups": 1, "model.decoders.text.decoder_dim": 768,
    "model.decoders.text.residual": False, "model.decoders.text.proj_depth": 2, "model.decoders.text.proj_ratio": 2.0,
    "model.decoders.text.proj_init_std": 0.02, "model.decoders.text.mask_noise_std": 0.01,
    "model.decoders.text.input_drop_rate": 0.1, "data.block_size": 512,
}  # fmt: skip
COMMON = {"image": IMAGES, "speech": SPEECH, "text": TEXT}
PUBLISHED |= {
    "speech_base": {
        "model.encoder.depth": 12, "model.encoder.prenet_depth": 0, "model.encoder.embed_dim": 768,
        "model.encoder.num_heads": 12, "model.encoder.layer_drop_rate": 0.05, "model.average_top_k_layers": 8,
        "model.decoders.speech.decoder_dim": 384, "mask.num_masks": 8, "mask.mask_ratio": 0.5,
        "mask.mask_ratio_adjust": 0.05, "ema.decay_start": 0.999, "ema.decay_end": 0.99999, "ema.anneal_steps": 75_000,
        "optim.lr": 7.5e-4, "schedule.warmup_steps": 8000, "trainer.max_steps": 400_000,
        "trainer.gradient_clip_val": None, "global_batch_size": 8 * 1_000_000 / 16_000, "micro_batch_size": 62.5,
    },
    "speech_large": {
        "model.encoder.depth": 16, "model.encoder.prenet_depth": 8, "model.encoder.embed_dim": 1024,
        "model.encoder.num_heads": 16, "model.encoder.layer_drop_rate": 0.0, "model.average_top_k_layers": 16,
        "model.decoders.speech.decoder_dim": 768, "mask.num_masks": 12, "mask.mask_ratio": 0.55,
        "mask.mask_ratio_adjust": 0.1, "ema.decay_start": 0.9997, "ema.decay_end": 1.0, "ema.anneal_steps": 300_000,
        "optim.lr": 4e-4, "schedule.warmup_steps": 10_000, "trainer.max_steps": 600_000,
        "trainer.gradient_clip_val": 1.0, "global_batch_size": 48 * 320_000 / 16_000, "micro_batch_size": 20.0,
    },
    "text_base": {
        "model.encoder.depth": 12, "model.encoder.embed_dim": 768, "model.encoder.num_heads": 12,
        "model.average_top_k_layers": 12, "model.layer_norms": ["instance"], "model.target_norms": [],
        "mask.num_masks": 8, "mask.mask_ratio": 0.48, "ema.decay_start": 0.9999, "ema.decay_end": 0.99999,
        "ema.anneal_steps": 100_000, "optim.lr": 2e-4, "schedule.warmup_steps": 4000, "trainer.max_steps": 1_000_000,
        "global_batch_size": 4 * 16, "micro_batch_size": 4,
    },
    "text_large": {
        "model.encoder.depth": 24, "model.encoder.embed_dim": 1024, "model.encoder.num_heads": 16,
        "model.average_top_k_layers": 24, "model.layer_norms": ["layer"], "model.target_norms": ["instance"],
        "mask.num_masks": 8, "mask.mask_ratio": 0.5, "ema.decay_start": 0.9999, "ema.decay_end": 0.99999,
        "ema.anneal_steps": 100_000, "optim.lr": 1e-4, "schedule.warmup_steps": 4000, "trainer.max_steps": 600_000,
        "global_batch_size": 2 * 32, "micro_batch_size": 2,
    },
}  # fmt: skip

VERSION_1 = {
    "mask.num_masks": 1, "optim.betas": [0.9, 0.98], "optim.eps": 1e-6, "optim.weight_decay": 0.01,
    "model._target_": "d2v.models.data2vec.Data2Vec", "model.encoder.depth": 12, "model.encoder.embed_dim": 768,
    "model.encoder.num_heads": 12, "model.encoder.prenet_depth": 0, "model.encoder.mlp_ratio": 4.0,
    "model.encoder.norm_eps": 1e-5, "ema.decay_start": 0.999,
}  # fmt: skip
PUBLISHED_1 = {
    "v1_text_base": {
        "model.average_top_k_layers": 10, "model.layer_norms": ["layer"], "model.target_norms": [],
        "model.loss_scale": 1.0, "model.loss_beta": 4.0, "model.heads.text.depth": 2, "model.heads.text.ratio": 2.0,
        "model.end_of_block_targets": False, "model.encoder.norm_first": False, "model.encoder.drop_rate": 0.1,
        "model.encoder.attn_drop_rate": 0.1, "model.encoder.post_mlp_drop_rate": 0.1,
        "model.encoder.frontends.text.drop_rate": 0.1, "data.block_size": 512,
        "mask._target_": "d2v.objective.masking.SpanMask", "mask.mask_length": 4, "ema.decay_end": 0.9999,
        "ema.anneal_steps": 300_000, "optim.lr": 2e-4, "schedule.warmup_steps": 10_000, "trainer.max_steps": 1_000_000,
        "trainer.gradient_clip_val": 5.0, "global_batch_size": 16 * 8192 // 512, "micro_batch_size": 16,
    },
    "v1_speech_base": {
        "model.average_top_k_layers": 8, "model.layer_norms": ["instance"], "model.target_norms": [],
        "model.loss_scale": None, "model.loss_beta": 0.0, "model.heads.speech.depth": 1,
        "model.end_of_block_targets": False, "model.encoder.norm_first": False, "model.encoder.layer_drop_rate": 0.05,
        "model.encoder.frontends.speech.alibi": False, "model.encoder.frontends.speech.pos_depth": 5,
        "model.encoder.frontends.speech.pos_kernel_size": 95 // 5,
        "mask._target_": "d2v.objective.masking.SpanMask", "mask.mask_length": 10, "ema.decay_end": 0.9999,
        "ema.anneal_steps": 30_000, "optim.lr": 5e-4, "schedule.warmup_fraction": 0.03,
        "schedule.hold_fraction": 0.9, "trainer.max_steps": 400_000, "trainer.gradient_clip_val": None,
        "global_batch_size": 16 * 3_800_000 / 16_000, "micro_batch_size": 237.5,
    },
    "v1_image_base": {
        "model.average_top_k_layers": 6, "model.layer_norms": [], "model.target_norms": ["layer"],
        "model.loss_beta": 2.0, "model.heads.image.depth": 0, "model.end_of_block_targets": True,
        "model.encoder.norm_first": True, "model.encoder.drop_path_rate": 0.25, "model.encoder.attn_drop_rate": 0.05,
        "data.patch_size": 16, "model.encoder.frontends.image.shared_bias": True,
        "mask._target_": "d2v.objective.masking.BlockMask", "mask.min_block": 16, "mask.min_aspect": 0.3,
        "ema.decay_end": 0.9998, "optim.lr": 5e-4, "schedule.warmup_steps": 10_000, "trainer.max_steps": 400_000,
        "global_batch_size": 16 * 64, "micro_batch_size": 64,
    },
}  # fmt: skip
PUBLISHED |= PUBLISHED_1

TOKENS = {
    "image_base": (196, 39), "image_large": (196, 49), "image_huge14": (256, 64), "speech_base": (999, 500),
    "speech_large": (999, 999 - 549), "text_base": (512, 266), "text_large": (512, 256),
    "v1_text_base": (512, 512 - 158), "v1_speech_base": (999, 999 - 489), "v1_image_base": (196, 196 - 120),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe(runs: ModuleType, name: str) -> None:
    with runs.configuration("pretrain", f"experiment={name}") as cfg:
        for key, value in ((VERSION_1 if name in PUBLISHED_1 else COMMON[_modality(name)]) | PUBLISHED[name]).items():
            found = OmegaConf.select(cfg, key, throw_on_missing=True)
            found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
            assert found == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), key
        mask = built(cfg.mask)
        tokens, visible = TOKENS[name]
        assert mask.num_visible(tokens) == visible


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


def _choice(group: str, option: str) -> list[str]:
    """An option with an experiment whose data and model are of its modality."""
    file = (CONF / group / f"{option}.yaml").read_text()
    about = option if group == "model" else f"{option} {file}".lower()
    fitting = [name for name in ("speech", "text") if name in about]
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
    "d2v.lit.optim.adamw": {"model"},
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


@pytest.mark.parametrize("modality", ["image", "speech", "text"])
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


IMAGENET = {
    "global_batch_size": 512, "optim.betas": [0.9, 0.95], "optim.eps": 1e-8, "optim.weight_decay": 0.05,
    "optim.exempt_norms_and_biases": True, "labels.augment.mixup": 0.7, "labels.augment.cutmix": 1.0,
    "labels.augment.mix_prob": 0.9, "labels.augment.switch_prob": 0.5, "labels.augment.label_smoothing": 0.1,
    "labels.augment.erase_prob": 0.25, "head.norm_eps": 1e-6, "network": "student", "freeze_steps": 0,
}  # fmt: skip
IMAGENET_LARGE = {
    **IMAGENET, "epochs": 50, "optim.lr": 5e-4, "optim.layer_decay": 0.75, "encoder.drop_path_rate": 0.2,
    "schedule.warmup_fraction": 16000 / 125200, "trainer.gradient_clip_val": 4.0,
}  # fmt: skip
GLUE = {
    "epochs": 10, "optim.betas": [0.9, 0.98], "optim.eps": 1e-6, "optim.weight_decay": 0.1, "encoder.drop_rate": 0.1,
    "encoder.attn_drop_rate": 0.1, "schedule.warmup_fraction": 0.06, "schedule.min_factor": 0.0,
    "trainer.gradient_clip_val": None, "data.block_size": 512, "optim.lr": 2e-5,
}  # fmt: skip
SPEECH = {
    "optim.betas": [0.9, 0.98], "optim.eps": 1e-8, "optim.weight_decay": 0.0, "trainer.gradient_clip_val": None,
    "schedule.warmup_fraction": 0.1, "schedule.hold_fraction": 0.4, "schedule.min_factor": 0.05,
    "feature_mask.time_prob": 0.4, "feature_mask.time_length": 5, "feature_mask.channel_prob": 0.1,
    "feature_mask.channel_length": 64, "train_frontend": False, "encoder.drop_rate": 0.0, "encoder.attn_drop_rate": 0.0,
    "encoder.mlp_drop_rate": 0.1, "encoder.post_mlp_drop_rate": 0.0, "encoder.layer_drop_rate": 0.1,
    "head.drop_rate": 0.0, "global_batch_size": 1600,
}  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {  # sources: docs/recipes/finetuning.md
    "imagenet": {
        **IMAGENET, "epochs": 100, "optim.lr": 1e-3, "optim.layer_decay": 0.65, "encoder.drop_path_rate": 0.1,
        "schedule.warmup_fraction": 16000 / 250200, "schedule.min_factor": 1e-3, "trainer.gradient_clip_val": None,
    },
    "imagenet_large": {**IMAGENET_LARGE, "schedule.min_factor": 2e-4},
    "imagenet_huge": {**IMAGENET_LARGE, "schedule.min_factor": 0.0},
    **{
        f"glue/{task}": {**GLUE, "global_batch_size": size, "task.metric": metric}
        for task, size, metric in (
            ("cola", 16, "matthews"), ("sst2", 32, "accuracy"), ("mrpc", 16, "accuracy_f1"), ("mnli", 32, "accuracy"),
            ("qnli", 32, "accuracy"), ("rte", 16, "accuracy"), ("wnli", 32, "accuracy"),
        )
    },
    "glue/stsb": {**GLUE, "global_batch_size": 16, "task._target_": "d2v.tasks.classification.Regression"},
    "glue/qqp": {**GLUE, "global_batch_size": 32, "task.metric": "accuracy_f1", "schedule.warmup_fraction": 0.25},
    "glue_all": {**GLUE, "sweep.lrs": [1e-5, 2e-5, 4e-5, 6e-5], "sweep.seeds": [0, 1, 2, 3, 4]},
    **{
        f"librispeech/{split}": {
            **SPEECH, "labels.hours": hours, "trainer.max_steps": steps, "freeze_steps": frozen, "optim.lr": lr,
        }
        for split, hours, steps, frozen, lr in (
            ("10m", 1 / 6, 13000, 10000, 5e-5), ("1h", 1, 13000, 10000, 5e-5), ("10h", 10, 20000, 10000, 5e-5),
            ("100h", None, 80000, 100, 3e-5), ("960h", None, 320000, 100, 1e-4),
        )
    },
}  # fmt: skip


def test_every_published_task_is_here() -> None:
    own = {"image_classification", "ctc"}  # any folder, any clips
    assert TASKS.keys() == set(options("task")) - own


@pytest.mark.parametrize("name", TASKS)
def test_published_finetuning_recipe(runs: ModuleType, name: str) -> None:
    with runs.configuration("finetune", f"task={name}") as cfg:
        for key, value in TASKS[name].items():
            found = OmegaConf.select(cfg, key, throw_on_missing=True)
            assert found == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), key


@pytest.mark.parametrize("name", options("task"))
def test_a_task_begins_with_its_command(name: str) -> None:
    first, command = (CONF / "task" / f"{name}.yaml").read_text().splitlines()[:2]
    assert first == "# @package _global_"
    assert command.startswith(f"# d2v finetune task={name} ")
