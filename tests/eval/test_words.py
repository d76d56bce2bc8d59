"""Error rates against a plain edit distance."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from d2v.eval.words import align_worst, error_rates

pytest.importorskip("jiwer")

quick = settings(deadline=None, max_examples=80)
Texts = list[tuple[str, str]]  # of what was decoded and what was said


def edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein distance, one row of the table at a time."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def texts(min_words: int) -> st.SearchStrategy[str]:
    """Few letters, so that many agree: ASCII, composed, two code points that look like one, wide, outside the BMP."""
    return st.lists(st.text("abé語ß🙂'e\u0301", min_size=1, max_size=3), min_size=min_words, max_size=6).map(" ".join)


pairs = st.lists(st.tuples(texts(0), texts(1)), min_size=1, max_size=5)


@quick
@given(pairs)
@example([("a cat sat", "the cat sat"), ("the dog", "the dog ran off")])
@example([("", "one two"), ("", "three")])  # nothing decoded
@example([("", "one two"), ("three", "three")])  # nothing decoded of one
@example([("no no no no no", "no")])  # more errors than words
@example([("é", "e\u0301"), ("straße 語", "strasse 語"), ("🙂", "🙂")])  # code points, not looks
@example([("ab c", "a bc"), ("b a", "a b")])  # a space is a letter; swaps are two edits
@example([("a", "a b c d e f g h"), ("b", "a")])  # long and short ones
def test_rates_are_edits_over_all_utterances(rows: Texts) -> None:
    words = sum(edits(h.split(), r.split()) for h, r in rows) / sum(len(r.split()) for _, r in rows)
    letters = sum(edits(h, r) for h, r in rows) / sum(len(r) for _, r in rows)
    hypotheses, references = zip(*rows, strict=True)
    assert error_rates(hypotheses, references) == pytest.approx({"wer": words, "cer": letters})


@quick
@given(pairs, st.integers(1, 5))
def test_the_worst_are_those_with_most_edits(rows: Texts, count: int) -> None:
    names = [f"{i}.flac" for i in range(len(rows))]
    wrong = []
    for name, (hypothesis, reference) in zip(names, rows, strict=True):
        if number := edits(hypothesis.split(), reference.split()):
            wrong.append((-number, -number / len(reference.split()), name))
    expected = [f"`{name}`: {-n} word errors, {-100 * rate:.0f} %" for n, rate, name in sorted(wrong)[:count]]
    shown = align_worst(*zip(*rows, strict=True), names, count)
    assert [line for line in shown.splitlines() if line.startswith("`") and "word errors" in line] == expected


def test_the_worst_come_first_with_their_alignment() -> None:
    said = ["one two three", "four five", "six"]
    shown = align_worst(["one three", "nine nine", "six"], said, ["a.flac", "b.flac", "c.flac"], count=2)
    assert shown.index("b.flac") < shown.index("a.flac")
    assert "c.flac" not in shown
    assert "REF: one two three" in shown
    assert "2 word errors, 100 %" in shown
    assert align_worst(["six"], ["six"], ["c.flac"]) == ""
