"""Golden cases of tiny models, computed by the slow oracle instead of the authors' code."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def golden_case(
    oracle: ModuleType,
    o: Any,
    batch_size: int,
    seed: int,
    sgd_lr: float,
    num_steps: int,
    recipe: str,
    teacher_is_student: bool = False,
) -> tuple[dict, dict[str, Tensor]]:
    """A case in the format of the golden files: its description and its tensors, training included.

    Args:
        oracle: the slow second implementation.
        o: its options of the model.
        batch_size: samples.
        seed: of parameters, inputs and masks.
        sgd_lr: learning rate.
        num_steps: to train.
        recipe: of the authors, which the description names.
        teacher_is_student: start the teacher as the student, and not from parameters of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    student = oracle.random_parameters(o, generator)
    other = student if teacher_is_student else oracle.random_parameters(o, generator)
    teacher = {name: value for name, value in other.items() if oracle.in_teacher(name)}
    source = torch.randn(batch_size, o.in_chans, o.input_size, o.input_size, generator=generator)
    num_tokens = o.side**2
    masks = torch.zeros(batch_size * o.num_masks, num_tokens, dtype=torch.bool)
    for row in masks:
        row[torch.randperm(num_tokens, generator=generator)[: int(num_tokens * 0.7)]] = True
    student, teacher = ({k: v.float().double() for k, v in p.items()} for p in (student, teacher))
    tensors = {f"student/{k}": v.float() for k, v in student.items()}
    tensors |= {f"teacher/{k}": v.float() for k, v in teacher.items()}
    where = oracle.positions(o).float()[None]
    key = f"{oracle.MODALITY}fixed_positional_encoder.positions"
    tensors |= {f"student/{key}": where, f"teacher/{key}": where.clone(), f"teacher_after/{key}": where.clone()}
    tensors |= {"source": source, "mask": masks.to(torch.uint8)}

    decay_start, decay_end, anneal = ema = 0.9, 0.99, 4
    trajectory, decays, losses, spec = [], [], {}, {}
    for step in range(num_steps):
        student = {k: v.detach().requires_grad_() for k, v in student.items()}
        result = oracle.run(student, teacher, source, masks, o)
        result.loss.backward()
        if step == 0:
            for i, layer in enumerate(result.layers):
                tensors[f"teacher_layer/{i}"] = layer.float()
            for name in ("target", "target_masked", "pred"):
                tensors[name] = getattr(result, name).detach().float()
            tensors |= {f"grad/{k}": v.grad.float() for k, v in student.items() if v.grad is not None}
            losses["IMAGE_regression"] = float(result.regression.detach()) / result.count
            if o.cls_loss:
                losses["cls"] = float(result.cls.detach()) / result.count
            spec = {
                "sample_size": result.count,
                "masked_pct": result.count / masks.numel(),
                "target_var": oracle.spread(result.target_masked),
                "pred_var": oracle.spread(result.pred.detach()),
            }
        trajectory.append(float(result.loss.detach()))
        student = {k: (v - sgd_lr * v.grad if v.grad is not None else v).detach() for k, v in student.items()}
        decays.append(decay_start + (decay_end - decay_start) * min(step + 1, anneal) / anneal)
        teacher = {k: decays[-1] * v + (1 - decays[-1]) * student[k] for k, v in teacher.items()}
    tensors |= {f"teacher_after/{k}": v.float() for k, v in teacher.items()}
    tensors["features_after"] = torch.stack(
        [oracle.encode(oracle.embed(x.double(), student, o), student, o)[0] for x in source]
    ).float()
    spec |= {
        "name": recipe,
        "overrides": overrides_of(o, *ema),
        "losses": losses,
        "sgd_lr": sgd_lr,
        "trajectory": trajectory,
        "ema_decay_after_step": decays,
    }
    return spec, {k: v.contiguous() for k, v in tensors.items()}


def overrides_of(o: Any, decay_start: float, decay_end: float, anneal: int) -> dict[str, Any]:
    """What the authors' recipe is changed by."""
    return {
        "embed_dim": o.embed_dim,
        "num_heads": o.num_heads,
        "depth": o.depth,
        "mlp_ratio": o.mlp_hidden / o.embed_dim,
        "average_top_k_layers": o.average_top_k_layers,
        "clone_batch": o.num_masks,
        "instance_norm_target_layer": "instance" in o.layer_norms,
        "layer_norm_target_layer": "layer" in o.layer_norms,
        "layer_norm_targets": "layer" in o.target_norms,
        "instance_norm_targets": "instance" in o.target_norms,
        "end_of_block_targets": o.end_of_block_targets,
        "loss_beta": o.loss_beta,
        "loss_scale": o.loss_scale,
        "cls_loss": o.cls_loss,
        "ema_decay": decay_start,
        "ema_end_decay": decay_end,
        "ema_anneal_end_step": anneal,
        "modalities": {
            "image": {
                "input_size": o.input_size,
                "patch_size": o.patch_size,
                "in_chans": o.in_chans,
                "embed_dim": o.embed_dim,
                "prenet_depth": o.prenet_depth,
                "num_extra_tokens": o.num_extra_tokens,
                "mask_noise_std": 0.0,
                "decoder": {
                    "decoder_dim": o.decoder_dim,
                    "decoder_groups": o.decoder_groups,
                    "decoder_layers": o.decoder_layers,
                    "decoder_kernel": o.decoder_kernel,
                    "input_dropout": 0.0,
                },
            }
        },
    }
