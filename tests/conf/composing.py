"""Names of configurations, for their tests."""

from __future__ import annotations


def modality_of(name: str) -> str:
    """The modality of an experiment."""
    first = name.removeprefix("v1_").removeprefix("mae_").partition("_")[0]
    return {"eat": "spectrogram"}.get(first, first)
