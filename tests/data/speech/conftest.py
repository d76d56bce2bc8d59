"""Folders of short clips."""

from __future__ import annotations

from pathlib import Path

import pytest
from short_clips import RATE, SECONDS, damage, save, speech

from d2v.data.speech.data import SpeechData


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twenty clips, named by label and take, shortest first."""
    root = tmp_path_factory.mktemp("clips")
    for i, seconds in enumerate(SECONDS):
        save(root / f"{i // 2:02}_{'ab'[i % 2]}.flac", int(seconds * RATE), i)
    return root


@pytest.fixture
def damaged(tmp_path) -> SpeechData:
    """Clips of 0.1, 0.2, ... s, the second and the third damaged, and a short one between the long ones."""
    for i, seconds in enumerate([0.1, 0.2, 0.2, 0.1, 0.3, 0.25]):
        save(tmp_path / f"{i}.flac", int(seconds * RATE), i)
    for i in (1, 2):
        damage(tmp_path / f"{i}.flac")
    return speech(tmp_path)
