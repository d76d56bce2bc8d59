"""The filter bank against torchaudio's, and against what EAT's code computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from d2v.data.spectrograms.batches import SpectrogramView
from d2v.data.spectrograms.filter_bank import FilterBank
from d2v.data.speech.audio import resample

BANK = FilterBank(16000, 128)


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    spec = json.loads((golden_dir / "eat_front.json").read_text())
    return spec, load_file(golden_dir / "eat_front.safetensors")


def waveform(golden: tuple[dict[str, Any], dict[str, Tensor]], name: str) -> np.ndarray:
    spec, tensors = golden
    samples = tensors[f"waveform/{name}"].float().numpy() / 32768
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    return resample(mono, spec["waveforms"][name]["sample_rate"], 16000)


@pytest.mark.parametrize("name", ["sweep", "tone_with_offset", "noise_then_silence", "at_32000_hz", "two_channels"])
def test_bins_are_those_of_torchaudio_and_of_eat(golden: tuple[dict[str, Any], dict[str, Tensor]], name: str) -> None:
    from torchaudio.compliance.kaldi import fbank

    x = torch.from_numpy(waveform(golden, name))
    x = x - x.mean()
    theirs = fbank(x[None], num_mel_bins=128, window_type="hanning", htk_compat=True, dither=0.0)
    torch.testing.assert_close(BANK(x), theirs, atol=1e-4, rtol=0)
    stored = golden[1][f"fbank/{name}"]
    view = SpectrogramView(BANK, len(stored), -4.268, 4.569)
    torch.testing.assert_close(view(waveform(golden, name))[0], stored, atol=5e-4, rtol=0)


@pytest.mark.parametrize(
    ("key", "name", "mean", "std"),
    [
        ("padded", "sweep", -4.268, 4.569),
        ("truncated", "tone_with_offset", -4.268, 4.569),
        ("esc50", "tone_with_offset", -6.627, 5.359),
        ("spcv2", "tone_with_offset", -6.846, 5.565),
    ],
)
def test_recordings_are_padded_before_normalisation_or_cut(
    golden: tuple[dict[str, Any], dict[str, Tensor]], key: str, name: str, mean: float, std: float
) -> None:
    stored = golden[1][f"{key}/{name}"]
    view = SpectrogramView(BANK, len(stored), mean, std)(waveform(golden, name))
    torch.testing.assert_close(view[0], stored, atol=5e-4, rtol=0)
    if key == "padded":
        assert torch.equal(view[0, 78:], torch.full((18, 128), golden[0]["padding_value"]))


@pytest.mark.parametrize(("rate", "num_mels"), [(16000, 40), (8000, 128), (22050, 64), (44100, 128)])
def test_other_rates_and_numbers_of_bins_are_torchaudios(rate: int, num_mels: int) -> None:
    from torchaudio.compliance.kaldi import fbank

    x = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, rate // 2).astype("float32"))
    ours = FilterBank(rate, num_mels)
    theirs = fbank(x[None], num_mel_bins=num_mels, sample_frequency=rate, window_type="hanning", dither=0.0)
    assert ours.num_frames(len(x)) == len(theirs)
    torch.testing.assert_close(ours(x), theirs, atol=1e-4, rtol=0)


def test_numbers_of_frames_and_samples() -> None:
    assert [BANK.num_frames(n) for n in (0, 399, 400, 559, 560)] == [0, 0, 1, 1, 2]
    assert BANK.num_samples(1024) == 1023 * 160 + 400
    assert BANK.num_frames(BANK.num_samples(7)) == 7


def test_silence_is_finite() -> None:
    assert torch.isfinite(BANK(torch.zeros(400))).all()
