"""Tones, as files of several formats."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from d2v.data.speech.clips import AudioClips, Clip


def tone(num_samples: int, rate: int = 16000, hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(num_samples) / rate)).astype(np.float32)


def save(path: Path, waveform: np.ndarray, rate: int = 16000, subtype: str | None = None) -> Path:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".opus":
        soundfile.write(path, waveform, rate, format="OGG", subtype="OPUS")
    else:
        soundfile.write(path, waveform, rate, subtype=subtype)
    return path


def truncated_flac(num_samples: int) -> bytes:
    """A file whose header is whole."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).uniform(-0.5, 0.5, num_samples), 16000, format="FLAC")
    return buffer.getvalue()[: num_samples // 2]


def clips_below(root: Path, names: list[str], min_samples: int = 1, **options) -> AudioClips:
    return AudioClips(lambda name: root / name, [Clip(name) for name in names], 16000, min_samples, **options)
