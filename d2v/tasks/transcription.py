"""Transcripts: letters and word boundaries by CTC (Graves et al. 2006), word and letter error rates.

The released recipes for LibriSpeech spell with 26 letters, an apostrophe and a word boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.data.letters import BLANK, check_letters, unspell
from d2v.eval.words import ErrorRate, align_worst, error_rates, require_jiwer
from d2v.tasks.base import Loss
from d2v.types import NO_LETTER, Batch
from d2v.values import Count, buildable

Decoder = Callable[[Tensor], str]  # (T, C) log-probabilities of one clip, on the CPU


@buildable
class Transcription:
    """Transcription of speech into letters.

    Args:
        labels: the alphabet (see :mod:`d2v.data.letters`); output 0 is the blank.
        worst: number of utterances in the report.
        metric: what chooses the best checkpoint: "wer" (word errors), "cer" (letter errors), or "wer_cer", their mean:
            while nearly all words are wrong, their errors say nothing and the letters decide; later, words weigh more,
            because several times as many of them are wrong.

    Attributes:
        decoder: decodes the (T, C) log-probabilities of a clip into text; greedy decoding by default.
    """

    higher_is_better = False
    columns = ("predicted", "said")

    def __init__(self, labels: str, worst: Count = 20, metric: ErrorRate = "wer_cer") -> None:
        require_jiwer()  # otherwise a run would fail at its first scoring
        self.metric = metric
        self.letters = check_letters(labels)
        self.decoder: Decoder = self.best_path
        self.worst = worst

    @property
    def num_outputs(self) -> int:
        """Number of letters, plus one for the blank."""
        return len(self.letters) + 1

    def best_path(self, log_probs: Tensor) -> str:
        """Decode greedily: the best letter of each frame, repeats merged, blanks dropped."""
        best = torch.unique_consecutive(log_probs.argmax(-1))
        return " ".join(unspell(best.tolist(), self.letters).split())

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Return the CTC loss, summed; the mean is over letters as in the reference. Too short clips add 0."""
        assert batch.labels is not None
        num_frames = _num_frames(outputs, batch)
        real = batch.labels != NO_LETTER
        total = F.ctc_loss(
            outputs.float().log_softmax(-1).transpose(0, 1),
            batch.labels.clamp(min=0),
            num_frames,
            real.sum(1),
            blank=BLANK,
            reduction="sum",
            zero_infinity=True,
        )
        return Loss(total, real.sum())

    def predict(self, outputs: Tensor, batch: Batch) -> list[str]:
        """Return the transcript."""
        log_probs = outputs.float().log_softmax(-1).cpu()
        return [self.decoder(x[:n]) for x, n in zip(log_probs, _num_frames(outputs, batch).tolist(), strict=True)]

    def score(self, predictions: Sequence[str], labels: Sequence[Sequence[int]]) -> dict[str, float]:
        """Return word and letter error rates, and their mean if that is the metric."""
        rates = error_rates(predictions, [unspell(label, self.letters) for label in labels])
        mean = {"wer_cer": (rates["wer"] + rates["cer"]) / 2} if self.metric == "wer_cer" else {}
        return {**mean, **rates}

    def answer(self, prediction: str) -> str:
        """Return the decoded text."""
        return prediction

    def cells(self, prediction: str, label: Sequence[int] | None) -> tuple[str, ...]:
        """Return the decoded text, and the transcript."""
        return prediction, "" if label is None else unspell(label, self.letters)

    def report(self, predictions: Sequence[str], labels: Sequence[Sequence[int]], names: Sequence[str]) -> str:
        """Return the worst utterances, aligned with their transcripts, in Markdown."""
        return align_worst(predictions, [unspell(label, self.letters) for label in labels], names, self.worst)


def _num_frames(outputs: Tensor, batch: Batch) -> Tensor:
    """Return the number of frames of every clip, (B,) int64."""
    if batch.padding_mask is None:
        return torch.full((len(outputs),), outputs.shape[1], device=outputs.device)
    return (~batch.padding_mask).sum(1)
