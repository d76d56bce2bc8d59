"""Linear, kNN and CTC probes on features; each call returns the scores of one row of a results table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d2v.eval.ctc import ctc_probe
from d2v.eval.features import Layers, Pool
from d2v.eval.knn import knn_accuracy
from d2v.eval.linear import LinearProbe, linear_probe
from d2v.eval.tfidf import tfidf_knn, tfidf_linear
from d2v.runs.results import Row


@dataclass(frozen=True)
class Settings:
    """Settings of the probes.

    Attributes:
        linear: whether to run the linear probe.
        knn: whether to run the kNN probe.
        ctc: whether to run the CTC probe, on frames.
        k: number of neighbours.
        temperature: temperature of their votes.
        c_grid: inverse regularisation strengths to choose from, for the linear probe.
        ctc_epochs: epochs of the CTC probe.
        layers: layers to read, as in :func:`d2v.eval.features.extract`.
        pool: pooling of tokens, as in :func:`d2v.eval.features.extract`.
        seed: seed of the linear probe's inner split and of the order of clips.
        device: device of the encoder.
        bf16: whether to encode in bfloat16 autocast.
    """

    linear: bool = True
    knn: bool = True
    ctc: bool = False
    k: int = 20
    temperature: float = 0.07
    c_grid: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    ctc_epochs: int = 60
    layers: Layers = "last"
    pool: Pool = "mean"
    seed: int = 0
    device: str = "cpu"
    bf16: bool = False


@dataclass(frozen=True)
class Labelled:
    """Samples to classify.

    Attributes:
        x: (N, D) features; or texts, which are turned into TF-IDF vectors.
        y: (N,) int class labels.
    """

    x: Tensor | Sequence[str]
    y: Tensor


Split = tuple[Labelled, Labelled]  # training, validation
Tell = Callable[[str], None]


def classify(name: str, splits: Sequence[Split], settings: Settings, tell: Tell = lambda line: None) -> Row:
    """Return the accuracies "linear" and "knn", over all splits together, and how the linear ones were reached.

    Args:
        name: name of the row.
        splits: one split, or one for every held-out group.
        settings: settings of the probes.
        tell: called with a line before everything that takes long.
    """
    scores: dict[str, float] = {}
    fits: list[LinearProbe] = []
    tells = [_prefixed(tell, f"{name}: " + _which(i, len(splits))) for i in range(len(splits))]
    if settings.linear:
        fits = [_linear(*split, settings, tell_split) for split, tell_split in zip(splits, tells, strict=True)]
        scores["linear"] = _pooled(splits, [fit.accuracy for fit in fits])
    if settings.knn:
        found = [_knn(*split, settings, tell_split) for split, tell_split in zip(splits, tells, strict=True)]
        scores["knn"] = _pooled(splits, found)
    converged = all(fit.converged for fit in fits) if fits else None
    tried = f"c_grid=[{','.join(f'{c:g}' for c in settings.c_grid)}]"
    of_texts = any(not isinstance(train.x, Tensor) for train, _ in splits)
    notes = list(_doubts(fits, "what was tried" if of_texts else tried))
    return Row(name, scores, c=[fit.c for fit in fits], converged=converged, notes=notes)


def _doubts(fits: Sequence[LinearProbe], tried: str) -> Iterator[str]:
    """Return what makes the accuracies of fits doubtful."""
    for edge, beyond in (("smallest", "smaller"), ("largest", "larger")):
        at_edge = [fit.c for fit in fits if fit.edge == edge]
        if at_edge:
            yield f"C={at_edge[0]:g} is the {edge} of {tried}: a {beyond} one may be better"
    stopped = sum(not fit.converged for fit in fits)
    if stopped:
        of_all = f"in {stopped} of {len(fits)} fits " if len(fits) > 1 else ""
        yield f"the linear probe did not converge {of_all}within its iterations: the accuracy is that of an early stop"


def _pooled(splits: Sequence[Split], accuracies: Sequence[float]) -> float:
    """Return the accuracy over the validation samples of all splits."""
    counts = [len(val.y) for _, val in splits]
    return sum(accuracy * n for accuracy, n in zip(accuracies, counts, strict=True)) / sum(counts)


def _which(i: int, count: int) -> str:
    return f"split {i + 1} of {count}, " if count > 1 else ""


def _prefixed(tell: Tell, prefix: str) -> Tell:
    return lambda line: tell(prefix + line)


def _linear(train: Labelled, val: Labelled, settings: Settings, tell: Tell) -> LinearProbe:
    tell("linear probe")
    if isinstance(train.x, Tensor) and isinstance(val.x, Tensor):
        return linear_probe(train.x, train.y, val.x, val.y, settings.c_grid, settings.seed, tell=tell)
    return tfidf_linear(_texts(train.x), train.y, _texts(val.x), val.y, seed=settings.seed)


def _knn(train: Labelled, val: Labelled, settings: Settings, tell: Tell) -> float:
    tell("kNN probe")
    if isinstance(train.x, Tensor) and isinstance(val.x, Tensor):
        return knn_accuracy(train.x, train.y, val.x, val.y, settings.k, settings.temperature)
    return tfidf_knn(_texts(train.x), train.y, _texts(val.x), val.y, settings.k, settings.temperature)


def _texts(x: Tensor | Sequence[str]) -> list[str]:
    assert not isinstance(x, Tensor)
    return list(x)


def hold_out_groups(data: Labelled, groups: Sequence[str]) -> list[Split]:
    """Return one split for every group: training on the other groups, validation on this one.

    Raises:
        ValueError: there is only one group.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise ValueError(f"group_pattern found only the group {names[0]!r}; to hold one out takes at least two")

    def part(chosen: Tensor) -> Labelled:
        if isinstance(data.x, Tensor):
            return Labelled(data.x[chosen], data.y[chosen])
        return Labelled([data.x[i] for i in chosen.nonzero().flatten().tolist()], data.y[chosen])

    held_out = [torch.tensor([group == name for group in groups]) for name in names]
    return [(part(~mask), part(mask)) for mask in held_out]


def transcribe(
    name: str,
    train: tuple[Sequence[Tensor], Sequence[str]],
    val: tuple[Sequence[Tensor], Sequence[str]],
    settings: Settings,
) -> Row:
    """Return the "letter_error" of the CTC probe.

    Args:
        name: name of the row.
        train: frames and texts of the training clips.
        val: frames and texts of the validation clips.
        settings: settings of the probes.
    """
    probe = ctc_probe(*train, *val, epochs=settings.ctc_epochs, seed=settings.seed)
    return Row(name, {"letter_error": probe.letter_error})
