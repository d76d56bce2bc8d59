"""Compare d2v with what the authors' code computed: ``python scripts/check_parity.py DIR``.

DIR holds cases as NAME.json (recipe, overrides, losses, trajectory) and NAME.safetensors (parameters, source, mask and
every quantity the reference computed from them). A case runs if the project has its modality. Prints one line a
quantity with the largest error relative to the quantity's largest magnitude; exits 1 if any is out of tolerance or no
case ran.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from d2v.interop.fairseq import to_d2v_name, to_d2v_state
from d2v.models.data2vec2 import Data2Vec2
from d2v.nn.decoders import ConvDecoder2d
from d2v.nn.encoder import Encoder
from d2v.nn.frontends.image import ImageFrontend
from d2v.objective.schedules import ema_decay
from d2v.objective.teacher import make_teacher
from d2v.types import Batch, TokenMask

FORWARD, TRAINED = 1e-5, 1e-4  # tolerances: one pass; after five training steps

# What the reference's recipe and the defaults of its code say where a case's overrides are silent.
IMAGE_RECIPE: dict[str, Any] = {
    "embed_dim": 768,
    "num_heads": 12,
    "depth": 10,
    "mlp_ratio": 4.0,
    "norm_eps": 1e-6,
    "layer_norm_first": False,
    "average_top_k_layers": 10,
    "clone_batch": 16,
    "ema_decay": 0.9998,
    "ema_end_decay": 0.99999,
    "ema_anneal_end_step": 100_000,
    "instance_norm_target_layer": True,
    "layer_norm_target_layer": False,
    "layer_norm_targets": True,
    "instance_norm_targets": False,
    "end_of_block_targets": False,
    "loss_beta": 0.0,
    "loss_scale": None,
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
# Larger released recipes, as differences from the base; golden cases name the recipe they started from.
RECIPES: dict[str, dict[str, Any]] = {
    "base_images_only_task": {},
    "large_images_only_task": {
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
    },
    "huge_images14_only_task": {
        "depth": 32,
        "embed_dim": 1280,
        "num_heads": 16,
        "average_top_k_layers": 24,
        "ema_end_decay": 1.0,
        "ema_anneal_end_step": 300_000,
        "modalities": {
            "image": {
                "patch_size": 14,
                "prenet_depth": 0,
                "decoder": {"decoder_dim": 1024, "decoder_kernel": 5, "decoder_layers": 3},
            }
        },
    },
}


def merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``overrides`` laid over it, recursively."""
    merged = dict(base)
    for key, value in overrides.items():
        merged[key] = (
            merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


def build_image_model(cfg: dict[str, Any], batch_size: int) -> Data2Vec2:
    """The model a reference image recipe describes. Its CLS weight depends on the batch: see docs/algorithm.md."""
    image = cfg["modalities"]["image"]
    decoder = image["decoder"]
    frontend = ImageFrontend(
        cfg["embed_dim"], image["input_size"], image["patch_size"], image["in_chans"], image["num_extra_tokens"]
    )
    layer_norms = [n for n in ("instance", "layer") if cfg[f"{n}_norm_target_layer"]]
    target_norms = [n for n in ("layer", "instance") if cfg[f"{n}_norm_targets"]]
    return Data2Vec2(
        Encoder(
            {"image": frontend},
            cfg["embed_dim"],
            cfg["depth"],
            cfg["num_heads"],
            image["prenet_depth"],
            cfg["mlp_ratio"],
            cfg["layer_norm_first"],
            cfg["norm_eps"],
        ),
        {
            "image": ConvDecoder2d(
                cfg["embed_dim"],
                decoder["decoder_dim"],
                decoder["decoder_layers"],
                decoder["decoder_kernel"],
                decoder["decoder_groups"],
                image["mask_noise_std"],
            )
        },
        cfg["average_top_k_layers"],
        layer_norms,
        target_norms,
        cfg["end_of_block_targets"],
        cfg["loss_scale"],
        cfg["loss_beta"],
        cfg["cls_loss"] * batch_size * cfg["clone_batch"],
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
        cfg = merge(merge(IMAGE_RECIPE, RECIPES[spec["name"]]), spec["overrides"])
        model = build_image_model(cfg, batch_size=len(tensors["source"]))
        ours = model.state_dict()
        state = to_d2v_state(group(tensors, "student/"), "student")
        if "teacher" in {key.split("/")[0] for key in tensors}:
            state |= to_d2v_state(group(tensors, "teacher/"), "teacher")
        else:
            teacher = make_teacher(model.student).state_dict()
            state |= {f"teacher.{key}": state.get(f"student.{key}", value) for key, value in teacher.items()}
        # The reference may leave constant positions out of a state dict: ours are computed, and compared when present.
        for key in ours.keys() - state.keys():
            if not key.endswith("positions"):
                raise KeyError(f"{path.name}: the reference has no parameter for {key}")
            state[key] = ours[key]
        model.load_state_dict(state)
        mask = TokenMask.from_bool(tensors["mask"].bool(), cfg["clone_batch"])
        batch = Batch("image", tensors["source"], torch.arange(len(tensors["source"])), mask)
        return cls(path.stem, spec, tensors, cfg, model.train(), batch)


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
        self.handles.append(model.decoders["image"].register_forward_hook(self._keep_pred))

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
        computed = build_image_model(case.cfg, 1).state_dict()[to_d2v_name(key)]
        yield "positions", relative_error(computed, theirs[key].squeeze(0)), FORWARD

    recorder = Recorder(model, case.cfg["end_of_block_targets"])
    out = model(case.batch)
    recorder.remove()
    num_prefix = model.student.frontend("image").num_prefix_tokens
    for i, layer in enumerate(recorder.layers):
        yield f"teacher_layer/{i}", relative_error(layer[:, num_prefix:], tensors[f"teacher_layer/{i}"]), FORWARD
    mask = case.batch.mask
    assert mask is not None
    target = model.targets(case.batch)
    yield "target", relative_error(target, tensors["target"]), FORWARD
    masked_target = target.repeat_interleave(mask.num_masks, 0)[mask.mask]
    yield "target_masked", relative_error(masked_target, tensors["target_masked"]), FORWARD
    yield "pred", relative_error(recorder.pred, tensors["pred"]), FORWARD

    names = {"cls": "cls", "regression": "IMAGE_regression"}
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
        shaped = gradient.squeeze(0) if name.endswith("extra_tokens") else gradient
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
