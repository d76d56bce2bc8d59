"""Schedules as pure functions of the optimizer step, so that resuming needs no state."""

from __future__ import annotations

import math

from d2v.values import Fraction, PositiveSteps, Steps, buildable


@buildable
def ema_decay(step: int, decay_start: Fraction, decay_end: Fraction, anneal_steps: Steps) -> float:
    """Return the teacher's decay after ``step`` optimizer steps: linear from ``decay_start`` to ``decay_end``.

    Args:
        step: optimizer steps done, including the current one (the first update has step 1).
        decay_start: decay at step 0.
        decay_end: decay from ``anneal_steps`` on; 1 freezes the teacher.
        anneal_steps: optimizer steps; 0 means ``decay_end`` from the start.
    """
    if step >= anneal_steps:
        return decay_end
    return decay_start + (decay_end - decay_start) * step / anneal_steps


@buildable
def warmup_cosine(step: int, warmup_steps: Steps, max_steps: PositiveSteps, min_factor: Fraction = 0.0) -> float:
    """Return the factor on the peak learning rate of update ``step`` (0-based): linear from 0, then half a cosine.

    Args:
        step: optimizer steps done before this update.
        warmup_steps: optimizer steps of linear warm-up.
        max_steps: optimizer steps of the whole run; constant at ``min_factor`` afterwards.
        min_factor: end of the cosine, as a share of the peak.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return min_factor + (1.0 - min_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))


@buildable
def cosine(step: int, warmup_fraction: Fraction, max_steps: PositiveSteps, min_factor: Fraction = 0.0) -> float:
    """Return :func:`warmup_cosine` with the warm-up given as a share of the run."""
    return warmup_cosine(step, int(warmup_fraction * max_steps), max_steps, min_factor)


@buildable
def warmup_linear(step: int, warmup_fraction: Fraction, max_steps: PositiveSteps, min_factor: Fraction = 0.0) -> float:
    """Factor on the peak learning rate of update ``step`` (0-based): linear from 0, then linear to ``min_factor``.

    The fine-tuning schedule of BERT and RoBERTa, "polynomial decay" of power 1 in the released recipes for GLUE.

    Args:
        step: optimizer steps done before this update.
        warmup_fraction: share of the run for the warm-up.
        max_steps: optimizer steps of the whole run.
        min_factor: end of the decay, as a share of the peak.
    """
    warmup_steps = int(warmup_fraction * max_steps)
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return 1.0 - (1.0 - min_factor) * progress


@buildable
def tri_stage(
    step: int,
    max_steps: PositiveSteps,
    warmup_fraction: Fraction = 0.1,
    hold_fraction: Fraction = 0.4,
    start_factor: Fraction = 0.01,
    min_factor: Fraction = 0.05,
) -> float:
    """Factor on the peak learning rate of update ``step`` (0-based): linear up, constant, exponential down.

    wav2vec 2.0 (arXiv:2006.11477), sec. 4.3, and the released fine-tuning recipes for speech.

    Args:
        step: optimizer steps done before this update.
        max_steps: optimizer steps of the whole run.
        warmup_fraction: share of the run for the warm-up.
        hold_fraction: share of the run at the peak; the rest decays.
        start_factor: start of the warm-up, as a share of the peak.
        min_factor: end of the decay, as a share of the peak; above 0.
    """
    warmup_steps, hold_steps = int(warmup_fraction * max_steps), int(hold_fraction * max_steps)
    if step < warmup_steps:
        return start_factor + (1.0 - start_factor) * step / warmup_steps
    if step < warmup_steps + hold_steps:
        return 1.0
    decay_steps = max(1, max_steps - warmup_steps - hold_steps)
    progress = min(1.0, (step - warmup_steps - hold_steps) / decay_steps)
    return float(min_factor**progress)


@buildable
def reconstruction_first(
    step: int,
    max_steps: PositiveSteps,
    start_fraction: Fraction = 0.3,
    end_fraction: Fraction = 0.5,
    end_share: Fraction = 0.8,
) -> float:
    """Share of the loss on the teacher's targets at update ``step`` (0-based); the rest is on the input values.

    0 up to ``start_fraction`` of the run, then linear to ``end_share`` at ``end_fraction``.

    Args:
        step: optimizer steps done before this update.
        max_steps: optimizer steps of the whole run.
        start_fraction: share of the run in which masked inputs alone are predicted.
        end_fraction: share of the run after which nothing changes any more; at least ``start_fraction``.
        end_share: last value; 1 for the teacher's targets alone.

    Raises:
        ValueError: ``end_fraction`` is below ``start_fraction``.
    """
    if end_fraction < start_fraction:
        raise ValueError(f"end_fraction={end_fraction}: must be at least start_fraction={start_fraction}")
    progress = step / max_steps
    if progress < start_fraction:
        return 0.0
    if progress >= end_fraction:
        return end_share
    return end_share * (progress - start_fraction) / (end_fraction - start_fraction)
