import pytest

from d2v.eval.words import align_worst, error_rates

pytest.importorskip("jiwer")


def test_rates_count_edits_over_all_utterances() -> None:
    found = error_rates(["a cat sat", "the dog"], ["the cat sat", "the dog ran off"])
    assert found["wer"] == pytest.approx(3 / 7)
    assert found["cer"] == pytest.approx((3 + 8) / (11 + 15))
    assert error_rates(["", ""], ["one two", "three"])["wer"] == 1


def test_the_worst_come_first_with_their_alignment() -> None:
    said = ["one two three", "four five", "six"]
    shown = align_worst(["one three", "nine nine", "six"], said, ["a.flac", "b.flac", "c.flac"], count=2)
    assert shown.index("b.flac") < shown.index("a.flac")
    assert "c.flac" not in shown
    assert "REF: one two three" in shown
    assert "2 word errors, 100 %" in shown
    assert align_worst(["six"], ["six"], ["c.flac"]) == ""
