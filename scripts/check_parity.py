"""Compare d2v with what the authors' code computed: ``python scripts/check_parity.py DIR``.

DIR holds cases as NAME.json (recipe, overrides, losses, trajectory) and NAME.safetensors (parameters, source, mask and
every quantity the reference computed from them). Its checkpoints/ holds files of the reference's trainer, or folders
for Hugging Face, with what the model in them gives (NAME.pt or NAME/, NAME.expected.safetensors). A case runs if the
project has its modality. Prints one line a quantity with the largest error relative to the quantity's largest
magnitude; exits 1 if any is out of tolerance or no case ran.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from d2v.interop.build import build, load_exactly
from d2v.interop.checkpoints import open_checkpoint
from d2v.interop.fairseq.config import PAD_ID
from d2v.interop.fairseq.files import FairseqCheckpoint, save_fairseq
from d2v.interop.fairseq.layouts import model_node, to_d2v_state, to_d2v_teacher
from d2v.interop.fairseq.names import MODALITIES
from d2v.models.data2vec import Data2Vec
from d2v.models.data2vec2 import Data2Vec2
from d2v.nn.encoder import Encoder
from d2v.nn.frontends.base import Frontend
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.objective.schedules import ema_decay
from d2v.types import Batch, TokenMask, num_frames
from front_parity import FRONTS, relative_error
from reference_recipes import LAYOUTS, RECIPES, RECIPES_OF_1, merge

FORWARD, TRAINED = 1e-5, 1e-4  # tolerances: one pass; after five training steps


@dataclass
class Case:
    """One golden case: its description, its tensors, and our model with the reference's parameters.

    Attributes:
        name: of its files.
        spec: NAME.json.
        tensors: NAME.safetensors.
        cfg: the authors' configuration of the model.
        layout: of the authors, which its parameters are named after.
        model: ours.
        batches: the case's samples; several where rows mask different numbers of tokens, which ours do not.
    """

    name: str
    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    cfg: dict[str, Any]
    layout: str
    model: Data2Vec2 | Data2Vec
    batches: list[Batch]

    @property
    def batch(self) -> Batch:
        """The only one."""
        (batch,) = self.batches
        return batch

    @classmethod
    def load(cls, path: Path) -> Case:
        """Read NAME.json and NAME.safetensors; every parameter must find its place, positions included."""
        spec, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
        layout, cfg = configuration(spec)
        student, teacher = group(tensors, "student/"), group(tensors, "teacher/")
        model: Data2Vec2 | Data2Vec = build(model_node(cfg, student, layout, len(tensors["source"])))
        ours = model.state_dict()
        state = to_d2v_state(student, layout)
        # What the teacher does not average, the reference's lacks; a case without a teacher starts from the student.
        state |= {
            f"teacher.{key.removeprefix('student.')}": v for key, v in state.items() if key.startswith("student.")
        }
        averages = to_d2v_teacher(teacher, layout)
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
        return cls(path.stem, spec, tensors, cfg, layout, model.train(), batches_of(tensors, cfg, model))


def configuration(spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Owner of the names of a case's parameters, and the authors' configuration of its model."""
    if "name" in spec:
        base, differences = RECIPES[spec["name"]]
        return LAYOUTS.get(spec["name"], "2.0"), merge(merge(base, differences), spec["overrides"])
    layout, cfg = RECIPES_OF_1[spec["model"]]
    cfg = {**cfg, **spec, **spec.get("overrides", {})}
    ema = spec.get("ema")
    if ema is not None:
        names = {"start": "ema_decay", "end": "ema_end_decay", "anneal_end_step": "ema_anneal_end_step"}
        cfg |= {theirs: ema[name] for name, theirs in names.items()}
    return layout, cfg


def batches_of(tensors: dict[str, Tensor], cfg: dict[str, Any], model: Data2Vec2 | Data2Vec) -> list[Batch]:
    """The case's samples with its masks: one batch, or one a sample where these mask different numbers of tokens."""
    (modality,) = model.student.frontends
    inputs, masks = tensors.get("target_tokens", tensors["source"]), tensors["mask"].bool()
    padding_mask = tensors.get("padding_mask")
    if padding_mask is None and modality == "text":
        padding_mask = inputs == cfg.get("pad", PAD_ID)
    padding = token_padding(padding_mask, model.student.frontend(modality))
    num_masks = cfg.get("clone_batch", 1)
    ids = torch.arange(len(inputs))
    if len(set(masks.sum(1).tolist())) == 1:
        return [Batch(modality, inputs, ids, TokenMask.from_bool(masks, num_masks), padding)]
    return [
        Batch(
            modality,
            inputs[i, None],
            ids[i, None],
            TokenMask.from_bool(masks[i, None]),
            None if padding is None else padding[i, None],
        )
        for i in range(len(inputs))
    ]


def token_padding(padding_mask: Tensor | None, frontend: Frontend) -> Tensor | None:
    """The reference's padding of inputs as padding of tokens; None if there is none."""
    if padding_mask is None or not padding_mask.any():
        return None
    if not isinstance(frontend, SpeechFrontend):
        return padding_mask.bool()
    real = [num_frames(int(row.numel() - row.sum()), frontend.conv_layers) for row in padding_mask]
    return torch.arange(num_frames(padding_mask.shape[1], frontend.conv_layers)) >= torch.tensor(real)[:, None]


def group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors with keys that start with ``prefix``, which is removed."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


Check = tuple[str, float, float]  # quantity, relative error, tolerance


class Recorder:
    """Hooks that keep what the model computes on its way: teacher layers, targets, predictions."""

    def __init__(self, model: Data2Vec2, end_of_block: bool) -> None:
        self.layers: list[Tensor] = []
        self.pred = torch.empty(0)
        output = 0 if end_of_block else 1
        self.handles = [
            block.register_forward_hook(lambda _m, _i, out: self.layers.append(out[output].detach()))
            for block in model.teacher.trunk.units()
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
    if isinstance(model, Data2Vec):
        yield from check_case_of_1(case)
        return
    student = group(tensors, "student/")
    fresh = build(model_node(case.cfg, student, case.layout)).state_dict()
    for key, theirs in to_d2v_state(student, case.layout).items():
        if key.endswith("positions"):
            yield "positions", relative_error(fresh[key], theirs), FORWARD

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

    theirs_of = {"spectrogram": "IMAGE"} | {ours: theirs for theirs, ours in MODALITIES.items()}
    names = {"cls": "cls", "regression": f"{theirs_of[case.batch.modality]}_regression"}
    if {names[term] for term in out.terms} != set(spec["losses"]):
        yield f"loss terms {sorted(spec['losses'])}", float("inf"), FORWARD
    for term, value in out.terms.items():
        yield f"loss/{term}", relative_error(value / out.count, spec["losses"].get(names[term], float("nan"))), FORWARD
    yield "sample_size", relative_error(out.count, float(spec["sample_size"])), 0.0
    yield "masked_fraction", relative_error(mask.mask.double().mean(), spec["masked_pct"]), FORWARD
    yield "target_std", relative_error(out.logged["target_std"], spec["target_var"]), FORWARD
    yield "pred_std", relative_error(out.logged["pred_std"], spec["pred_var"]), FORWARD

    (out.loss_sum / out.count).backward()
    yield from check_gradients(case)
    yield from check_training(case)


def check_case_of_1(case: Case) -> Iterator[Check]:
    """Loss and gradients, and the mask tokens that the reference's source holds."""
    if case.layout == "text":
        masked = case.tensors["target_tokens"].masked_fill(case.tensors["mask"].bool(), case.spec["mask_id"])
        yield "source", relative_error(masked, case.tensors["source"]), 0.0
    loss = mean_loss(case)
    yield "loss", relative_error(loss.detach(), case.spec["loss"]), FORWARD
    loss.backward()
    yield from check_gradients(case)
    yield from check_training(case)


def mean_loss(case: Case) -> Tensor:
    """Over every masked token of the case."""
    outs = [case.model(batch) for batch in case.batches]
    total = outs[0].loss_sum
    for out in outs[1:]:
        total = total + out.loss_sum
    return total / sum(out.count for out in outs)


def check_gradients(case: Case) -> Iterator[Check]:
    """Every gradient of the reference, and that ours are no more."""
    parameters = dict(case.model.named_parameters())
    gradients = to_d2v_state(group(case.tensors, "grad/"), case.layout)
    for name, theirs in gradients.items():
        ours = parameters[name].grad
        yield f"grad/{name}", float("inf") if ours is None else relative_error(ours, theirs), FORWARD
    missing = {name for name, p in parameters.items() if p.grad is not None} - gradients.keys()
    yield f"gradients the reference lacks: {len(missing)}", float(len(missing)), 0.0


def check_training(case: Case) -> Iterator[Check]:
    """Five steps of plain SGD with one EMA update after each, and what is left then."""
    model, tensors, spec, cfg = case.model, case.tensors, case.spec, case.cfg
    trained = [p for p in model.parameters() if p.requires_grad]
    for step, expected in enumerate(spec["trajectory"]):
        model.zero_grad()
        loss = mean_loss(case)
        yield f"trajectory/{step}", relative_error(loss.detach(), expected), TRAINED
        loss.backward()
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=spec["sgd_lr"])
        count = step + (2 if isinstance(model, Data2Vec) else 1)  # 1.0's first one made the teacher
        decay = ema_decay(count, cfg["ema_decay"], cfg["ema_end_decay"], cfg["ema_anneal_end_step"])
        yield f"ema_decay/{step}", relative_error(decay, spec["ema_decay_after_step"][step]), FORWARD
        model.update_teacher(decay)
    state = model.state_dict()
    teacher_after = to_d2v_teacher(group(tensors, "teacher_after/"), case.layout)
    if not teacher_after:
        yield "teacher_after (none given)", float("inf"), TRAINED
    for name, value in teacher_after.items():
        yield f"teacher_after/{name}", relative_error(state[name], value), TRAINED
    if isinstance(model, Data2Vec):
        return
    with torch.no_grad():
        features = model.eval().student(case.batch).x
    yield "features_after", relative_error(features, tensors["features_after"]), TRAINED


def outputs_of(encoder: Encoder, modality: str, inputs: Tensor, head: nn.Module | None = None) -> dict[str, Tensor]:
    """What an encoder makes of inputs, by the names of the golden files."""
    layers: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _m, _i, out: layers.append(out[1])) for block in encoder.trunk.units()
    ]
    with torch.no_grad():
        out = encoder(Batch(modality, inputs, torch.arange(len(inputs))), return_layers=True)
        logits = {} if head is None else {"logits": head(out)}
    for handle in handles:
        handle.remove()
    pooled = {"mean": out.patch_tokens.mean(1)} | ({"cls": out.cls_token} if out.num_prefix_tokens else {})
    hidden = {f"hidden/{i}": x for i, x in enumerate(out.hidden_states)}
    return {"features": out.x, **pooled, **hidden, **{f"layer/{i}": x for i, x in enumerate(layers)}, **logits}


def by_input(expected: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors that belong to each input, by what follows "source" in its key; their keys are without it."""
    suffixes = sorted((key.removeprefix("source") for key in expected if key.startswith("source")), key=len)
    groups: dict[str, dict[str, Tensor]] = {suffix: {} for suffix in suffixes}
    for key, value in expected.items():
        name, slash, number = key.partition("/")
        suffix = next(suffix for suffix in reversed(suffixes) if name.endswith(suffix))  # the longest that fits
        groups[suffix][f"{name.removesuffix(suffix)}{slash}{number}"] = value
    return groups


def check_outputs(path: Path) -> Iterator[Check]:
    """All that a checkpoint's encoder and head are expected to give for every input beside it."""
    trained = open_checkpoint(path)
    (modality,) = trained.encoder.frontends
    for suffix, wanted in by_input(load_file(path.with_suffix(".expected.safetensors"))).items():
        inputs = wanted.pop("source")
        ours = outputs_of(trained.encoder, modality, inputs, trained.head)
        if "teacher_features" in wanted:
            teacher = open_checkpoint(path, "teacher").encoder
            ours["teacher_features"] = outputs_of(teacher, modality, inputs)["features"]
        for key, theirs in wanted.items():
            name, slash, number = key.partition("/")
            yield f"{name}{suffix}{slash}{number}", relative_error(ours[key], theirs), FORWARD
        kinds = [kind for kind in ("layer/", "hidden/") if group(wanted, kind)]
        lacking = [kind for kind in kinds if len(group(ours, kind)) != len(group(wanted, kind))]
        yield "layers that the encoder lacks", float(len(lacking)), 0.0


def check_checkpoint(path: Path) -> Iterator[Check]:
    """What a file of the authors' trainer gives, and that writing gives the file back."""
    yield from check_outputs(path)
    checkpoint = FairseqCheckpoint.load(path)
    node = checkpoint.model_node()
    model = build(node)
    load_exactly(model, checkpoint.model_state())
    with tempfile.TemporaryDirectory() as folder:
        again = FairseqCheckpoint.load(save_fairseq(model, node, Path(folder) / "again.pt", checkpoint.task))
        for name, theirs, ours in (
            ("student", checkpoint.student, again.student),
            ("teacher", checkpoint.teacher, again.teacher),
        ):
            same = theirs.keys() == ours.keys() and all(torch.equal(theirs[k].float(), ours[k]) for k in theirs)
            yield f"round trip of the {name}", 0.0 if same else float("inf"), 0.0


def main() -> int:
    """Run every case in DIR; 0 if all ran ones agree and at least one ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="folder with NAME.json and NAME.safetensors")
    parser.add_argument("--case", help="run only the case of this name")
    args = parser.parse_args()
    torch.manual_seed(0)
    ran, failed = 0, 0
    stems = [path.name.removesuffix(".expected.safetensors") for path in args.dir.glob("checkpoints/*.safetensors")]
    files = [args.dir / "checkpoints" / f"{stem}.pt" for stem in stems]
    checkpoints = sorted(path if path.is_file() else path.with_suffix("") for path in files)
    for path in [*sorted(args.dir.glob("*.json")), *checkpoints]:
        name = path.stem if path.suffix == ".json" else f"checkpoints/{path.stem}"
        if args.case and name != args.case:
            continue
        if path.suffix == ".json":
            spec = json.loads(path.read_text())
            recipe = spec.get("name", spec.get("model"))
            if recipe not in RECIPES and recipe not in RECIPES_OF_1 and recipe not in FRONTS:
                print(f"{name}: skipped, no model of this project runs the recipe {recipe!r}")
                continue
        case_failed, checks = 0, 0
        if path in checkpoints:
            found = check_checkpoint(path) if path.suffix else check_outputs(path)
        elif recipe in FRONTS:
            found = FRONTS[recipe](spec, load_file(path.with_suffix(".safetensors")))
        else:
            found = check_case(Case.load(path))
        for quantity, error, tolerance in found:
            ok = error <= tolerance
            checks, case_failed = checks + 1, case_failed + (not ok)
            print(f"{name:16} {quantity:70} {error:9.2e} {'ok' if ok else f'FAILED (over {tolerance:g})'}")
        print(f"{name}: {checks} quantities, {case_failed} out of tolerance\n")
        ran, failed = ran + 1, failed + case_failed
    if ran == 0:
        print(f"no case ran: {args.dir} holds no golden case for a modality of this project")
    else:
        print(f"{ran} cases ran, {failed} quantities out of tolerance")
    return 1 if failed or ran == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
