"""Clips with transcripts, spelled by letters, for fine-tuning on speech."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest
from pathlib import PurePath
from typing import Literal

import numpy as np
from torch import Tensor

from d2v.data.bad_samples import TOO_SHORT
from d2v.data.keys import RandomStream, sample_rng
from d2v.data.labelled import Part
from d2v.data.letters import spell
from d2v.data.source import Source
from d2v.data.speech.batches import ConvLayers, EvalView
from d2v.data.speech.clips import AudioClips
from d2v.types import num_frames

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WholeView:
    """View of the whole clip, in training, too, because a transcript cannot be cropped with its clip.

    Attributes:
        view: the evaluation view.
    """

    view: EvalView

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Return (S,) float32. Raises BadSample for clips that are too short or too long."""
        return self.view(waveform)


class TranscribedClips:
    """Clips with transcripts, by number.

    Args:
        clips: all of them.
        letters: the alphabet; if it has no lower-case letters, transcripts are converted to capitals.
        max_samples: longer clips are left out.
        on_bad_text: "error", or "skip" to leave out and name clips with an empty transcript or other characters.
        limit: the config key that ``max_samples`` comes from, for messages.

    Attributes:
        left_out: listed clips that were left out, as "name: reason".

    Raises:
        ValueError: no clip has a transcript, none is short enough, or a transcript cannot be spelled.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(
        self,
        clips: AudioClips,
        letters: str,
        max_samples: int,
        on_bad_text: Literal["error", "skip"] = "error",
        limit: str = "eval_max_seconds",
    ) -> None:
        if not clips.has_transcripts:
            raise ValueError(
                "these clips have no transcripts: use data=librispeech, transcripts=... of data=audio_manifest, or "
                "text_column of data=hf_audio"
            )
        clips.check_not_empty()
        self.clips = clips
        self.ids: list[int] = []
        self._letters: list[tuple[int, ...]] = []
        bad, too_long = [], []
        for i in range(len(clips)):
            name, rate = clips.name(i), clips.sample_rate
            if clips.lengths[i] > max_samples:
                too_long.append(f"{name}: {clips.lengths[i] / rate:g} s, {limit} allows {max_samples / rate:g}")
                continue
            text = clips.transcript(i) or ""
            try:
                text = text.upper() if letters == letters.upper() else text
                spelled = spell(text, letters, name, clips.transcript_place(i))
            except ValueError as error:
                if on_bad_text == "error":
                    raise
                bad.append(str(error))
                continue
            self.ids.append(i)
            self._letters.append(spelled)
        for entry in bad:
            log.warning("left out %s", entry)
        if bad or too_long:
            log.warning("left out %d clips for their transcripts, %d for their length", len(bad), len(too_long))
        if not self.ids:
            raise ValueError(
                f"none of {len(clips)} clips can be used: {len(bad)} transcripts, {len(too_long)} too long; the first: "
                + [*bad, *too_long][0]
            )
        too_short = (f"{name}: {TOO_SHORT} (min_seconds)" for name in clips.too_short)
        self.left_out = (*clips.bad, *too_short, *too_long, *bad)
        self.lengths = clips.lengths[self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int) -> np.ndarray:
        """Return (S,) float32. Raises BadSample."""
        return self.clips.load(self.ids[index])

    def label(self, index: int) -> tuple[int, ...]:
        """Return the transcript, as numbers of letters."""
        return self._letters[index]

    def name(self, index: int) -> str:
        """The clip's path."""
        return self.clips.name(self.ids[index])

    def mark(self, index: int) -> bytes:
        """Size and first bytes of the file."""
        return self.clips.mark(self.ids[index])


def choose_hours(clips: TranscribedClips, hours: float, sample_rate: int, seed: int) -> Part[np.ndarray]:
    """Choose clips of a total length, taking speakers in turn, so that few labels cover as many voices as possible.

    The choice depends on clips and seed; more hours include the clips of fewer.

    Args:
        clips: in folders <speaker>/<chapter>, as LibriSpeech has them; others count as one speaker.
        hours: at most; the first clip of all is always taken.
        sample_rate: of ``clips.lengths``, Hz.
        seed: of the order.
    """
    voices: dict[str, list[int]] = {}
    for i in sample_rng(seed, 0, 0, RandomStream.ORDER).permutation(len(clips)).tolist():
        parents = PurePath(clips.name(i)).parts[:-1]
        voices.setdefault(parents[-2] if len(parents) > 1 else "", []).append(i)
    turns = chain.from_iterable(zip_longest(*(voices[name] for name in sorted(voices))))
    left = hours * 3600 * sample_rate
    chosen: list[int] = []
    for i in (i for i in turns if i is not None):
        left -= clips.lengths[i]
        if left < 0 and chosen:
            break
        chosen.append(i)
    return Part(clips, sorted(chosen))


def name_unlearnable(clips: Source[np.ndarray], lengths: np.ndarray, conv_layers: ConvLayers) -> None:
    """Warn of clips with fewer frames than CTC needs: one for each letter, one more between two equal letters.

    Args:
        clips: labelled with numbers of letters.
        lengths: of every clip, samples.
        conv_layers: of the encoder: what a frame is.
    """
    unlearnable = []
    for i, length in enumerate(lengths.tolist()):
        frames, said = num_frames(length, conv_layers), clips.label(i)
        assert isinstance(said, tuple)
        if frames < 2 * len(said) and frames < len(said) + sum(a == b for a, b in pairwise(said)):
            unlearnable.append(clips.name(i))
    if unlearnable:
        log.warning(
            "nothing is learnt from %d of %d clips: their transcripts have more letters than the encoder makes frames: "
            "%s%s; correct or remove them", len(unlearnable), len(clips), ", ".join(unlearnable[:5]),
            ", ..." if len(unlearnable) > 5 else "",
        )  # fmt: skip
