"""Recordings with the names of their classes in a text file."""

from __future__ import annotations

from typing import Any

from d2v.data.contents import first_of
from d2v.data.speech.clips import AudioClips


class LabelledClips(AudioClips):
    """Recordings of which the transcript is the name of a class.

    Args:
        args: as for :class:`AudioClips`.
        class_names: the classes of the training set, for another set; None for those that the transcripts name.
        kwargs: as for :class:`AudioClips`.

    Raises:
        ValueError: a class is not in ``class_names``.
    """

    def __init__(self, *args: Any, class_names: tuple[str, ...] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        every = self.every()
        places = {every.transcript(i): every.transcript_place(i) for i in range(len(every))}
        self.class_names = class_names or tuple(sorted(name for name in places if name is not None))
        if unknown := [name for name in places if name is not None and name not in self.class_names]:
            raise ValueError(
                f"{places[unknown[0]]}: {unknown[0]!r} is not in the training set, which has the classes "
                f"{first_of(self.class_names, 10)}; correct it, or remove this recording"
            )
        self._numbers = {name: number for number, name in enumerate(self.class_names)}

    @property
    def has_labels(self) -> bool:
        """Return True."""
        return True

    def label(self, index: int) -> int | None:
        """The recording's class, or None for an empty line."""
        name = self.transcript(index)
        return None if name is None else self._numbers[name]
