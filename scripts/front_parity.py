"""Checks of what comes before a model: EAT's spectrograms, positions and masks (see check_parity.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2v.data.spectrograms.batches import SpectrogramView
from d2v.data.spectrograms.filter_bank import FilterBank
from d2v.data.speech.audio import resample
from d2v.nn.frontends.spectrogram import SpectrogramFrontend
from d2v.objective.masking import InverseBlockMask

SPECTROGRAMS = 5e-4  # absolute, in normalised units: float32 spectra are inexact in quiet bins beside tones
POSITIONS, LATE_POSITIONS = 6e-6, 8e-5  # absolute, up to 1,024 frames and beyond: the reference's are float32
ERRORS = 4.5  # standard errors of the difference of two rates

Check = tuple[str, float, float]  # quantity, error, tolerance


def relative_error(ours: Tensor | float, theirs: Tensor | float) -> float:
    """Largest absolute difference over the largest magnitude of ``theirs``; infinite if shapes differ or not finite."""
    return absolute_error(ours, theirs) / float(torch.as_tensor(theirs).double().abs().max().clamp_min(1e-12))


def absolute_error(ours: Tensor | float, theirs: Tensor | float) -> float:
    """Largest absolute difference; infinite if shapes differ or not finite."""
    a, b = torch.as_tensor(ours, dtype=torch.float64), torch.as_tensor(theirs, dtype=torch.float64)
    if a.shape != b.shape or not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    return float((a - b).abs().max())


def check_eat_front(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[Check]:
    """Spectrograms of every waveform, rows of the table of positions, numbers and places of visible tokens."""
    bank = FilterBank(16000, spec["num_mel_bins"])
    for key, theirs in tensors.items():
        kind, _, name = key.partition("/")
        if kind in ("fbank", "padded", "truncated", "esc50", "spcv2"):
            mean, std = spec["normalisations"].get(kind, spec["normalisations"]["audioset"])
            samples = tensors[f"waveform/{name}"].float().numpy() / 32768
            mono = samples if samples.ndim == 1 else samples.mean(axis=1)
            waveform = resample(mono, spec["waveforms"][name]["sample_rate"], 16000)
            ours = SpectrogramView(bank, len(theirs), mean, std)(waveform)[0]
            yield key, absolute_error(ours, theirs), SPECTROGRAMS
        elif kind == "positions":
            rows = torch.arange(len(theirs)) if len(theirs) == 512 else torch.tensor(spec["position_rows"])
            table = SpectrogramFrontend(int(name)).positions[rows]
            yield key, absolute_error(table[rows < 512], theirs[rows < 512]), POSITIONS
            yield f"{key}, late rows", absolute_error(table, theirs), LATE_POSITIONS
        elif kind == "visible_rate":
            yield from _check_masks(name, spec["masks"][name], theirs, spec["visible_rate_draws"])
    for name, case in spec["masks"].items():
        if f"mask/{name}" in tensors:
            theirs = tensors[f"mask/{name}"]
            yield (
                f"mask/{name}",
                relative_error(theirs.sum(1).double(), torch.full((len(theirs),), case["masked"])),
                0.0,
            )


def _check_masks(name: str, case: Mapping[str, Any], theirs: Tensor, draws: int) -> Iterator[Check]:
    generator = InverseBlockMask(8, case["mask_prob"], case["mask_length"], case["mask_prob_adjust"])
    masks = torch.from_numpy(generator(tuple(case["grid"]), [np.random.default_rng(i) for i in range(draws // 8)]))
    yield f"masked/{name}", absolute_error(masks.sum(1).double(), torch.full((len(masks),), case["masked"])), 0.0
    rate = 1 - masks.double().mean(0).view(case["grid"])
    spread = (2 * theirs * (1 - theirs) / draws).sqrt().clamp_min(1e-9)
    yield f"visible_rate/{name}", float(((rate - theirs).abs() / spread).max()), ERRORS


# By the name in NAME.json.
FRONTS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], Iterator[Check]]] = {"eat_front": check_eat_front}
