"""Handling of samples that cannot be read: a few are replaced and named; too many stop the run.

The limit is a share of the data set (``max_bad_fraction``), or a number for small data sets (:func:`tolerated`).
"""

from __future__ import annotations

from collections.abc import Iterable

from d2v.errors import UserError


class BadSample(UserError):
    """A sample that cannot be read; the message is the reason, in a few words."""


TOO_SHORT = "too short"  # how the reason begins where a sample is sound but not long enough: no fault of the data set


class TooManyBadSamples(UserError, RuntimeError):
    """So many samples cannot be read that the data set itself must be wrong."""


class NoSamples(TooManyBadSamples, ValueError):
    """A stream has no samples."""


FEW = 3  # bad samples that a small data set may have


def tolerated(max_bad_fraction: float, num_samples: int) -> float:
    """Return the largest number of bad samples with which a run continues.

    It is ``max_bad_fraction`` of the data set. If that is less than three, up to three samples are tolerated, but no
    more than a quarter of the data set (one of fewer than eight). With ``max_bad_fraction=0`` none is tolerated.

    Args:
        max_bad_fraction: highest tolerated share, in [0, 1].
        num_samples: size of the data set.
    """
    if max_bad_fraction == 0:
        return 0
    return max(max_bad_fraction * num_samples, min(FEW, max(1, num_samples // 4)))


class BadSampleCounter:
    """Counter of the distinct bad samples of a run. Samples that are only too short are named, but not counted.

    Args:
        max_bad_fraction: highest tolerated share of bad samples, in [0, 1]; see :func:`tolerated`.
        num_samples: size of the data set; None if unknown, as for a stream. Then the share is of the samples seen so
            far, or of the first 1,000 if fewer were seen: an early bad sample says nothing about the rest.
    """

    _FIRST = 1000
    _NAMED = 20

    def __init__(self, max_bad_fraction: float, num_samples: int | None) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.num_samples = num_samples
        self.num_seen = 0
        self._bad: dict[str, str] = {}  # name -> "name: reason", in the order of appearance
        self._short: dict[str, str] = {}

    @property
    def num_bad(self) -> int:
        """Distinct bad samples so far."""
        return len(self._bad)

    def update(self, skipped: Iterable[str], num_seen: int = 0) -> list[str]:
        """Count the skipped samples of a batch.

        Args:
            skipped: ``Batch.skipped``, "name: reason" each.
            num_seen: samples, or documents, read to make the batch; only needed where the data set's size is unknown.

        Returns:
            The entries not seen before, to be logged.

        Raises:
            TooManyBadSamples: there are more than :func:`tolerated` allows.
        """
        self.num_seen += num_seen
        new = []
        for entry in skipped:
            known = self._short if f": {TOO_SHORT}" in entry else self._bad
            if entry not in known:  # the same sample fails for the same reason, and its name may hold anything
                known[entry] = entry
                new.append(entry)
        total = max(self.num_seen, self._FIRST) if self.num_samples is None else self.num_samples
        if new and self.num_bad > tolerated(self.max_bad_fraction, total):
            raise TooManyBadSamples(self._message(total))
        return new

    def _message(self, total: int) -> str:
        of = "first" if self.num_samples is None else "data set's"
        named = list(self._bad.values())[: self._NAMED]
        all_of_them = "They are" if len(named) == self.num_bad else f"The first {len(named)} are"
        listed = "\n  ".join(named)
        utf8 = (
            "Text must be UTF-8: convert it, for example with iconv -f LATIN1 -t UTF-8. "
            if "not UTF-8" in listed
            else ""
        )
        return (
            f"{self.num_bad} of the {of} {total:,} samples cannot be read ({self.num_bad / total:.2%}), more than "
            f"max_bad_fraction={self.max_bad_fraction} allows. Repair or remove them, or raise "
            f"max_bad_fraction. {utf8}{all_of_them}:\n  {listed}"
        )
