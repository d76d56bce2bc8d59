"""Instruments of the benchmark of a step: a counter of operations, products to compare with, memory in use."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count


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


def resident_memory(entry: str) -> int:
    """Bytes of this process: "VmRSS", now, or "VmHWM", at most so far.

    Not ``getrusage`` where the kernel tells these: a process begins with its parent's peak.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))


class Memory:
    """The most memory in use since the model was built.

    On a GPU what PyTorch has allocated; on a CPU what the process has resident, by how much it grew: gradients,
    optimizer state, and activations.

    Args:
        device: where the model is, built and not yet trained.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = torch.cuda.memory_allocated() if self._on_gpu else resident_memory("VmRSS")
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def read(self, optimizer: Optimizer) -> dict[str, int]:
        """In bytes: "before" the first step, "peak", "state" (gradients and the optimizer's), and what else it took."""
        peak = torch.cuda.max_memory_allocated() if self._on_gpu else resident_memory("VmHWM")
        tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        tensors += [p for group in optimizer.param_groups for p in group["params"]]  # as large as their gradients
        state = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return {"before": self.before, "peak": peak, "growth": peak - self.before, "state": state,
                "activations": peak - self.before - state}  # fmt: skip


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
        """Begin the part ``stage``."""
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
