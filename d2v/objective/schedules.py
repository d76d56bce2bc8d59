"""Schedules as pure functions of the optimizer step, so that resuming needs no state."""

from __future__ import annotations

import math


def ema_decay(step: int, decay_start: float, decay_end: float, anneal_steps: int) -> float:
    """The teacher's decay after ``step`` optimizer steps: linear from ``decay_start`` to ``decay_end``.

    Args:
        step: optimizer steps done, counting the one the teacher is being updated for (the first update has step 1).
        decay_start: decay at step 0.
        decay_end: decay from ``anneal_steps`` on; 1 freezes the teacher.
        anneal_steps: optimizer steps; 0 means ``decay_end`` from the start.
    """
    if step >= anneal_steps:
        return decay_end
    return decay_start + (decay_end - decay_start) * step / anneal_steps


def warmup_cosine(step: int, warmup_steps: int, max_steps: int, min_factor: float = 0.0) -> float:
    """Factor on the peak learning rate of update ``step`` (0-based): linear from 0, then half a cosine.

    Args:
        step: optimizer steps done before this update.
        warmup_steps: optimizer steps of linear warm-up.
        max_steps: optimizer steps of the whole run; constant at ``min_factor`` afterwards.
        min_factor: where the cosine ends, as a share of the peak.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return min_factor + (1.0 - min_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))
