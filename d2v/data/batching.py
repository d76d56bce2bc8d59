"""Division of global batches into micro-batches of devices, by samples or by seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSplit:
    """Split of a global batch over ``world_size`` devices and ``accumulate`` micro-batches on each.

    Attributes:
        micro_batch_size: samples, or seconds of audio, on a device at a time.
        accumulate: micro-batches of an optimizer step on a device.
        world_size: devices.
    """

    micro_batch_size: float
    accumulate: int
    world_size: int

    @property
    def global_batch_size(self) -> float:
        """Samples, or seconds of audio, of an optimizer step over all devices."""
        return self.micro_batch_size * self.accumulate * self.world_size


def split_batch(global_batch_size: float, micro_batch_size: float | None, world_size: int) -> BatchSplit:
    """Derive gradient accumulation for batches that are counted in samples.

    Args:
        global_batch_size: samples per optimizer step, over all devices; what a recipe fixes.
        micro_batch_size: at most so many samples on a device at a time; None for all of its share at once.
        world_size: devices.

    Raises:
        ValueError: the global batch cannot be spread evenly.
    """
    for key, value in (("global_batch_size", global_batch_size), ("micro_batch_size", micro_batch_size)):
        if value is not None and value != int(value):
            raise ValueError(f"{key}={value}: this data counts samples; give a whole number")
    if global_batch_size < 1 or global_batch_size % world_size:
        below = max(1, global_batch_size // world_size) * world_size
        raise ValueError(
            f"global_batch_size={global_batch_size} cannot be spread over {world_size} devices; "
            f"choose a multiple, such as {below}"
        )
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ValueError(f"micro_batch_size={micro_batch_size}: must be at least 1, or null for no accumulation")
    share = int(global_batch_size) // world_size
    limit = share if micro_batch_size is None else min(int(micro_batch_size), share)
    micro = next(size for size in range(limit, 0, -1) if share % size == 0)
    return BatchSplit(micro, share // micro, world_size)


def check_seconds_fit(
    global_batch_size: float, micro_batch_size: float | None, world_size: int, longest: float
) -> None:
    """Raise ValueError if a device's share of a batch, or a micro-batch, is shorter than the longest clip."""
    share = global_batch_size / world_size
    if share < longest:
        raise ValueError(
            f"global_batch_size={global_batch_size:g} seconds are {share:g} for each of {world_size} devices, but "
            f"a clip takes up to {longest:g}: choose at least {longest * world_size:g}, or lower max_seconds"
        )
    if micro_batch_size is not None and micro_batch_size < longest:
        raise ValueError(
            f"micro_batch_size={micro_batch_size:g} seconds: a clip takes up to {longest:g}; choose at least that, "
            "or lower max_seconds"
        )


def split_seconds(
    global_batch_size: float, micro_batch_size: float | None, world_size: int, longest: float
) -> BatchSplit:
    """Derive gradient accumulation for batches that are counted in seconds of audio.

    Args:
        global_batch_size: seconds per optimizer step, over all devices; what a recipe fixes.
        micro_batch_size: so many seconds on a device at a time, on average over an optimizer step: where its clips
            cannot be dealt evenly, some micro-batches hold one more than others. None for all of its share at once.
        world_size: devices.
        longest: seconds that a clip takes at most.

    Raises:
        ValueError: a device's share, or a micro-batch, does not hold the longest clip.
    """
    check_seconds_fit(global_batch_size, micro_batch_size, world_size, longest)
    share = global_batch_size / world_size
    accumulate = 1 if micro_batch_size is None else int(-(-share // micro_batch_size))
    most = int(whole(global_batch_size / longest) // world_size)  # micro-batches that a longest clip each fits
    if accumulate > most:
        raise ValueError(
            f"micro_batch_size={micro_batch_size:g} seconds: {global_batch_size:g} in parts of that size leave "
            f"some of {world_size} devices x {accumulate} without a clip of {longest:g}; choose at least "
            f"{math.ceil(share / most)}, or lower max_seconds"
        )
    return BatchSplit(share / accumulate, accumulate, world_size)


def whole(ratio: float) -> int:
    """Round down, with a tolerance for rounding errors of a division."""
    return int(ratio + 1e-9)
