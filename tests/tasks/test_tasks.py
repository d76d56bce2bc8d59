import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.data.letters import LETTERS, spell, unspell
from d2v.interop.build import build
from d2v.tasks.classification import Classification, Regression
from d2v.tasks.results import score_and_write
from d2v.tasks.scoring import Diverged, judge, predict, score, write_predictions
from d2v.tasks.transcription import Transcription
from d2v.types import NO_LETTER, Batch

CLASSES = ("cat", "dog", "owl")
CPU = torch.device("cpu")


def labelled(labels: Tensor | None, count: int = 3, ids: list[int] | None = None) -> Batch:
    return Batch("image", torch.zeros(count, 1), torch.tensor(ids or list(range(count))), labels=labels)


def test_cross_entropy_is_a_sum_over_samples() -> None:
    outputs, labels = torch.randn(3, 3), torch.tensor([0, 2, 1])
    found = Classification(CLASSES).loss(outputs, labelled(labels))
    torch.testing.assert_close(found.sum, -outputs.log_softmax(1)[range(3), labels].sum())
    assert int(found.count) == 3
    smooth = Classification(CLASSES, label_smoothing=0.1).loss(outputs, labelled(labels)).sum
    shares = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
    torch.testing.assert_close(smooth, -(shares * outputs.log_softmax(1)).sum())
    mixed = Classification(CLASSES, label_smoothing=0.1).loss(outputs, labelled(shares)).sum
    torch.testing.assert_close(mixed, smooth)  # what is mixed is not smoothed again


def test_regression_learns_shares_and_predicts_scores() -> None:
    task = Regression((0.0, 5.0))
    found = task.loss(torch.tensor([[0.5], [1.0]]), labelled(torch.tensor([2.5, 4.0]), 2))
    torch.testing.assert_close(found.sum, torch.tensor(0.04))
    assert task.predict(torch.tensor([[0.5], [1.2]]), labelled(None, 2)) == pytest.approx([2.5, 6.0])


def test_ctc_reads_real_frames_only() -> None:
    task = Transcription(LETTERS)
    numbers = [spell(text, LETTERS, "") for text in ("AB", "CAB")]
    labels = torch.tensor([[*numbers[0], NO_LETTER], numbers[1]])
    outputs = torch.randn(2, 8, task.num_outputs)
    padding = torch.arange(8) >= torch.tensor([[5], [8]])
    batch = Batch("speech", torch.zeros(2, 1), torch.arange(2), padding_mask=padding, labels=labels)
    found = task.loss(outputs, batch)
    parts = [
        F.ctc_loss(
            outputs[i, :n].log_softmax(-1).unsqueeze(1), torch.tensor([numbers[i]]), [n], [len(numbers[i])],
            reduction="sum",
        )
        for i, n in enumerate((5, 8))
    ]  # fmt: skip
    torch.testing.assert_close(found.sum, sum(parts, torch.tensor(0.0)))
    assert int(found.count) == 5
    other = outputs.clone()
    other[0, 5:] = 9.0
    assert task.predict(outputs, batch) == task.predict(other, batch)


def test_the_best_path_merges_repeats_and_drops_blanks() -> None:
    task = Transcription(LETTERS)
    best = [0, 2, 2, 0, 2, 3, 1, 1, 0, 1, 4, 4]  # A A B _ _ C
    log_probs = F.one_hot(torch.tensor(best), task.num_outputs).float().log_softmax(-1)
    assert task.best_path(log_probs) == "AAB C"


class Lookup(nn.Module):
    """Outputs by the sample's number."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, batch: Batch) -> Tensor:
        return self.outputs[batch.sample_ids]


def test_scores_are_in_the_datas_order(tmp_path: Path) -> None:
    outputs = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [0, 3, 0]])
    batches = [labelled(torch.tensor([2, 0]), 2, [3, 0]), labelled(torch.tensor([1]), 1, [2])]
    task = Classification(CLASSES, metric="accuracy")
    found = score(Lookup(outputs), task, batches, CPU)
    assert found.sample_ids == [0, 2, 3]
    assert found.labels == [0, 1, 2]
    assert found.scores == {"accuracy": pytest.approx(1 / 3)}
    path = write_predictions(tmp_path / "p.tsv", found, task, lambda i: f"#{i}")
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert rows[0] == ["sample", "predicted", "probability", "label"]
    assert [(row[0], row[1], row[3]) for row in rows[1:]] == [
        ("#0", "cat", "cat"),
        ("#2", "owl", "dog"),
        ("#3", "dog", "owl"),
    ]
    with pytest.raises(Diverged, match=r"outputs are not finite: lower lr"):
        score(Lookup(outputs * float("nan")), task, batches, CPU)
    with pytest.raises(ValueError, match="no sample to score"):
        score(Lookup(outputs), task, [], CPU)
    with pytest.raises(ValueError, match="some of the samples to score have no label"):
        score(Lookup(outputs), task, [*batches, replace(batches[1], labels=None)], CPU)


def test_shares_are_judged_together() -> None:
    """One process may have nothing to do."""
    outputs = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [0, 3, 0]])
    batches = [labelled(torch.tensor([2, 0]), 2, [3, 0]), labelled(torch.tensor([1]), 1, [2])]
    task, model = Classification(CLASSES, metric="accuracy"), Lookup(outputs)
    batches[1] = replace(batches[1], skipped=("bad: empty",))
    parts = [predict(model, task, share, CPU) for share in (batches[1:], [], batches[:1])]
    found, whole = judge(task, parts), score(model, task, batches, CPU)
    assert (found.sample_ids, found.labels, found.scores) == (whole.sample_ids, whole.labels, whole.scores)
    assert [p.argmax() for p in found.predictions] == [p.argmax() for p in whole.predictions]
    assert found.skipped == ("bad: empty",)
    diverged = predict(Lookup(outputs * float("inf")), task, batches[:1], CPU)
    with pytest.raises(Diverged, match="not finite"):
        judge(task, [*parts, diverged])


class Batches(list[Batch]):
    """A loader of an evaluation set: batches, and the samples in them."""

    @property
    def dataset(self) -> list[Any]:
        return [sample_id for batch in self for sample_id in batch.sample_ids]


class TwoSets:
    """An evaluation set with labels, and one without."""

    submission = None

    def __init__(self, batches: dict[str, list[Batch]]) -> None:
        self.batches = batches
        self.evals = dict.fromkeys(batches, self)
        self.submitted: dict[str, list[int]] = {}

    def eval_loader(self, name: str, num_workers: int) -> Batches:
        return Batches(self.batches[name])

    def __len__(self) -> int:
        return 3

    def name(self, index: int) -> str:
        return str(index)


def test_results_hold_every_set(tmp_path: Path) -> None:
    outputs = torch.eye(3) * 5
    data = TwoSets({"val": [labelled(torch.tensor([0, 1, 1]))], "test": [labelled(None)]})
    data.submission = lambda folder, name, answers: data.submitted.update({name: answers})  # type: ignore[assignment]
    table = score_and_write(tmp_path, Lookup(outputs), Classification(CLASSES), data, CPU, step=7)
    results = json.loads((tmp_path / "results.json").read_text())
    val, test = results.pop("rows")
    assert results == {"step": 7}
    assert val["scores"] == {"top1": pytest.approx(2 / 3)}
    common = {"name": "fine-tuned model", "metric": "top1", "samples": 3}
    assert val == {**common, "set": "val", "scores": val["scores"]}
    assert test == {**common, "set": "test", "scores": {}}
    assert data.submitted == {"test": [0, 1, 2]}
    assert "| val |     66.7 |" in table
    assert table == (tmp_path / "results.md").read_text()
    assert (tmp_path / "predictions_test.tsv").is_file()
    assert "| dog | 2 | 100.0 | 50.0 |" in (tmp_path / "report_val.md").read_text()
    assert (tmp_path / "confusion_val.png").read_bytes().startswith(b"\x89PNG")


def test_the_worst_transcripts_are_shown() -> None:
    task = Transcription(LETTERS, worst=1)
    labels = [list(spell(text, LETTERS, "")) for text in ("ONE TWO", "SIX")]
    rates = {"wer": pytest.approx(1 / 3), "cer": pytest.approx(4 / 10)}
    assert task.score(["ONE", "SIX"], labels) == {"wer_cer": pytest.approx((1 / 3 + 4 / 10) / 2), **rates}
    for metric in ("wer", "cer"):
        chosen = Transcription(LETTERS, metric=metric)  # type: ignore[arg-type]
        assert (chosen.metric, chosen.score(["ONE", "SIX"], labels)) == (metric, rates)
    assert "`a`: 1 word errors" in task.report(["ONE", "SIX"], labels, ["a", "b"])
    assert task.cells("ONE", labels[0]) == ("ONE", "ONE TWO")
    assert unspell(labels[1], LETTERS) == "SIX"


def test_letters_decide_while_all_words_are_wrong_and_words_later() -> None:
    """Silence has word errors of 1; letters that are half right have more, with each insertion."""
    task = Transcription(LETTERS)
    labels = [list(spell(text, LETTERS, "")) for text in ("ONE TWO", "SIX SEVEN")]

    def error(*said: str) -> float:
        return task.score(said, labels)[task.metric]

    silence, letters = error("", ""), error("O NE TW", "SI SEVN")
    assert task.score(["O NE TW", "SI SEVN"], labels)["wer"] > task.score(["", ""], labels)["wer"]
    assert letters < silence
    assert error("ONE TWO", "SIX SEVN") < error("ONE TWO", "SIC SEVN") < letters  # one word wrong, then two


def test_what_cannot_be_a_task() -> None:
    with pytest.raises(ValueError, match="at least two"):
        Classification(("one",))
    with pytest.raises(ValueError, match=r"metric=best"):
        Classification(CLASSES, metric="best")
    with pytest.raises(ValueError, match=r"metric=accuracy_f1: is of two classes, and there are 3"):
        Classification(CLASSES, metric="accuracy_f1")
    node = {"_target_": "d2v.tasks.classification.Classification", "label_smoothing": 1.0}
    with pytest.raises(ValueError, match=r"task\.label_smoothing=1"):
        build(node, {"labels": CLASSES}, key="task")
