"""How long a training step takes, in which of its parts, how much of the machine it uses, and how that grows.

    python scripts/bench_step.py image_base speech_base --precision both --json outputs/bench/step.json
    python scripts/bench_step.py image_tiny --sweep masks

Every recipe and precision runs in a process of its own, on inputs of noise with the recipe's own shapes, masks, model
and optimizer. One repetition makes a batch (masks and collation, as a data worker does), takes a whole training step on
it, timed from end to end, and then multiplies the blocks' matrices alone, so that both see the machine in one state.

The step's parts are found without stopping it: the clock is read (on a GPU: an event is recorded) where targets start
and end, where the decoder (data2vec 1.0: the head) starts, and between forward, backward, optimizer and teacher's
update. "student" is all of the forward pass that is neither teacher nor decoder and loss: local features, positions,
blocks.

FLOPs are those of matrix products, convolutions and attention, two for a multiplication and addition; a backward pass
counts twice its forward pass (once where inputs need no gradient), whatever a kernel computes again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

from bench_common import (
    Spread,
    available_cores,
    compose_recipe,
    machine_facts,
    recipes_and_overrides,
    table,
    write_json,
)
from d2v.data.datasets import PretrainCollate, Sample
from d2v.data.sampler import SampleKey
from d2v.data.speech_batches import ClipCollate
from d2v.models.distillation import SelfDistillation
from d2v.nn.frontends.image import ImageFrontend
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.types import Batch

# Samples a batch: about as many tokens for the student in each (1,200 to 2,100) where models are large.
BATCHES = {
    "image_base": 2, "image_large": 2, "image_huge14": 1, "image_tiny": 64, "image_tiny32": 32,
    "speech_base": 1, "speech_large": 1, "speech_tiny": 4,
    "text_base": 1, "text_large": 1, "text_tiny": 32,
    "v1_image_base": 8, "v1_image_tiny32": 32, "v1_speech_base": 4, "v1_text_base": 4,
}  # fmt: skip
SECONDS = {"speech_tiny": 4.0}  # of a clip, where not 10
DEFAULT_RECIPES = ("image_base", "speech_base", "text_base")
STAGES = ("teacher", "student", "decoder", "forward", "backward", "optimizer", "ema")
SWEEPS = ("masks", "batch", "width", "tokens")
WARM_UP_STEPS = 2  # the optimizer's state is made at the end of the first
SQUARE = {"cpu": 2048, "cuda": 8192}  # side of the matrices that show what the device can do


@dataclass(frozen=True)
class Case:
    """What one process measures.

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
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(Case(**json.loads(args.case)))))
        return

    threads = args.threads or int(os.environ.get("OMP_NUM_THREADS", available_cores()))
    recipes, overrides = recipes_and_overrides(args.words, DEFAULT_RECIPES)
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
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads)}  # as d2v sets it
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# --- one case -----------------------------------------------------------------------------------------------------


def measure(case: Case) -> dict[str, Any]:
    """Build the case and measure it; times in seconds, memory in bytes."""
    torch.manual_seed(0)
    run = Run(case)
    memory = Memory(run)
    for epoch in range(WARM_UP_STEPS):
        run.step(run.batch(epoch))
    used = memory.read()
    products = block_products(run, run.batch(WARM_UP_STEPS))

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
    square = square_product(run)
    best_square = min(square.seconds(run.now) for _ in range(3))
    flops = count_flops(run, batch)
    if case.compiled:
        flops["forward"] = sum(flops.pop(stage) for stage in ("teacher", "student", "decoder"))

    total = sum(flops.values())
    gemm_flops = sum(product.flops for product in products.values())
    gemm_times = [sum(parts) for parts in zip(*(times[name] for name in products), strict=True)]
    achieved = Spread(tuple(total / seconds for seconds in times["step"]))
    gemm = Spread(tuple(gemm_flops / seconds for seconds in gemm_times))
    share = Spread(tuple(a / g for a, g in zip(achieved.values, gemm.values, strict=True)))
    return {
        **asdict(case),
        "batch": len(batch.inputs),
        **run.shapes(batch),
        "loss": float(run.loss),
        "seconds": {name: Spread(tuple(times[name])).record() for name in ("data", "step", *STAGES) if name in times},
        "flops": {**flops, "step": total},
        "flops_per_s": achieved.record(),
        "gemm_flops_per_s": gemm.record(),
        "share_of_gemm": share.record(),
        "gemm_by_shape": {
            name: product.flops / Spread(tuple(times[name])).median for name, product in products.items()
        },
        "square_flops_per_s": square.flops / best_square,
        "memory": used,
    }


class Run:
    """A model in training, as ``d2v pretrain`` would train it, without the trainer.

    Args:
        case: what to build.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.device = torch.device(case.device)
        self.cfg = compose_recipe(case.recipe, [*case.overrides, *size_overrides(case)])
        model, self.mask, optim, self.ema = (
            instantiate(self.cfg[key], _convert_="all") for key in ("model", "mask", "optim", "ema")
        )
        assert isinstance(model, SelfDistillation)
        self.model = model.to(self.device).train()
        self.forward: Callable[[Batch], Any] = torch.compile(self.model) if case.compiled else self.model
        (self.modality,) = self.model.student.frontends
        self.optimizer = optim((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
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
        """What the recipe's data would make batches with."""
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
        lap("optimizer")
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = self.cfg.trainer.gradient_clip_val or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # as the trainer does
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
        """What the cost depends on."""
        assert batch.mask is not None
        encoder, sees_all = self.model.student, self.model.predictors_are == "heads"
        tokens, visible = batch.mask.mask.shape[1], batch.mask.ids_keep.shape[1]
        prefix = encoder.frontend(self.modality).num_prefix_tokens
        return {
            "masks": batch.mask.num_masks,
            "tokens": tokens,
            "visible": visible,
            "width": encoder.embed_dim,
            "depth": len(encoder.blocks) + len(encoder.prenets[self.modality]),  # type: ignore[arg-type]  # a ModuleList
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
    """The first word of a recipe's name, after its version."""
    return recipe.removeprefix("v1_").partition("_")[0]


# --- where a step spends its time and its operations ----------------------------------------------------------------


class Laps:
    """Readings of a clock or a counter where a step's parts start.

    Args:
        device: "cpu" or "cuda": events are recorded there, and nothing waits for them.
        read: instead of a clock.
    """

    def __init__(self, device: str = "cpu", read: Callable[[], float] | None = None) -> None:
        self.on_gpu = device == "cuda" and read is None
        self.read: Callable[[], Any] = _recorded_event if self.on_gpu else (read or time.perf_counter)
        self.readings: list[tuple[str, Any]] = []

    def start(self, stage: str) -> None:
        """What follows is part of ``stage``."""
        self.readings.append((stage, self.read()))

    def totals(self) -> dict[str, float]:
        """By stage: seconds, or what was counted."""
        if self.on_gpu:
            torch.cuda.synchronize()
        totals: defaultdict[str, float] = defaultdict(float)
        for (stage, start), (_, end) in pairwise(self.readings):
            totals[stage] += start.elapsed_time(end) / 1000 if self.on_gpu else end - start
        return dict(totals)


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@contextmanager
def stages_of(model: SelfDistillation, modality: str, lap: Callable[[str], None]) -> Iterator[None]:
    """Within, a forward pass says when its teacher and its decoder (with the loss after it) start."""
    targets = model.targets

    def targets_between_laps(*args: Any, **kwargs: Any) -> Tensor:
        lap("teacher")
        result = targets(*args, **kwargs)
        lap("student")
        return result

    model.targets = targets_between_laps  # type: ignore[method-assign]  # hides the method until it is deleted
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
    return {stage: count for stage, count in laps.totals().items() if stage not in ("optimizer", "ema")}


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which (2.14) does not know a CPU's attention, counts a grouped convolution's gradient of its
    weight as if it had no groups, and counts what a kernel of attention computes again."""
    aten = torch.ops.aten
    names = ("flash_attention", "efficient_attention", "cudnn_attention")
    backward = [getattr(aten, f"_scaled_dot_product_{name}_backward") for name in names]
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
            **dict.fromkeys(backward, _attention_backward_flops),
            aten.convolution_backward: _convolution_backward_flops,
        },
    )
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


class _NoModules:
    """Instead of a list of the modules under way, whose hooks fail where a teacher reads what a student computed."""

    parents: ClassVar[set[str]] = {"Global"}

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Logits and weighted sum, of shapes (N, heads, T, D / heads)."""
    return int(sdpa_flop_count(query, key, value))


def _attention_backward_flops(
    _grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Two products for each of the forward pass; the logits, computed again by some kernels, are not counted."""
    return 2 * int(sdpa_flop_count(query, key, value))


def _convolution_backward_flops(
    grad: Sequence[int], inputs: Sequence[int], weight: Sequence[int], *options: Any, **_: Any
) -> int:
    """As many as the forward pass for each of the gradients that are wanted: of the inputs, of the weight.

    Args:
        grad: (N, C_out, ...) shape of the output.
        inputs: (N, C_in, ...).
        weight: (C_out, C_in / groups, ...).
        options: bias' sizes, stride, padding, dilation, transposed, padding of the output, groups, what is wanted.
    """
    return sum(options[7][:2]) * int(conv_flop_count(list(inputs), list(weight), list(grad), options[4]))


# --- what the machine can do ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """A matrix product.

    Attributes:
        flops: of one.
        compute: does it.
    """

    flops: int
    compute: Callable[[], Tensor]

    def seconds(self, now: Callable[[], float], at_least: float = 0.01) -> float:
        """Of one, the mean of as many as take ``at_least`` seconds."""
        start = now()
        self.compute()
        first = now() - start
        count = max(1, min(1000, math.ceil(at_least / max(first, 1e-6))))
        start = now()
        for _ in range(count):
            self.compute()
        return (now() - start) / count


def block_products(run: Run, batch: Batch) -> dict[str, Product]:
    """The products of a student's block on this batch, (tokens, in) x (in, out), with both of their gradients'."""
    shapes, width = run.shapes(batch), run.model.student.embed_dim
    hidden: int = run.model.student.blocks[0].mlp.fc1.out_features  # type: ignore[union-attr, assignment]
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


class Memory:
    """The most memory in use since the model was built.

    On a GPU what PyTorch has allocated; on a CPU what the process has resident, by how much it grew: gradients,
    optimizer state, and activations.

    Args:
        run: built, not yet trained.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.before = torch.cuda.memory_allocated() if self._on_gpu else _resident("VmRSS")
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()

    @property
    def _on_gpu(self) -> bool:
        return self.run.device.type == "cuda"

    def read(self) -> dict[str, int]:
        """In bytes: "before" the first step, "peak", "state" (gradients and the optimizer's), and what else it took."""
        peak = torch.cuda.max_memory_allocated() if self._on_gpu else _resident("VmHWM")
        optimizer = self.run.optimizer
        tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        tensors += [p for group in optimizer.param_groups for p in group["params"]]  # as large as their gradients
        state = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return {"before": self.before, "peak": peak, "growth": peak - self.before, "state": state,
                "activations": peak - self.before - state}  # fmt: skip


def _resident(entry: str) -> int:
    """Bytes of this process: "VmRSS", now, or "VmHWM", at most so far.

    Not ``getrusage`` where the kernel tells these: a process begins with its parent's peak.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))


# --- sweeps ---------------------------------------------------------------------------------------------------------


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
        patch = cfg.model.encoder.frontends.image.patch_size
        return sorted({max(2, round(cfg.data.img_size * factor / patch)) * patch for factor in factors})
    own = cfg.data.block_size if modality == "text" else SECONDS.get(case.recipe, 10.0)
    return [own * factor for factor in factors]


def sweep_table(axis: str, results: Sequence[dict[str, Any]]) -> str:
    """A row for every value; "power" is p where the step's time grew as the value to the p since the row before."""
    stages = [stage for stage in STAGES if stage in results[0]["seconds"]]
    header = [
        axis,
        "step ms",
        "min-max",
        "power",
        *(f"{s} ms" for s in stages),
        "GFLOP",
        "GFLOP/s",
        "of GEMM",
        "grew MB",
    ]
    rows = []
    for i, result in enumerate(results):
        seconds, step = result["seconds"], result["seconds"]["step"]
        rows.append(
            [
                result[axis],
                _ms(step["median"]),
                f"{_ms(step['min'])}-{_ms(step['max'])}",
                f"{_power(axis, results[i - 1], result):.2f}" if i else "",
                *(_ms(seconds[stage]["median"]) for stage in stages),
                f"{result['flops']['step'] / 1e9:.1f}",
                f"{result['flops_per_s']['median'] / 1e9:.0f}",
                f"{result['share_of_gemm']['median']:.0%}",
                f"{result['memory']['growth'] / 1e6:.0f}",
            ]
        )
    return table(header, rows)


def _power(axis: str, before: dict[str, Any], after: dict[str, Any]) -> float:
    growth = after["seconds"]["step"]["median"] / before["seconds"]["step"]["median"]
    return math.log(growth) / math.log(after[axis] / before[axis])


def plot_sweep(axis: str, swept: dict[str, list[dict[str, Any]]], path: Path) -> Path:
    """A panel for every precision: the step and its parts over the value, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(6.2 * len(swept), 4.2), layout="constrained")
    for axes, (precision, results) in zip(figure.subplots(1, len(swept), squeeze=False)[0], swept.items(), strict=True):
        x = [result[axis] for result in results]
        for name in ("step", *(stage for stage in STAGES if stage in results[0]["seconds"])):
            spreads = [result["seconds"][name] for result in results]
            y = [1000 * spread["median"] for spread in spreads]
            bars = [[1000 * abs(s[end] - s["median"]) for s in spreads] for end in ("min", "max")]
            style = {"color": "#333333", "linewidth": 2.2} if name == "step" else {"linewidth": 1.2}
            axes.errorbar(x, y, yerr=bars, marker="o", markersize=3.5, capsize=2, label=name, **style)
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms", title=f"{results[0]['recipe']}, {precision}")
        axes.set_xticks(x)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


# --- tables ---------------------------------------------------------------------------------------------------------


def describe(result: dict[str, Any]) -> str:
    """The case in a line."""
    return (
        f"{result['recipe']}, {result['precision']}{', compiled' if result['compiled'] else ''}: "
        f"{result['batch']} samples x {result['masks']} masks, {result['visible']} of {result['tokens']} tokens "
        f"visible, width {result['width']}, depth {result['depth']}, {result['parameters'] / 1e6:.1f}M parameters"
    )


def stage_table(result: dict[str, Any]) -> str:
    """A row for every part of the step, and what the machine does at best."""
    seconds, flops, gemm = result["seconds"], result["flops"], result["gemm_flops_per_s"]["median"]
    step = seconds["step"]["median"]
    rows = []
    for name in ("step", *(stage for stage in STAGES if stage in seconds), "data"):
        spread = seconds[name]
        row = [name, _ms(spread["median"]), f"{_ms(spread['min'])}-{_ms(spread['max'])}"]
        row += ["" if name == "data" else f"{spread['median'] / step:.1%}"]
        rate = flops.get(name, 0) / spread["median"]
        share = result["share_of_gemm"]["median"] if name == "step" else rate / gemm
        row += [f"{flops[name] / 1e9:.2f}", f"{rate / 1e9:.1f}", f"{share:.0%}"] if rate else ["", "", ""]
        rows.append(row)
    rows.append(["block's products", "", "", "", "", f"{gemm / 1e9:.1f}", "100%"])
    square = result["square_flops_per_s"]
    rows.append(["square product", "", "", "", "", f"{square / 1e9:.1f}", f"{square / gemm:.0%}"])
    memory = {name: f"{count / 1e6:.0f} MB" for name, count in result["memory"].items()}
    return table(["part", "ms", "min-max", "of step", "GFLOP", "GFLOP/s", "of GEMM"], rows) + (
        f"\n\nmemory: {memory['before']} before the first step; grew by {memory['growth']}, {memory['state']} of it "
        f"gradients and optimizer state, {memory['activations']} activations and workspace"
    )


def summary_table(results: Sequence[dict[str, Any]]) -> str:
    """A row for every case."""
    header = ["recipe", "precision", "batch x masks", "step ms", "min-max", "samples/s", "GFLOP", "GFLOP/s", "of GEMM"]
    rows = []
    for result in results:
        step = result["seconds"]["step"]
        rows.append(
            [
                result["recipe"],
                result["precision"],
                f"{result['batch']} x {result['masks']}",
                _ms(step["median"]),
                f"{_ms(step['min'])}-{_ms(step['max'])}",
                f"{result['batch'] / step['median']:.2f}",
                f"{result['flops']['step'] / 1e9:.1f}",
                f"{result['flops_per_s']['median'] / 1e9:.1f}",
                f"{result['share_of_gemm']['median']:.0%}",
            ]
        )
    return table(header, rows)


def _ms(seconds: float) -> str:
    """Milliseconds to three digits or more."""
    ms = 1000 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


if __name__ == "__main__":
    main()
