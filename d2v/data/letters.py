"""Encoding of transcripts as numbers: a letter is its index in the alphabet plus one, 0 is CTC's blank."""

from __future__ import annotations

from collections.abc import Sequence

BLANK = 0
LETTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZ'"  # what the released recipes for LibriSpeech spell with; a space ends a word


def check_letters(letters: str) -> str:
    """Return the alphabet.

    Raises:
        ValueError: a letter occurs twice, or the word boundary is missing.
    """
    if len(set(letters)) != len(letters) or " " not in letters:
        raise ValueError(f"letters={letters!r}: give every letter once, and a space for the boundary of words")
    return letters


def spell(text: str, letters: str, name: str, place: str = "") -> tuple[int, ...]:
    """Encode a transcript as numbers, with one boundary between words.

    Args:
        text: the transcript.
        letters: the alphabet.
        name: name of the clip, for messages.
        place: file and line of the transcript, for messages; "" if unknown.

    Raises:
        ValueError: the transcript is empty, or has a character outside of the alphabet.
    """
    words = text.split()
    if not words:
        where = place and f" in {place}"
        raise ValueError(f"{name}: empty transcript{where}; correct it, or set on_bad_text=skip")
    unknown = sorted(set("".join(words)) - set(letters))
    if unknown:
        where = place and f" ({place})"
        raise ValueError(
            f"{name}: {''.join(unknown)!r} in {text!r}{where} is not in letters={letters!r}; add it there, "
            "correct the transcript, or set on_bad_text=skip"
        )
    return tuple(letters.index(letter) + 1 for letter in " ".join(words))


def unspell(numbers: Sequence[int], letters: str) -> str:
    """Decode numbers into text; blanks are ignored."""
    return "".join(letters[i - 1] for i in numbers if i != BLANK)
