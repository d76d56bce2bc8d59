"""Errors of transcripts, computed by jiwer (extra ``d2v[speech]``): rates, and alignments of the worst utterances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from d2v.errors import how_to_install

ErrorRate = Literal["wer", "cer", "wer_cer"]  # of words, of letters, the mean of the two
ERROR_RATES = get_args(ErrorRate)  # scores of which the lowest is best


def require_jiwer() -> Any:
    """Import jiwer.

    Raises:
        ValueError: jiwer is not installed; the message says how to install it.
    """
    try:
        import jiwer
    except ImportError as error:
        raise ValueError(f"scoring transcripts needs jiwer: {how_to_install('speech')}") from error
    return jiwer


def error_rates(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the word error rate (wer) and letter error rate (cer) over all utterances together.

    Args:
        hypotheses: decoded texts.
        references: transcripts, none of them empty.
    """
    jiwer = require_jiwer()
    return {
        "wer": float(jiwer.wer(list(references), list(hypotheses))),
        "cer": float(jiwer.cer(list(references), list(hypotheses))),
    }


def align_worst(hypotheses: Sequence[str], references: Sequence[str], names: Sequence[str], count: int = 20) -> str:
    """Return, in Markdown, the utterances with the most word errors: transcripts aligned with decoded texts."""
    jiwer = require_jiwer()
    rows = []
    for name, reference, hypothesis in zip(names, references, hypotheses, strict=True):
        output = jiwer.process_words(reference, hypothesis)
        edits = output.substitutions + output.deletions + output.insertions
        if edits:
            rows.append((edits, output.wer, name, output))
    rows.sort(key=lambda row: (-row[0], -row[1], row[2]))
    parts = []
    for edits, rate, name, output in rows[:count]:
        lines = jiwer.visualize_alignment(output, show_measures=False, skip_correct=False).splitlines()
        shown = "\n".join(line for line in lines if line.startswith(("REF:", "HYP:", " ")))
        parts.append(f"`{name}`: {edits} word errors, {100 * rate:.0f} %\n\n```\n{shown}\n```\n")
    return "\n".join(parts)
