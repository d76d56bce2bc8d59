"""Experiments are the published recipes of pretraining, and tasks those of fine-tuning."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from composing import modality_of
from omegaconf import OmegaConf

from d2v.cli.commands import options
from d2v.cli.settings import built

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

SPECTROGRAMS = {
    **{
        key.replace("image.", "spectrogram."): value
        for key, value in IMAGES.items()
        if not key.startswith("data.") and "mask_length" not in key
    },
    "mask.mask_length": 5, "mask.num_masks": 16, "model.encoder.prenet_depth": 0, "model.cls_loss_weight": 1 * 12 * 16,
    "model.encoder.frontends.spectrogram.max_frames": 768 * 16, "ema.decay_start": 0.9998, "ema.decay_end": 0.99999,
    "schedule.warmup_steps": 53_333, "trainer.max_steps": 400_000, "global_batch_size": 4 * 12, "micro_batch_size": 12,
    "data.num_frames": 1024, "data.num_mels": 128, "data.patch_size": 16, "data.sample_rate": 16_000,
    "data.mean": -4.268, "data.std": 4.569, "data.crop": "start", "data.min_seconds": 10_000 / 16_000,
}  # fmt: skip

COMMON = {"image": IMAGES, "speech": SPEECH, "text": TEXT, "spectrogram": SPECTROGRAMS}

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

PUBLISHED |= {
    "eat_base": {
        "model.encoder.depth": 12, "model.encoder.embed_dim": 768, "model.encoder.num_heads": 12,
        "model.average_top_k_layers": 12, "mask.mask_ratio": 0.8, "mask.mask_ratio_adjust": 0.07,
        "model.decoders.spectrogram.depth": 6, "model.decoders.spectrogram.kernel_size": 3,
        "model.decoders.spectrogram.decoder_dim": 768, "ema.anneal_steps": 100_000, "optim.lr": 5e-4,
    },
    "eat_large": {
        "model.encoder.depth": 24, "model.encoder.embed_dim": 1024, "model.encoder.num_heads": 16,
        "model.average_top_k_layers": 24, "mask.mask_ratio": 0.75, "mask.mask_ratio_adjust": 0.1,
        "model.decoders.spectrogram.depth": 3, "model.decoders.spectrogram.kernel_size": 5,
        "model.decoders.spectrogram.decoder_dim": 1024, "ema.anneal_steps": 150_000, "optim.lr": 4e-4,
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
    "eat_base": (512, 102), "eat_large": (512, 128),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe(runs: ModuleType, name: str) -> None:
    with runs.configuration("pretrain", f"experiment={name}") as cfg:
        for key, value in ((VERSION_1 if name in PUBLISHED_1 else COMMON[modality_of(name)]) | PUBLISHED[name]).items():
            found = OmegaConf.select(cfg, key, throw_on_missing=True)
            found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
            assert found == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), key
        mask = built(cfg, "mask")
        tokens, visible = TOKENS[name]
        assert mask.num_visible(tokens) == visible


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [("eat_base", 85_254_144, 2_585_856), ("eat_large", 302_575_616, 5_967_872)],
)
def test_sizes_of_eat(runs: ModuleType, name: str, encoder: int, decoder: int) -> None:
    """88M and 309M parameters in all; 768 x 8 fixed positions are none."""
    with runs.configuration("pretrain", f"experiment={name}") as cfg:
        cfg.data.root = "somewhere"
        with torch.device("meta"):
            model = built(cfg, "model")
    assert sum(p.numel() for p in model.student.parameters()) == encoder
    assert sum(p.numel() for p in model.decoders.parameters()) == decoder
    assert model.student.frontend("spectrogram").positions.shape == (768 * 8, cfg.model.encoder.embed_dim)


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

LIBRISPEECH = {
    "task.metric": "wer",
    "optim.betas": [0.9, 0.98], "optim.eps": 1e-8, "optim.weight_decay": 0.0, "trainer.gradient_clip_val": None,
    "schedule.warmup_fraction": 0.1, "schedule.hold_fraction": 0.4, "schedule.min_factor": 0.05,
    "feature_mask.time_prob": 0.4, "feature_mask.time_length": 5, "feature_mask.channel_prob": 0.1,
    "feature_mask.channel_length": 64, "train_frontend": False, "encoder.drop_rate": 0.0, "encoder.attn_drop_rate": 0.0,
    "encoder.mlp_drop_rate": 0.1, "encoder.post_mlp_drop_rate": 0.0, "encoder.layer_drop_rate": 0.1,
    "head.drop_rate": 0.0, "head.layers": "last", "optim.head_lr_factor": 1, "global_batch_size": 1600,
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
    "audio_tagging": {  # of EAT: docs/recipes/eat.md
        "global_batch_size": 48, "trainer.max_steps": 40_000, "optim.lr": 5e-5, "optim.weight_decay": 0.05,
        "optim.layer_decay": 0.65, "encoder.drop_path_rate": 0.1, "schedule.warmup_fraction": 4000 / 40_000,
        "head._target_": "d2v.models.cls_head.ClsHead", "head.norm_eps": 1e-6, "labels.augment.time_mask": 0.2,
        "labels.augment.mel_mask": 0.2, "labels.augment.roll": True, "data.num_frames": 1024,
    },
    "glue/stsb": {**GLUE, "global_batch_size": 16, "task._target_": "d2v.tasks.classification.Regression"},
    "glue/qqp": {**GLUE, "global_batch_size": 32, "task.metric": "accuracy_f1", "schedule.warmup_fraction": 0.25},
    "glue_all": {**GLUE, "sweep.lrs": [1e-5, 2e-5, 4e-5, 6e-5], "sweep.seeds": [0, 1, 2, 3, 4]},
    **{
        f"librispeech/{split}": {
            **LIBRISPEECH, "labels.hours": hours, "trainer.max_steps": steps, "freeze_steps": frozen, "optim.lr": lr,
        }
        for split, hours, steps, frozen, lr in (
            ("10m", 1 / 6, 13000, 10000, 5e-5), ("1h", 1, 13000, 10000, 5e-5), ("10h", 10, 20000, 10000, 5e-5),
            ("100h", None, 80000, 100, 3e-5), ("960h", None, 320000, 100, 1e-4),
        )
    },
}  # fmt: skip


def test_every_published_task_is_here() -> None:
    own = {"image_classification", "ctc", "ctc_base", "audio_classification"}  # any folder, any clips
    assert TASKS.keys() == set(options("task")) - own


@pytest.mark.parametrize("name", TASKS)
def test_published_finetuning_recipe(runs: ModuleType, name: str) -> None:
    with runs.configuration("finetune", f"task={name}") as cfg:
        for key, value in TASKS[name].items():
            found = OmegaConf.select(cfg, key, throw_on_missing=True)
            assert found == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), key
