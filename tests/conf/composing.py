"""Names of configurations, for their tests."""

from __future__ import annotations


def modality_of(name: str) -> str:
    """The modality of an experiment."""
    return name.removeprefix("v1_").removeprefix("mae_").partition("_")[0]
