import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from d2v.eval.ctc import CTCProbe, ctc_probe, greedy

LETTERS = "abcd "


def edits(a: str, b: str) -> int:
    """Fewest insertions, deletions and substitutions that turn one string into the other."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
    return int(table[-1, -1])


def letter_error(hypotheses: list[str], texts: list[str]) -> float:
    return sum(map(edits, hypotheses, texts)) / sum(map(len, texts))


def random_texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(LETTERS), rng.integers(1, 9))) for _ in range(count)]


def spoken(texts: list[str], seed: int, scale: float = 1.0) -> list[Tensor]:
    """Frames that spell the texts: two of every letter with silence around it, noise, an offset and a scale."""
    generator = torch.Generator().manual_seed(seed)
    clips = []
    for text in texts:
        frames = torch.zeros(3 * len(text) + 1, len(LETTERS) + 2)
        for i, letter in enumerate(text):
            frames[3 * i + 1 : 3 * i + 3, LETTERS.index(letter)] = 1
        clips.append(scale * (frames + 0.1 * torch.randn(frames.shape, generator=generator)) + 5)
    return clips


@cache
def toy() -> CTCProbe:
    train, val = random_texts(40, 1), random_texts(20, 2)
    return ctc_probe(spoken(train, 1), train, spoken(val, 2), val)


def test_learns_to_spell() -> None:
    assert toy().letter_error == 0
    assert toy().hypotheses == random_texts(20, 2)
    assert len(toy().losses) == 60
    assert toy().losses[-1] < 0.2 * toy().losses[0]


def test_learns_nothing_from_noise() -> None:
    train, val = random_texts(40, 1), random_texts(20, 2)
    noise = [torch.randn(3 * len(text) + 1, 7) for text in train + val]
    probe = ctc_probe(noise[:40], train, noise[40:], val, epochs=20)
    assert 0.65 < probe.letter_error < 1.1


def test_does_not_depend_on_scale_offset_or_global_randomness() -> None:
    train, val = random_texts(40, 1), random_texts(20, 2)
    torch.manual_seed(99)
    scaled = ctc_probe(spoken(train, 1, 1e3), train, spoken(val, 2, 1e3), val)
    assert scaled.letter_error == 0
    again = ctc_probe(spoken(train, 1), train, spoken(val, 2), val)
    assert (again.hypotheses, again.losses) == (toy().hypotheses, toy().losses)


def test_the_letter_error_is_edits_over_letters() -> None:
    """Also where nothing was decoded, and for letters that the training texts lack."""
    train = random_texts(40, 1)
    said, written = random_texts(30, 3), [*random_texts(29, 4), "xyz b"]
    frames = spoken(said, 3)
    frames[5] = torch.zeros(4, 7) + 5  # silence
    probe = ctc_probe(spoken(train, 1), train, frames, written)
    assert probe.hypotheses == [*said[:5], "", *said[6:]]
    assert probe.letter_error == pytest.approx(letter_error(probe.hypotheses, written))
    assert 0.5 < probe.letter_error < 2


def test_half_precision_frames_and_texts_longer_than_their_clips() -> None:
    train, val = random_texts(40, 1), random_texts(20, 2)
    x = [clip.half() for clip in [*spoken(train, 1), *spoken(["a"], 7)]]
    probe = ctc_probe(x, [*train, "abcdabcdabcd"], spoken(val, 2), val)
    assert probe.letter_error < 0.05
    assert all(np.isfinite(probe.losses))


def scores(best: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(best, dtype=torch.int64), 3).float() - 0.5


@pytest.mark.parametrize(
    ("best", "text"),
    [
        ([0, 1, 1, 0, 1, 2, 2, 0, 0], "aab"),
        ([1, 1, 1], "a"),
        ([1, 2, 1, 2], "abab"),
        ([2, 0, 2, 0, 0, 2], "bbb"),
        ([0, 0], ""),
        ([], ""),
    ],
)
def test_greedy_decoding_merges_repeats_and_drops_blanks(best: list[int], text: str) -> None:
    assert greedy(scores(best), "ab") == text


def test_errors_say_what_is_missing() -> None:
    x = spoken(["ab", "c"], 0)
    with pytest.raises(ValueError, match="got 2 training clips, 1 texts"):
        ctc_probe(x, ["ab"], x, ["ab", "c"])
    with pytest.raises(ValueError, match="got 0 validation clips, 0 texts"):
        ctc_probe(x, ["ab", "c"], [], [])
    with pytest.raises(ValueError, match="the training clip 1 has an empty text: leave such clips out"):
        ctc_probe(x, ["ab", ""], x, ["ab", "c"])
    with pytest.raises(ValueError, match="the validation clip 0 has an empty text"):
        ctc_probe(x, ["ab", "c"], x, ["", "c"])


def test_the_learning_rate_falls_to_zero_by_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    class Adam(torch.optim.Adam):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    train = random_texts(40, 1)
    ctc_probe(spoken(train, 1), train, spoken(train[:2], 2), train[:2], epochs=4, lr=0.1)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(12)])
