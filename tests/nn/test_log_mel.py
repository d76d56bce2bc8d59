"""Log-mel spectra, against torchaudio's bands and single tones."""

from __future__ import annotations

import math

import pytest
import torch
import torchaudio.functional

from d2v.nn.frontends.speech import CONV_LAYERS, SpeechFrontend
from d2v.nn.log_mel import LogMel, mel_bands

TINY = [[64, 20, 10], [128, 4, 4], [128, 3, 2], [128, 3, 2], [128, 3, 2]]


@pytest.mark.parametrize("bands", [20, 40])
def test_bands_are_those_of_torchaudio(bands: int) -> None:
    expected = torchaudio.functional.melscale_fbanks(513, 0.0, 8000.0, bands, 16000, mel_scale="htk")
    ours = mel_bands(1024, bands)
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, atol=0.03, rtol=0)  # straight in mels here, in Hz there


@pytest.mark.parametrize("conv_layers", [CONV_LAYERS, TINY])
def test_every_frame_has_the_spectrum_of_what_its_convolutions_see(conv_layers: list[list[int]]) -> None:
    mel = LogMel(conv_layers)
    frontend = SpeechFrontend(16, 2, conv_layers, pos_depth=0)
    waveform = torch.randn(1, 4000)
    values = mel(waveform)
    assert values.shape == (1, *frontend.token_grid(waveform), 40)
    changed = waveform.clone()
    changed[0, 5 * mel.hop + mel.length :] = 0  # all after frame 5
    torch.testing.assert_close(mel(changed)[:, :6], values[:, :6])
    torch.testing.assert_close(frontend.embed(changed)[:, :6], frontend.embed(waveform)[:, :6])
    changed = waveform.clone()
    changed[0, 5 * mel.hop + mel.length // 2] += 5  # the middle of frame 5
    assert (mel(changed)[0, 5] - values[0, 5]).abs().max() > 0.1


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 4000.0])
def test_a_tone_is_loudest_in_its_band(frequency: float) -> None:
    mel = LogMel(TINY)
    tone = torch.sin(2 * math.pi * frequency * torch.arange(4000) / 16000)
    centres = [float(row) for row in mel.bands.argmax(0) * 16000 / mel.fft_size]
    loudest = int(mel(tone[None])[0, 3].argmax())
    assert abs(centres[loudest] - frequency) == min(abs(centre - frequency) for centre in centres)


def test_silence_is_finite_and_half_precision_changes_nothing() -> None:
    mel, waveform = LogMel(TINY), torch.randn(2, 3000)
    assert mel(torch.zeros(1, 3000)).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(mel(waveform), LogMel(TINY)(waveform), rtol=0, atol=0)
        assert mel(waveform).dtype == torch.float32


def test_values_of_a_frontend_are_normalised_over_a_clip() -> None:
    frontend, waveform = SpeechFrontend(16, 2, TINY, pos_depth=0), torch.randn(2, 8000)
    values = frontend.values(waveform)
    assert values.shape[-1] == frontend.num_values == 40
    torch.testing.assert_close(values.mean(1), torch.zeros(2, 40), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(2, 40), atol=1e-3, rtol=0)
    torch.testing.assert_close(frontend.values(3 * waveform), values, atol=1e-2, rtol=0)  # but for the floor


def test_a_frontend_keeps_no_bands_in_checkpoints() -> None:
    assert not [name for name in SpeechFrontend(16, 2, TINY).state_dict() if "log_mel" in name]
