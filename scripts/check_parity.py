"""Compare d2v with what the authors' code computed: ``python scripts/check_parity.py DIR``.

DIR holds cases as NAME.json (recipe, overrides, losses, trajectory) and NAME.safetensors (parameters, source, mask and
every quantity the reference computed from them). A case runs if the project has its modality. Prints one line a
quantity with the largest error relative to the quantity's largest magnitude; exits 1 if any is out of tolerance or no
case ran.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from d2v.interop.fairseq import MODALITIES, to_d2v_name, to_d2v_shape, to_d2v_state
from d2v.models.data2vec2 import Data2Vec2, TeacherScope
from d2v.nn.decoders import ConvDecoder, ConvDecoder1d, ConvDecoder2d
from d2v.nn.encoder import Encoder
from d2v.nn.frontends.base import Frontend
from d2v.nn.frontends.image import ImageFrontend
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.nn.frontends.text import TextFrontend
from d2v.objective.schedules import ema_decay
from d2v.types import Batch, TokenMask, num_frames

FORWARD, TRAINED = 1e-5, 1e-4  # tolerances: one pass; after five training steps

# What the reference's recipes and the defaults of its code say where a case's overrides are silent.
COMMON: dict[str, Any] = {
    "embed_dim": 768,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "layer_norm_first": False,
    "ema_end_decay": 0.99999,
    "ema_anneal_end_step": 100_000,
    "instance_norm_target_layer": True,
    "layer_norm_target_layer": False,
    "layer_norm_targets": False,
    "instance_norm_targets": False,
    "end_of_block_targets": False,
    "loss_beta": 0.0,
    "loss_scale": None,
    "cls_loss": 0.0,
}
IMAGE_RECIPE: dict[str, Any] = {
    **COMMON,
    "depth": 10,
    "norm_eps": 1e-6,
    "average_top_k_layers": 10,
    "clone_batch": 16,
    "ema_decay": 0.9998,
    "layer_norm_targets": True,
    "cls_loss": 0.01,
    "modalities": {
        "image": {
            "input_size": 224,
            "patch_size": 16,
            "in_chans": 3,
            "prenet_depth": 2,
            "num_extra_tokens": 1,
            "mask_noise_std": 0.01,
            "decoder": {"decoder_dim": 768, "decoder_groups": 16, "decoder_kernel": 3, "decoder_layers": 6},
        }
    },
}
AUDIO_RECIPE: dict[str, Any] = {
    **COMMON,
    "depth": 12,
    "norm_eps": 1e-5,
    "average_top_k_layers": 8,
    "clone_batch": 8,
    "ema_decay": 0.999,
    "ema_anneal_end_step": 75_000,
    "modalities": {
        "audio": {
            "feature_encoder_spec": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
            "conv_pos_depth": 5,
            "conv_pos_width": 95,
            "conv_pos_groups": 16,
            "prenet_depth": 0,
            "num_extra_tokens": 0,
            "mask_noise_std": 0.01,
            "use_alibi_encoder": True,
            "decoder": {"decoder_dim": 384, "decoder_groups": 16, "decoder_kernel": 7, "decoder_layers": 4},
        }
    },
}
TEXT_RECIPE: dict[str, Any] = {
    **COMMON,
    "depth": 12,
    "norm_eps": 1e-5,
    "average_top_k_layers": 12,
    "clone_batch": 8,
    "ema_decay": 0.9999,
    "loss_scale": 1.0,
    "modalities": {
        "text": {
            "max_source_positions": 512,
            "prenet_depth": 0,
            "num_extra_tokens": 0,
            "mask_noise_std": 0.01,
            "decoder": {
                "decoder_dim": 768,
                "decoder_groups": 1,
                "decoder_kernel": 9,
                "decoder_layers": 5,
                "decoder_residual": False,
                "projection_layers": 2,
                "projection_ratio": 2.0,
            },
        }
    },
}
LARGE_IMAGE: dict[str, Any] = {
    "depth": 24,
    "embed_dim": 1024,
    "num_heads": 16,
    "average_top_k_layers": 18,
    "ema_anneal_end_step": 150_000,
    "modalities": {
        "image": {
            "prenet_depth": 0,
            "decoder": {"decoder_dim": 1024, "decoder_kernel": 5, "decoder_layers": 3},
        }
    },
}
# The released recipes, as bases and differences from them; golden cases name the recipe they started from.
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base_images_only_task": (IMAGE_RECIPE, {}),
    "large_images_only_task": (IMAGE_RECIPE, LARGE_IMAGE),
    "huge_images14_only_task": (
        IMAGE_RECIPE,
        {
            **LARGE_IMAGE,
            "depth": 32,
            "embed_dim": 1280,
            "average_top_k_layers": 24,
            "ema_end_decay": 1.0,
            "ema_anneal_end_step": 300_000,
            "modalities": {"image": {**LARGE_IMAGE["modalities"]["image"], "patch_size": 14}},
        },
    ),
    "base_audio_only_task": (AUDIO_RECIPE, {}),
    "large_audio_only_task": (
        AUDIO_RECIPE,
        {
            "depth": 16,
            "embed_dim": 1024,
            "num_heads": 16,
            "clone_batch": 12,
            "ema_decay": 0.9997,
            "ema_end_decay": 1.0,
            "ema_anneal_end_step": 300_000,
            "average_top_k_layers": 16,
            "modalities": {"audio": {"prenet_depth": 8, "decoder": {"decoder_dim": 768}}},
        },
    ),
    "base_text_only_task": (TEXT_RECIPE, {}),
    "large_text_only_task": (
        TEXT_RECIPE,
        {
            "depth": 24,
            "embed_dim": 1024,
            "num_heads": 16,
            "average_top_k_layers": 24,
            "instance_norm_target_layer": False,
            "layer_norm_target_layer": True,
            "instance_norm_targets": True,
        },
    ),
}


def merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``overrides`` laid over it, recursively."""
    merged = dict(base)
    for key, value in overrides.items():
        merged[key] = (
            merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


def parse_convs(spec: str) -> list[tuple[int, ...]]:
    """The reference's "[(512, 10, 5)] + [(512, 3, 2)] * 4", without executing it."""
    layers: list[tuple[int, ...]] = []
    for part, times in re.findall(r"\[((?:\([^)]*\),?\s*)+)\]\s*(?:\*\s*(\d+))?", spec):
        layers += [tuple(map(int, layer.split(","))) for layer in re.findall(r"\(([^)]*)\)", part)] * int(times or 1)
    return layers


def image_frontend(cfg: dict[str, Any], own: dict[str, Any], state: dict[str, Tensor]) -> Frontend:
    """Patches."""
    return ImageFrontend(
        cfg["embed_dim"], own["input_size"], own["patch_size"], own["in_chans"], own["num_extra_tokens"]
    )


def speech_frontend(cfg: dict[str, Any], own: dict[str, Any], state: dict[str, Tensor]) -> Frontend:
    """Frames of a waveform. Padding leaks into positions, as in the reference."""
    return SpeechFrontend(
        cfg["embed_dim"],
        cfg["num_heads"],
        parse_convs(own["feature_encoder_spec"]),
        own["conv_pos_depth"],
        max(3, own["conv_pos_width"] // own["conv_pos_depth"]),
        own["conv_pos_groups"],
        own["use_alibi_encoder"],
        own["num_extra_tokens"],
        zero_padding=False,
    )


def text_frontend(cfg: dict[str, Any], own: dict[str, Any], state: dict[str, Tensor]) -> Frontend:
    """Tokens of the vocabulary that the case's embedding has."""
    vocabulary = len(state["modality_encoders.TEXT.local_encoder.embed_tokens.weight"])
    return TextFrontend(
        cfg["embed_dim"],
        vocabulary,
        own["max_source_positions"],
        TEXT_PAD_ID,
        drop_rate=0.0,
        num_prefix_tokens=own["num_extra_tokens"],
    )


class Kind(NamedTuple):
    """What differs between modalities: their names, the frontend, the decoder, what the teacher averages."""

    modality: str
    frontend: Callable[[dict[str, Any], dict[str, Any], dict[str, Tensor]], Frontend]
    decoder: type[ConvDecoder]
    teacher_scope: TeacherScope


KINDS = {
    "image": Kind("image", image_frontend, ConvDecoder2d, "encoder"),
    "audio": Kind("speech", speech_frontend, ConvDecoder1d, "context"),
    "text": Kind("text", text_frontend, ConvDecoder1d, "blocks"),
}
TEXT_PAD_ID = 1  # of fairseq's dictionaries


def build_model(cfg: dict[str, Any], batch_size: int, state: dict[str, Tensor]) -> Data2Vec2:
    """The model a reference recipe describes. Its CLS weight depends on the batch: see docs/algorithm.md.

    Args:
        cfg: the recipe.
        batch_size: samples of the case.
        state: the reference's student.
    """
    ((theirs, own),) = cfg["modalities"].items()
    kind, decoder = KINDS[theirs], own["decoder"]
    return Data2Vec2(
        Encoder(
            {kind.modality: kind.frontend(cfg, own, state)},
            cfg["embed_dim"],
            cfg["depth"],
            cfg["num_heads"],
            own["prenet_depth"],
            cfg["mlp_ratio"],
            cfg["layer_norm_first"],
            cfg["norm_eps"],
        ),
        {
            kind.modality: kind.decoder(
                cfg["embed_dim"],
                decoder["decoder_dim"],
                decoder["decoder_layers"],
                decoder["decoder_kernel"],
                decoder["decoder_groups"],
                own["mask_noise_std"],
                residual=decoder.get("decoder_residual", True),
                proj_depth=decoder.get("projection_layers", 1),
                proj_ratio=decoder.get("projection_ratio", 2.0),
            )
        },
        cfg["average_top_k_layers"],
        [n for n in ("instance", "layer") if cfg[f"{n}_norm_target_layer"]],
        [n for n in ("layer", "instance") if cfg[f"{n}_norm_targets"]],
        cfg["end_of_block_targets"],
        cfg["loss_scale"],
        cfg["loss_beta"],
        cfg["cls_loss"] * batch_size * cfg["clone_batch"],
        kind.teacher_scope,
    )


@dataclass
class Case:
    """One golden case: its description, its tensors, and our model with the reference's parameters."""

    name: str
    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    cfg: dict[str, Any]
    model: Data2Vec2
    batch: Batch

    @classmethod
    def load(cls, path: Path) -> Case:
        """Read NAME.json and NAME.safetensors; every parameter must find its place, positions included."""
        spec, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
        base, differences = RECIPES[spec["name"]]
        cfg = merge(merge(base, differences), spec["overrides"])
        student, teacher = group(tensors, "student/"), group(tensors, "teacher/")
        model = build_model(cfg, len(tensors["source"]), student)
        ours = model.state_dict()
        state = to_d2v_state(student, "student")
        # What the teacher does not average, the reference's lacks; a case without a teacher starts from the student.
        state |= {
            f"teacher.{key.removeprefix('student.')}": v for key, v in state.items() if key.startswith("student.")
        }
        averages = to_d2v_state(teacher, "teacher")
        wanted = {f"teacher.{name}" for name, _ in model.teacher.named_parameters() if model.is_averaged(name)}
        if teacher and (missing := wanted - averages.keys()):
            raise KeyError(f"{path.name}: the reference's teacher lacks {sorted(missing)}")
        state |= averages
        # The reference may leave constant positions out of a state dict: ours are computed, and compared when present.
        for key in ours.keys() - state.keys():
            if not key.endswith("positions"):
                raise KeyError(f"{path.name}: the reference has no parameter for {key}")
            state[key] = ours[key]
        model.load_state_dict(state)
        (modality,) = model.student.frontends
        mask = TokenMask.from_bool(tensors["mask"].bool(), cfg["clone_batch"])
        batch = Batch(
            modality,
            tensors["source"],
            torch.arange(len(tensors["source"])),
            mask,
            token_padding(tensors.get("padding_mask"), cfg),
        )
        return cls(path.stem, spec, tensors, cfg, model.train(), batch)


def token_padding(padding_mask: Tensor | None, cfg: dict[str, Any]) -> Tensor | None:
    """The reference's padding of inputs as padding of tokens; None if there is none."""
    if padding_mask is None or not padding_mask.any():
        return None
    audio = cfg["modalities"].get("audio")
    if audio is None:
        return padding_mask.bool()
    convs = parse_convs(audio["feature_encoder_spec"])
    real = [num_frames(int(row.numel() - row.sum()), convs) for row in padding_mask]
    return torch.arange(num_frames(padding_mask.shape[1], convs)) >= torch.tensor(real)[:, None]


def group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose key starts with ``prefix``, which is removed."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def relative_error(ours: Tensor | float, theirs: Tensor | float) -> float:
    """Largest absolute difference over the largest magnitude of ``theirs``; infinite if shapes differ or not finite."""
    a, b = torch.as_tensor(ours, dtype=torch.float64), torch.as_tensor(theirs, dtype=torch.float64)
    if a.shape != b.shape or not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


Check = tuple[str, float, float]  # quantity, relative error, tolerance


class Recorder:
    """Hooks that keep what the model computes on its way: teacher layers, targets, predictions."""

    def __init__(self, model: Data2Vec2, end_of_block: bool) -> None:
        self.layers: list[Tensor] = []
        self.pred = torch.empty(0)
        output = 0 if end_of_block else 1
        self.handles = [
            block.register_forward_hook(lambda _m, _i, out: self.layers.append(out[output].detach()))
            for block in model.teacher.blocks
        ]
        (decoder,) = model.decoders.values()
        self.handles.append(decoder.register_forward_hook(self._keep_pred))

    def _keep_pred(self, _module: torch.nn.Module, _inputs: object, output: Tensor) -> None:
        self.pred = output.detach().flatten(0, 1)

    def remove(self) -> None:
        """Detach the hooks."""
        for handle in self.handles:
            handle.remove()


def check_case(case: Case) -> Iterator[Check]:
    """Every quantity the case holds, ours against theirs."""
    model, tensors, spec = case.model, case.tensors, case.spec
    theirs = group(tensors, "student/")
    positions = [key for key in theirs if key.endswith("positions")]
    for key in positions:
        computed = build_model(case.cfg, 1, theirs).state_dict()[to_d2v_name(key)]
        yield "positions", relative_error(computed, theirs[key].squeeze(0)), FORWARD

    recorder = Recorder(model, case.cfg["end_of_block_targets"])
    out = model(case.batch)
    recorder.remove()
    num_prefix = model.student.frontend(case.batch.modality).num_prefix_tokens
    for i, layer in enumerate(recorder.layers):
        yield f"teacher_layer/{i}", relative_error(layer[:, num_prefix:], tensors[f"teacher_layer/{i}"]), FORWARD
    mask = case.batch.mask
    assert mask is not None
    target = model.targets(case.batch)
    yield "target", relative_error(target, tensors["target"]), FORWARD
    masked_target = target.repeat_interleave(mask.num_masks, 0)[mask.mask]
    yield "target_masked", relative_error(masked_target, tensors["target_masked"]), FORWARD
    yield "pred", relative_error(recorder.pred, tensors["pred"]), FORWARD

    theirs_of = {ours: theirs for theirs, ours in MODALITIES.items()}
    names = {"cls": "cls", "regression": f"{theirs_of[case.batch.modality]}_regression"}
    if {names[term] for term in out.terms} != set(spec["losses"]):
        yield f"loss terms {sorted(spec['losses'])}", float("inf"), FORWARD
    for term, value in out.terms.items():
        yield f"loss/{term}", relative_error(value / out.count, spec["losses"].get(names[term], float("nan"))), FORWARD
    yield "sample_size", relative_error(out.count, float(spec["sample_size"])), 0.0
    yield "masked_fraction", relative_error(mask.mask.double().mean(), spec["masked_pct"]), FORWARD
    yield "target_std", relative_error(out.target_std, spec["target_var"]), FORWARD
    yield "pred_std", relative_error(out.pred_std, spec["pred_var"]), FORWARD

    (out.loss_sum / out.count).backward()
    parameters = dict(model.named_parameters())
    gradients = group(tensors, "grad/")
    for name, gradient in gradients.items():
        ours = parameters[to_d2v_name(name)].grad
        shaped = to_d2v_shape(to_d2v_name(name), gradient)
        yield f"grad/{name}", float("inf") if ours is None else relative_error(ours, shaped), FORWARD
    missing = {k for k, p in parameters.items() if p.grad is not None} - {to_d2v_name(name) for name in gradients}
    yield f"gradients the reference lacks: {len(missing)}", float(len(missing)), 0.0

    yield from check_training(case)


def check_training(case: Case) -> Iterator[Check]:
    """Five steps of plain SGD with one EMA update after each, and what is left then."""
    model, tensors, spec, cfg = case.model, case.tensors, case.spec, case.cfg
    trained = [p for p in model.parameters() if p.requires_grad]
    for step, expected in enumerate(spec["trajectory"]):
        model.zero_grad()
        out = model(case.batch)
        loss = out.loss_sum / out.count
        yield f"trajectory/{step}", relative_error(loss.detach(), expected), TRAINED
        loss.backward()
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=spec["sgd_lr"])
        decay = ema_decay(step + 1, cfg["ema_decay"], cfg["ema_end_decay"], cfg["ema_anneal_end_step"])
        yield f"ema_decay/{step}", relative_error(decay, spec["ema_decay_after_step"][step]), FORWARD
        model.update_teacher(decay)
    state = model.state_dict()
    teacher_after = to_d2v_state(group(tensors, "teacher_after/"), "teacher")
    if not teacher_after:
        yield "teacher_after (none given)", float("inf"), TRAINED
    for name, value in teacher_after.items():
        yield f"teacher_after/{name}", relative_error(state[name], value), TRAINED
    with torch.no_grad():
        features = model.eval().student(case.batch).x
    yield "features_after", relative_error(features, tensors["features_after"]), TRAINED


def main() -> int:
    """Run every case in DIR; 0 if all ran ones agree and at least one ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="folder with NAME.json and NAME.safetensors")
    parser.add_argument("--case", help="run only the case of this name")
    args = parser.parse_args()
    torch.manual_seed(0)
    ran, failed = 0, 0
    for path in sorted(args.dir.glob("*.json")):
        if args.case and path.stem != args.case:
            continue
        name = json.loads(path.read_text()).get("name")
        if name not in RECIPES:
            print(f"{path.stem}: skipped, no model of this project runs the recipe {name!r}")
            continue
        case_failed, checks = 0, 0
        for quantity, error, tolerance in check_case(Case.load(path)):
            ok = error <= tolerance
            checks, case_failed = checks + 1, case_failed + (not ok)
            print(f"{path.stem:16} {quantity:70} {error:9.2e} {'ok' if ok else f'FAILED (over {tolerance:g})'}")
        print(f"{path.stem}: {checks} quantities, {case_failed} out of tolerance\n")
        ran, failed = ran + 1, failed + case_failed
    if ran == 0:
        print(f"no case ran: {args.dir} holds no golden case for a modality of this project")
    else:
        print(f"{ran} cases ran, {failed} quantities out of tolerance")
    return 1 if failed or ran == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
