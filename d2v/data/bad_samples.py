"""What to do about samples that cannot be read: replace a few, and stop the run when it is no longer a few."""

from __future__ import annotations

from collections.abc import Iterable


class BadSample(Exception):
    """A sample that cannot be read; the message is the reason, in a few words."""


TOO_SHORT = "too short"  # how the reason begins where a sample is sound but not long enough: no fault of the data set


class TooManyBadSamples(RuntimeError):
    """So many samples cannot be read that the data set itself must be wrong."""


class NoSamples(TooManyBadSamples, ValueError):
    """A stream holds none at all."""


class BadSampleCounter:
    """Counts the distinct bad samples of a run. Those that are only too short are named, but do not count.

    Args:
        max_bad_fraction: highest tolerated share of bad samples, in [0, 1].
        num_samples: size of the data set; None if unknown, as for a stream. Then the share is of the samples seen so
            far, or of the first 1,000 if fewer were seen: an early bad sample says nothing about the rest.
    """

    _FIRST = 1000

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
        """Count what a batch had to skip.

        Args:
            skipped: ``Batch.skipped``, "name: reason" each.
            num_seen: samples, or documents, read to make the batch; only needed where the data set's size is unknown.

        Returns:
            The entries not seen before, to be logged.

        Raises:
            TooManyBadSamples: the share of bad samples exceeds ``max_bad_fraction``.
        """
        self.num_seen += num_seen
        new = []
        for entry in skipped:
            known = self._short if f": {TOO_SHORT}" in entry else self._bad
            if entry not in known:  # the same sample fails for the same reason, and its name may hold anything
                known[entry] = entry
                new.append(entry)
        total = max(self.num_seen, self._FIRST) if self.num_samples is None else self.num_samples
        if new and self.num_bad > self.max_bad_fraction * total:
            raise TooManyBadSamples(self._message(total))
        return new

    def _message(self, total: int) -> str:
        of = "first" if self.num_samples is None else "data set's"
        first = "\n  ".join(list(self._bad.values())[:5])
        return (
            f"{self.num_bad} of the {of} {total:,} samples cannot be read ({self.num_bad / total:.2%}), more than "
            f"data.max_bad_fraction={self.max_bad_fraction} allows. Repair or remove them, or raise "
            f"data.max_bad_fraction. The first:\n  {first}"
        )
