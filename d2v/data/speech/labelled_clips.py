"""Recordings with the names of their classes in a text file."""

from __future__ import annotations

from typing import Any

from d2v.data.contents import first_of
from d2v.data.speech.clips import AudioClips


class LabelledClips(AudioClips):
    """Recordings of which the transcript is the name of a class, or of several.

    Args:
        args: as for :class:`AudioClips`.
        class_names: the classes of the training set, for another set; None for those that the transcripts name.
        separator: between the names of a recording with several classes; its label is a tuple then. None for one class.
        kwargs: as for :class:`AudioClips`.

    Raises:
        ValueError: a class is not in ``class_names``.
    """

    def __init__(
        self, *args: Any, class_names: tuple[str, ...] | None = None, separator: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._separator = separator
        every = self.every()
        places = {name: every.transcript_place(i) for i in range(len(every)) for name in every.names(i)}
        self.class_names = class_names or tuple(sorted(places))
        if unknown := [name for name in places if name not in self.class_names]:
            raise ValueError(
                f"{places[unknown[0]]}: {unknown[0]!r} is not in the training set, which has the classes "
                f"{first_of(self.class_names, 10)}; correct it, or remove this recording"
            )
        self._numbers = {name: number for number, name in enumerate(self.class_names)}

    def every(self) -> LabelledClips:
        """Return all listed recordings, as :meth:`AudioClips.every`."""
        every = super().every()
        assert isinstance(every, LabelledClips)
        return every

    @property
    def has_labels(self) -> bool:
        """Return True."""
        return True

    @property
    def has_transcripts(self) -> bool:
        """Return False: what is written there are classes."""
        return False

    def names(self, index: int) -> list[str]:
        """Return the names of the recording's classes; [] for an empty line."""
        line = self.transcript(index) or ""
        names = [line] if self._separator is None else line.split(self._separator)
        return [name.strip() for name in names if name.strip()]

    def label(self, index: int) -> int | tuple[int, ...] | None:  # type: ignore[override]  # of several classes
        """The recording's class, or None for an empty line; its classes, or (), if there is a separator."""
        numbers = tuple(dict.fromkeys(self._numbers[name] for name in self.names(index)))
        if self._separator is not None:
            return numbers
        return numbers[0] if numbers else None
