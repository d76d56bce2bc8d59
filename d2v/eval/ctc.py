"""Linear CTC probe: one linear layer from frozen frames to letters, trained by CTC (Graves et al. 2006).

Decoding is greedy: the best letter of each frame, repeats merged, blanks dropped. The score is the letter error: the
edits from the decoded text to the transcript, divided by the letters of the transcript.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.text import char_error_rate

BLANK = 0


@dataclass(frozen=True)
class CTCProbe:
    """Result of a CTC probe.

    Attributes:
        letter_error: edits divided by letters, on the validation clips; 0 is perfect, 1 is the score of silence.
        hypotheses: decoded text of every validation clip.
        losses: mean training loss of every epoch.
    """

    letter_error: float
    hypotheses: list[str]
    losses: list[float]


def ctc_probe(
    train_x: Sequence[Tensor],
    train_texts: Sequence[str],
    val_x: Sequence[Tensor],
    val_texts: Sequence[str],
    *,
    epochs: int = 60,
    lr: float = 0.02,
    batch_size: int = 16,
    seed: int = 0,
) -> CTCProbe:
    """Fit a linear layer on the frames of training clips and measure its letter error on the validation clips.

    Args:
        train_x: (T_i, D) float frames of every clip.
        train_texts: transcript of every clip; the alphabet is the set of their letters, including spaces.
        val_x: (T_i, D) float frames of the validation clips.
        val_texts: transcripts of the validation clips; letters outside the alphabet count as errors.
        epochs: passes over the training clips.
        lr: peak learning rate of Adam, falling to 0 by a cosine.
        batch_size: clips of a step.
        seed: seed of the order of batches, which hold clips of about the same length.

    Raises:
        ValueError: there are no training or no validation clips, or a text is empty.
    """
    for name, x, texts in (("training", train_x, train_texts), ("validation", val_x, val_texts)):
        if not x or len(x) != len(texts):
            raise ValueError(f"a CTC probe needs a text for every clip, got {len(x)} {name} clips, {len(texts)} texts")
        if not all(texts):
            raise ValueError(f"the {name} clip {list(texts).index('')} has an empty text: leave such clips out")
    alphabet = sorted(set("".join(train_texts)))
    number = {letter: i for i, letter in enumerate(alphabet, BLANK + 1)}
    targets = [torch.tensor([number[letter] for letter in text]) for text in train_texts]

    frames = torch.cat(list(train_x)).float()
    mean, std = frames.mean(0), frames.std(0, correction=0).clamp(min=1e-5)
    head = nn.Linear(frames.shape[1], len(alphabet) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)
    num_steps = epochs * -(-len(train_x) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    generator = torch.Generator().manual_seed(seed)
    by_length = sorted(range(len(train_x)), key=lambda i: len(train_x[i]))  # little padding in a batch
    batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    losses = []
    for _ in range(epochs):
        total = 0.0
        for place in torch.randperm(len(batches), generator=generator).tolist():
            chosen = batches[place]
            loss = _ctc_loss(head, [(train_x[i].float() - mean) / std for i in chosen], [targets[i] for i in chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        losses.append(total / len(train_x))
    with torch.no_grad():
        hypotheses = [greedy(head((x.float() - mean) / std), alphabet) for x in val_x]
    return CTCProbe(float(char_error_rate(hypotheses, list(val_texts))), hypotheses, losses)


def _ctc_loss(head: nn.Linear, clips: list[Tensor], targets: list[Tensor]) -> Tensor:
    lengths = torch.tensor([len(clip) for clip in clips])
    logits = head(nn.utils.rnn.pad_sequence(clips))  # (T, B, letters)
    return F.ctc_loss(
        logits.log_softmax(-1),
        torch.cat(targets),
        lengths,
        torch.tensor([len(target) for target in targets]),
        blank=BLANK,
        zero_infinity=True,  # a clip with fewer frames than letters teaches nothing
    )


def greedy(logits: Tensor, alphabet: Sequence[str]) -> str:
    """Decode (T, letters) scores, blank first, into text: the best of each frame, repeats merged, blanks dropped."""
    best = torch.unique_consecutive(logits.argmax(-1))
    return "".join(alphabet[i - 1] for i in best.tolist() if i != BLANK)
