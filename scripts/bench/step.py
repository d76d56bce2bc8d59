"""Time of a training step and of its parts, the share of the machine it uses, and its growth.

    python scripts/bench/step.py image_base speech_base --precision both --json outputs/bench/step.json
    python scripts/bench/step.py image_tiny --sweep masks

Every recipe and precision runs in a process of its own, on inputs of noise with the recipe's own shapes, masks, model
and optimizer. One repetition makes a batch (masks and collation, as a data worker does), takes a whole training step on
it, timed from end to end, and then multiplies the blocks' matrices alone, so that both see the machine in one state.

The step's parts are found without stopping it: the clock is read (on a GPU: an event is recorded) where targets start
and end, where the decoder (data2vec 1.0: the head) starts, and between forward, backward, clipping, optimizer and
teacher's update. "student" is all of the forward pass that is neither teacher nor decoder and loss: local features,
positions, blocks.

FLOPs are those of matrix products, convolutions and attention, two for a multiplication and addition; a backward pass
counts twice its forward pass (once where inputs need no gradient), whatever a kernel computes again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    Spread,
    available_cores,
    compose_recipe,
    explained,
    machine_facts,
    recipes_and_overrides,
    write_json,
)
from counts import Laps, Memory, Product, flop_counter
from tables import STAGES, describe, plot_sweep, stage_table, summary_table, sweep_table
from torch import Tensor

from d2v.cli.settings import built
from d2v.data.datasets import PretrainCollate
from d2v.data.keys import SampleKey
from d2v.data.source import Sample
from d2v.data.speech.batches import ClipCollate
from d2v.lit.machine import keep_freed_memory
from d2v.models.masked import MaskedModel
from d2v.nn.frontends.image import ImageFrontend
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.nn.trunk import checkpoint_activations
from d2v.types import Batch

# Samples a batch: about as many tokens for the student in each (1,200 to 2,100) where models are large.
BATCHES = {
    "image_base": 2, "image_large": 2, "image_huge14": 1, "image_tiny": 64, "image_tiny32": 32,
    "speech_base": 1, "speech_large": 1, "speech_tiny": 4,
    "text_base": 1, "text_large": 1, "text_tiny": 32,
    "v1_image_base": 8, "v1_image_tiny32": 32, "v1_speech_base": 4, "v1_text_base": 4,
    "mae_image_tiny32": 32,
}  # fmt: skip
SECONDS = {"speech_tiny": 4.0}  # of a clip, where not 10
DEFAULT_RECIPES = ("image_base", "speech_base", "text_base")
# What may be overridden; precision, batch and compilation have options.
MEASURED = ("model", "mask", "optim", "ema", "data", "trainer.gradient_clip_val", "activation_checkpointing")
SWEEPS = ("masks", "batch", "width", "tokens")
WARM_UP_STEPS = 2  # the optimizer's state is made at the end of the first
SQUARE = {"cpu": 2048, "cuda": 8192}  # side of the matrices that show what the device can do


@dataclass(frozen=True)
class Case:
    """Measurements of one process.

    Attributes:
        recipe: name of an experiment.
        precision: "32-true" or "bf16-mixed".
        batch: samples; None for the recipe's in ``BATCHES``.
        size: of a sample: pixels of an image's side, seconds of a clip, tokens of a text; None for the recipe's.
        overrides: of the configuration.
        steps: repetitions.
        device: "cpu" or "cuda".
        compiled: whether the model goes through ``torch.compile``.
    """

    recipe: str
    precision: str = "32-true"
    batch: int | None = None
    size: float | None = None
    overrides: list[str] = field(default_factory=list)
    steps: int = 5
    device: str = "cpu"
    compiled: bool = False


def main() -> None:
    """Measure what the command line asks for, or, within a process of its own, one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="RECIPE|KEY=VALUE", help="experiments, overrides of all of them")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed", "both"), default="32-true")
    parser.add_argument("--batch", type=int, help="samples a batch; the recipe's own in this file if not given")
    parser.add_argument("--masks", type=int, help="masks a sample; the recipe's if not given")
    parser.add_argument("--size", type=float, help="pixels of an image's side, seconds of a clip, tokens of a text")
    parser.add_argument("--steps", type=int, default=5, help="repetitions")
    parser.add_argument("--threads", type=int, help="on a CPU; OMP_NUM_THREADS, or one a core, if not given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="with torch.compile: the forward pass is one part")
    parser.add_argument("--sweep", choices=SWEEPS, help="how the step grows, on the first recipe")
    parser.add_argument("--values", type=float, nargs="+", help="of the sweep (tokens: sizes, as for --size)")
    parser.add_argument("--plot", type=Path, help="the sweep's picture; outputs/bench/RECIPE_SWEEP.png if not given")
    parser.add_argument("--json", type=Path, help="where everything measured goes")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if args.case:
        with explained():
            print(json.dumps(measure(Case(**json.loads(args.case)))))
        return

    if args.size is not None and args.size <= 0:
        parser.error(f"--size {args.size:g}: more than 0")
    for name in ("batch", "masks", "steps", "threads"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name} {value:g}: at least 1")
    values = args.values or []
    if len(set(values)) < len(values) or (args.sweep != "tokens" and any(value % 1 for value in values)):
        parser.error(f"--values {' '.join(f'{value:g}' for value in values)}: whole numbers, each of them once")
    threads = args.threads or int(os.environ.get("OMP_NUM_THREADS", available_cores()))
    recipes, overrides = recipes_and_overrides(args.words, DEFAULT_RECIPES)
    if ignored := [word for word in overrides if not word.lstrip("+~").startswith(MEASURED)]:
        parser.error(f"{' '.join(ignored)}: changes nothing here; overrides may be of {', '.join(MEASURED)}")
    overrides += [] if args.masks is None else [f"mask.num_masks={args.masks}"]
    precisions = ("32-true", "bf16-mixed") if args.precision == "both" else (args.precision,)
    cases = [
        Case(recipe, precision, args.batch, args.size, overrides, args.steps, args.device, args.compile)
        for recipe in (recipes[:1] if args.sweep else recipes)
        for precision in precisions
    ]
    results: list[dict[str, Any]] = []
    if args.sweep:
        swept = {case.precision: sweep(case, args.sweep, args.values, threads) for case in cases}
        for precision, of_precision in swept.items():
            print(f"\n{cases[0].recipe}, {precision}\n\n{sweep_table(args.sweep, of_precision)}")
        plot = args.plot or Path("outputs/bench") / f"{cases[0].recipe}_{args.sweep}.png"
        print(f"\ndrawn: {plot_sweep(args.sweep, swept, plot)}")
        results = [result for of_precision in swept.values() for result in of_precision]
    else:
        for case in cases:
            results.append(result := in_own_process(case, threads))
            print(f"\n{describe(result)}\n\n{stage_table(result)}", flush=True)
        print(f"\n{summary_table(results)}")
    if args.json:
        content = {"machine": machine_facts(threads), "command": sys.argv, "sweep": args.sweep, "results": results}
        write_json(args.json, content)


def in_own_process(case: Case, threads: int) -> dict[str, Any]:
    """:func:`measure` in a fresh process: its peak of memory is the case's own."""
    environment = {**os.environ, **case_environment(threads)}
    done = subprocess.run(case_command(case), env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:  # it has said why
        raise SystemExit(done.returncode)
    return case_result(done.stdout)


def case_command(case: Case) -> list[str]:
    """Words of the command that measures a case."""
    return [sys.executable, __file__, "--case", json.dumps(asdict(case))]


def case_environment(threads: int) -> dict[str, str]:
    """Variables that the command needs, as d2v sets them."""
    return {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"), "OMP_NUM_THREADS": str(threads)}


def case_result(output: str) -> dict[str, Any]:
    """The result of :func:`measure` from what the command printed."""
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def measure(case: Case) -> dict[str, Any]:
    """Build the case and measure it; times in seconds, memory in bytes."""
    torch.manual_seed(0)
    if case.device == "cpu":
        keep_freed_memory()
    run = Run(case)
    memory = Memory(run.device)
    for epoch in range(WARM_UP_STEPS):
        run.step(run.batch(epoch))
    used = memory.read(run.optimizer)
    products, square = block_products(run, run.batch(WARM_UP_STEPS)), square_product(run)

    times: defaultdict[str, list[float]] = defaultdict(list)
    for repetition in range(case.steps):
        start = run.now()
        batch = run.batch(WARM_UP_STEPS + 1 + repetition)
        times["data"].append(run.now() - start)
        laps = Laps(case.device)
        start = run.now()
        run.step(batch, laps)
        times["step"].append(run.now() - start)
        for stage, seconds in laps.totals().items():
            times[stage].append(seconds)
        for name, product in products.items():
            times[name].append(product.seconds(run.now))
        times["square"].append(square.seconds(run.now))
    flops = count_flops(run, batch)
    if case.compiled:
        flops["forward"] = sum(flops.pop(stage) for stage in ("teacher", "student", "decoder"))

    total = sum(flops.values())
    gemm_flops = sum(product.flops for product in products.values())
    gemm_times = [sum(parts) for parts in zip(*(times[name] for name in products), strict=True)]
    achieved = Spread(tuple(total / seconds for seconds in times["step"]))
    gemm = Spread(tuple(gemm_flops / seconds for seconds in gemm_times))
    peak = Spread(tuple(square.flops / seconds for seconds in times["square"]))
    return {
        **asdict(case),
        "batch": len(batch.inputs),
        "inputs": list(batch.inputs.shape),
        **run.shapes(batch),
        "loss": float(run.loss),
        "seconds": {name: Spread(tuple(times[name])).record() for name in ("data", "step", *STAGES) if name in times},
        "flops": {**flops, "step": total},
        "flops_per_s": achieved.record(),
        "gemm_flops_per_s": gemm.record(),
        "share_of_gemm": share(achieved, gemm).record(),
        "share_of_square": share(achieved, peak).record(),
        "gemm_by_shape": {
            name: product.flops / Spread(tuple(times[name])).median for name, product in products.items()
        },
        "square_flops_per_s": peak.record(),
        "memory": used,
    }


def share(achieved: Spread, possible: Spread) -> Spread:
    """One rate over another, repetition by repetition."""
    return Spread(tuple(a / p for a, p in zip(achieved.values, possible.values, strict=True)))


class Run:
    """A model in training, as ``d2v pretrain`` would train it, without the trainer.

    Args:
        case: what to build.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.device = torch.device(case.device)
        self.cfg = compose_recipe(case.recipe, [*case.overrides, *size_overrides(case)])
        model, self.mask, optim, self.ema = (built(self.cfg, key) for key in ("model", "mask", "optim", "ema"))
        assert isinstance(model, MaskedModel)
        self.model = model.to(self.device).train()
        if self.cfg.activation_checkpointing:
            checkpoint_activations(self.model)
        self.forward: Callable[[Batch], Any] = torch.compile(self.model) if case.compiled else self.model
        (self.modality,) = self.model.student.frontends
        self.optimizer = optim(self.model)
        for group in self.optimizer.param_groups:
            group["lr"] *= 1e-3  # as early in the warm-up: what is learned from noise must not overflow
        self.samples = [Sample(x, SampleKey(0, i)) for i, x in enumerate(self._noise())]
        self.collate = self._collate()
        self.loss = torch.tensor(math.nan)
        self.compiled = case.compiled

    def _noise(self) -> Tensor:
        """(B, ...) inputs of the recipe's shape."""
        frontend, count = self.model.student.frontend(self.modality), self.case.batch or BATCHES[self.case.recipe]
        if isinstance(frontend, SpeechFrontend):
            seconds = self.case.size or SECONDS.get(self.case.recipe, 10.0)
            return torch.randn(count, int(seconds * self.cfg.data.sample_rate))
        if isinstance(frontend, ImageFrontend):
            return torch.randn(frontend.example(count).shape)
        data = self.cfg.data
        return torch.randint(4, data.vocab_size, (count, data.block_size))  # ids below 4 stand for no text

    def _collate(self) -> PretrainCollate:
        """Parts with which the recipe's data would make batches."""
        frontend = self.model.student.frontend(self.modality)
        grid = frontend.token_grid(torch.stack([self.samples[0].inputs]))  # type: ignore[list-item]  # it was made above
        self.mask.validate(grid)
        if isinstance(frontend, SpeechFrontend):
            return ClipCollate(self.modality, self.mask, grid, 0, frontend.conv_layers)
        return PretrainCollate(self.modality, self.mask, grid, 0)

    def batch(self, epoch: int) -> Batch:
        """The samples with this epoch's masks, on the device."""
        batch = self.collate([sample._replace(key=SampleKey(epoch, sample.key.index)) for sample in self.samples])
        return batch.to(self.device)

    def step(self, batch: Batch, laps: Laps | None = None) -> None:
        """Forward, backward, the optimizer's step and the teacher's."""
        lap = (lambda stage: None) if laps is None else laps.start
        lap("forward" if self.compiled else "student")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.precision == "bf16-mixed"):
            if laps is None or self.compiled:
                out = self.forward(batch)
            else:
                with stages_of(self.model, self.modality, lap):
                    out = self.forward(batch)
            loss = out.loss_sum / out.count
        lap("backward")
        loss.backward()
        lap("clipping")
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = self.cfg.trainer.gradient_clip_val or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # as the trainer does
        lap("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad()
        lap("ema")
        self.model.update_teacher(self.ema(1))
        lap("end")
        self.loss = loss.detach()

    def now(self) -> float:
        """Seconds, once the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def shapes(self, batch: Batch) -> dict[str, int]:
        """Facts that the cost depends on."""
        assert batch.mask is not None
        encoder, sees_all = self.model.student, self.model.predictors_are == "heads"
        tokens, visible = batch.mask.mask.shape[1], batch.mask.ids_keep.shape[1]
        prefix = encoder.frontend(self.modality).num_prefix_tokens
        return {
            "masks": batch.mask.num_masks,
            "tokens": tokens,
            "visible": visible,
            "width": encoder.embed_dim,
            "depth": encoder.depth,
            "student_tokens": len(batch.mask.mask) * (prefix + (tokens if sees_all else visible)),
            "teacher_tokens": len(batch.inputs) * (prefix + tokens),
            "parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
        }


def size_overrides(case: Case) -> list[str]:
    """Overrides that make samples of ``case.size``; a clip's length is no part of the configuration."""
    if case.size is None:
        return []
    modality = modality_of(case.recipe)
    return {"image": [f"data.img_size={case.size:.0f}"], "text": [f"data.block_size={case.size:.0f}"]}.get(modality, [])


def modality_of(recipe: str) -> str:
    """The first word of a recipe's name, after that of its algorithm."""
    return recipe.removeprefix("v1_").removeprefix("mae_").partition("_")[0]


@contextmanager
def stages_of(model: MaskedModel, modality: str, lap: Callable[[str], None]) -> Iterator[None]:
    """Within, a forward pass says when its teacher and its decoder (with the loss after it) start."""
    targets: Callable[..., Tensor] = model.targets  # type: ignore[assignment]  # every algorithm has it

    def targets_between_laps(*args: Any, **kwargs: Any) -> Tensor:
        lap("teacher")
        result = targets(*args, **kwargs)
        lap("student")
        return result

    model.targets = targets_between_laps  # type: ignore[assignment]  # hides the method until it is deleted
    hook = model.predictors[modality].register_forward_pre_hook(lambda *_: lap("decoder"))
    try:
        yield
    finally:
        hook.remove()
        del model.targets


def count_flops(run: Run, batch: Batch) -> dict[str, float]:
    """FLOPs of a step by stage. From then on the run is no compiled one, whose kernels could not be counted."""
    run.forward, run.compiled = run.model, False
    with flop_counter() as counter:
        laps = Laps(read=counter.get_total_flops)
        run.step(batch, laps)
    return {stage: count for stage, count in laps.totals().items() if stage not in ("clipping", "optimizer", "ema")}


def block_products(run: Run, batch: Batch) -> dict[str, Product]:
    """The products of a student's block on this batch, (tokens, in) x (in, out), with both of their gradients'."""
    shapes, width = run.shapes(batch), run.model.student.embed_dim
    hidden: int = run.model.student.get_submodule("trunk.blocks.0.mlp.fc1").out_features  # type: ignore[assignment]
    linears = {"qkv": (width, 3 * width), "proj": (width, width), "fc1": (width, hidden), "fc2": (hidden, width)}
    products = {}
    for name, (fan_in, fan_out) in linears.items():
        for kind, product in linear_products(run, shapes["student_tokens"], fan_in, fan_out).items():
            products[f"{name} {kind}"] = product
    return products


def linear_products(run: Run, tokens: int, fan_in: int, fan_out: int) -> dict[str, Product]:
    """A linear layer's output and gradients, on matrices of the dtype that autocast would give them."""
    dtype = torch.bfloat16 if run.case.precision == "bf16-mixed" else torch.float32
    x, y, weight, bias = (
        torch.randn(*shape, device=run.device, dtype=dtype)
        for shape in ((tokens, fan_in), (tokens, fan_out), (fan_out, fan_in), (fan_out,))
    )
    computed: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: F.linear(x, weight, bias),
        "grad_input": lambda: y @ weight,
        "grad_weight": lambda: y.t() @ x,
    }
    return {kind: Product(2 * tokens * fan_in * fan_out, compute) for kind, compute in computed.items()}


def square_product(run: Run) -> Product:
    """A product large enough to show what the device can do at best."""
    side = SQUARE[run.device.type]
    return linear_products(run, side, side, side)["grad_input"]


def sweep(case: Case, axis: str, values: Sequence[float] | None, threads: int) -> list[dict[str, Any]]:
    """The case at several values of one of its sizes."""
    results = []
    for value in values or sweep_values(case, axis):
        results.append(in_own_process(at(case, axis, value), threads))
        print(f"{describe(results[-1])}: {1000 * results[-1]['seconds']['step']['median']:.1f} ms", flush=True)
    return results


def at(case: Case, axis: str, value: float) -> Case:
    """The case at one value; a wider model has more heads of the same size."""
    if axis == "batch":
        return replace(case, batch=int(value))
    if axis == "tokens":
        return replace(case, size=value)
    if axis == "masks":
        return replace(case, overrides=[*case.overrides, f"mask.num_masks={value:.0f}"])
    encoder = compose_recipe(case.recipe, case.overrides).model.encoder
    heads = max(1, round(value * encoder.num_heads / encoder.embed_dim))
    wider = [f"model.encoder.embed_dim={value:.0f}", f"model.encoder.num_heads={heads}"]
    return replace(case, overrides=[*case.overrides, *wider])


def sweep_values(case: Case, axis: str) -> list[float]:
    """Around the recipe's own."""
    cfg = compose_recipe(case.recipe, case.overrides)
    if axis == "masks":
        return [1, 2, 4, 8, 16]
    if axis == "batch":
        return [(case.batch or BATCHES[case.recipe]) * factor for factor in (1, 2, 4)]
    if axis == "width":
        return [cfg.model.encoder.embed_dim // divisor for divisor in (4, 2, 1)]
    modality, factors = modality_of(case.recipe), (0.5, 1, 1.5, 2)
    if modality == "image":
        patch = cfg.data.patch_size
        return sorted({max(2, round(cfg.data.img_size * factor / patch)) * patch for factor in factors})
    own = cfg.data.block_size if modality == "text" else SECONDS.get(case.recipe, 10.0)
    return [own * factor for factor in factors]


if __name__ == "__main__":
    main()
