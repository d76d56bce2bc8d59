"""The best checkpoints by a metric stay beside the newest ones, through resumes, full disks and other metrics."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from d2v.interop.build import build
from d2v.interop.native import resolve_checkpoint
from d2v.lit.callbacks import probe
from d2v.runs.checkpoints import newest_intact_checkpoint

SCORES = [0.1, 0.5, 0.3, 0.2, 0.4, 0.45]
NAN = float("nan")


@pytest.fixture
def command(runs: ModuleType, images: Path) -> list[str]:
    """A run that is probed after every step and keeps the newest checkpoint, and the best."""
    return [
        *runs.folder_data(images), "callbacks=probe", "callbacks.probe.every_n_steps=1", "trainer.max_steps=6",
        "callbacks.checkpoint.keep=1", "callbacks.checkpoint.monitor=probe/knn",
    ]  # fmt: skip


def script(monkeypatch: pytest.MonkeyPatch, scores: Sequence[float]) -> None:
    """What the probe finds from now on."""
    found = iter(scores)
    monkeypatch.setattr(probe, "knn_accuracy", lambda *arguments: next(found))


def kept(runs: ModuleType, run: Path) -> list[int]:
    return [int(name[5:13]) for name in runs.checkpoints(run) if name.startswith("step-") and name.endswith(".ckpt")]


def best_of(checkpoint: dict[str, Any]) -> dict[int, float]:
    """The best steps that a checkpoint knows of, the best first, with their metric."""
    return {step: round(value, 6) for value, step in checkpoint["callbacks"]["CheckpointEvery"]["best"]}


@pytest.mark.parametrize(
    ("scores", "options", "steps", "best"),
    [
        (SCORES, [], [2, 6], 2),
        (SCORES, ["callbacks.checkpoint.keep_best=2"], [2, 6], 2),  # the newest is among the best
        (SCORES, ["callbacks.checkpoint.keep_best=3"], [2, 5, 6], 2),
        (SCORES, ["callbacks.checkpoint.mode=min", "callbacks.checkpoint.keep_best=2"], [1, 4, 6], 1),
        (SCORES, ["callbacks.checkpoint.keep=2", "callbacks.checkpoint.every_n_steps=3"], [2, 3, 6], 2),
        (SCORES, ["callbacks.checkpoint.keep=-1", "callbacks.checkpoint.every_n_steps=5"], [1, 2, 5, 6], 2),
        ([0.3] * 6, [], [1, 6], 1),  # the first of equals
        ([NAN, 0.2, NAN, 0.1, NAN, NAN], [], [2, 6], 2),
    ],
)
def test_the_best_stay(
    runs: ModuleType, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch,
    scores: list[float], options: list[str], steps: list[int], best: int,
) -> None:  # fmt: skip
    script(monkeypatch, scores)
    run = runs.pretrain(tmp_path, *command, *options)
    assert kept(runs, run) == steps
    folder = run / "checkpoints"
    assert (folder / "best.ckpt").resolve() == (folder / f"step-{best:08d}.ckpt").resolve()
    assert torch.load(resolve_checkpoint(run), weights_only=True)["global_step"] == best  # what checkpoint=RUN means
    assert newest_intact_checkpoint(folder) == folder / "step-00000006.ckpt"
    assert not list(folder.glob(".*.part"))


def test_a_score_counts_for_its_own_step_only(
    runs: ModuleType, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints in between are saved with other weights than those that were probed."""
    script(monkeypatch, [0.5, 0.1])
    often = ["callbacks.probe.every_n_steps=3", "callbacks.checkpoint.every_n_steps=2"]
    run = runs.pretrain(tmp_path, *command, *often, "callbacks.checkpoint.keep_best=3", "trainer.max_steps=7")
    assert kept(runs, run) == [3, 6, 7]


@pytest.mark.parametrize("how", ["resume=auto", "checkpoint"])
def test_a_resumed_run_knows_them(
    runs: ModuleType, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It goes on from the newest, after the best, and does not let go of it."""
    script(monkeypatch, SCORES[:3])
    more = ["callbacks.checkpoint.keep_best=2", "schedule.max_steps=6"]
    run = runs.pretrain(tmp_path, *command, *more, "trainer.max_steps=3")
    assert kept(runs, run) == [2, 3]
    script(monkeypatch, SCORES[3:])
    longer = [*command, *more, "trainer.max_steps=6", f"resume={run}"]
    assert runs.pretrain(tmp_path, *longer) == run
    assert kept(runs, run) == [2, 6]
    end = runs.load(run, 6)
    assert best_of(end) == {2: 0.5, 6: 0.45}
    if how == "checkpoint":  # the best one can be gone on from, too
        script(monkeypatch, SCORES[2:])
        runs.pretrain(tmp_path, *longer[:-1], f"resume={run / 'checkpoints' / 'best.ckpt'}")
        again = runs.load(run, 6)
        assert best_of(again) == {2: 0.5, 6: 0.45}
        assert not runs.differences(again["state_dict"], end["state_dict"])
    else:
        said = runs.d2v_command("pretrain", f"output_dir={tmp_path}", *runs.TINY, *longer[:-1], how)
        assert "step-00000006.ckpt" in said.out + said.err


def test_a_best_one_that_is_gone_is_forgotten(
    runs: ModuleType, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, SCORES[:3])
    run = runs.pretrain(tmp_path, *command, "trainer.max_steps=3", "schedule.max_steps=6")
    (run / "checkpoints" / "step-00000002.ckpt").unlink()
    assert resolve_checkpoint(run) == run / "checkpoints" / "step-00000003.ckpt"
    script(monkeypatch, SCORES[3:])
    runs.pretrain(tmp_path, *command, "schedule.max_steps=6", f"resume={run}")
    assert kept(runs, run) == [6]
    assert torch.load(resolve_checkpoint(run), weights_only=True)["global_step"] == 6


def test_they_stay_where_none_is_monitored_any_more(
    runs: ModuleType, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume without the option deletes nothing that it was given for, nor do resumes after it."""
    script(monkeypatch, SCORES[:3])
    run = runs.pretrain(tmp_path, *command, "trainer.max_steps=3", "schedule.max_steps=6")
    plain = [o for o in command if "probe" not in o]
    plain += ["callbacks.probe=null", "callbacks.checkpoint.monitor=null"]
    for steps in (5, 6):
        runs.pretrain(tmp_path, *plain, f"trainer.max_steps={steps}", "schedule.max_steps=6", f"resume={run}")
        assert kept(runs, run) == [2, steps]
        assert best_of(runs.load(run, steps)) == {2: 0.5}
        assert torch.load(resolve_checkpoint(run), weights_only=True)["global_step"] == 2


def test_no_link_to_what_is_best_by_something_else(
    runs: ModuleType, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, SCORES[:3])
    command = [*command, "schedule.max_steps=6", "callbacks.checkpoint.keep=-1"]
    run = runs.pretrain(tmp_path, *command, "trainer.max_steps=3")
    first = run / "checkpoints" / "step-00000002.ckpt"
    script(monkeypatch, SCORES[3:])
    other = ["callbacks.checkpoint.monitor=train/lr", "callbacks.checkpoint.mode=min"]
    runs.pretrain(tmp_path, *command, "trainer.max_steps=4", *other, f"resume={run}")
    assert first.exists()
    assert (run / "checkpoints" / "best.ckpt").resolve() != first.resolve()


def test_a_checkpoint_that_is_not_there_is_not_replaced_by_another(
    runs: ModuleType, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, SCORES[:3])
    run = runs.pretrain(tmp_path, *command, "trainer.max_steps=3", "schedule.max_steps=6")
    gone = run / "checkpoints" / "step-00000001.ckpt"
    result = runs.d2v_command("pretrain", *runs.TINY, *command, "schedule.max_steps=6", f"resume={gone}")
    assert result.status == 1
    assert f"resume={gone}: no such file" in result.err


def test_another_metric_starts_anew(
    runs: ModuleType, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, SCORES[:3])
    run = runs.pretrain(tmp_path, *command, "trainer.max_steps=3", "schedule.max_steps=6")
    script(monkeypatch, SCORES[3:])
    other = ["callbacks.checkpoint.monitor=train/lr", "callbacks.checkpoint.mode=min"]
    said = runs.d2v_command("pretrain", *runs.TINY, *command, "schedule.max_steps=6", *other, f"resume={run}")
    assert said.status in (0, None), said.err
    assert "best by probe/knn (max) are no longer kept" in said.out + said.err
    assert list(best_of(runs.load(run, 6))) == [6]
    assert kept(runs, run) == [6]


def test_a_best_one_that_cannot_be_written_is_not_one(
    runs: ModuleType, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before stays, and stays the best."""
    script(monkeypatch, SCORES)
    save = torch.save

    def full(content: dict[str, object], file: object) -> None:
        if content["global_step"] == 2:
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    run = runs.pretrain(tmp_path, *command, "callbacks.checkpoint.keep_best=2")
    assert kept(runs, run) == [5, 6]
    assert best_of(runs.load(run, 6)) == {6: 0.45, 5: 0.4}


def test_a_file_system_without_links_costs_only_the_link(
    runs: ModuleType, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    script(monkeypatch, SCORES)
    result = runs.d2v_command("pretrain", f"output_dir={tmp_path}", *runs.TINY, *command)
    assert result.status in (0, None), result.err
    assert "best.ckpt could not be made a link to step-00000002.ckpt" in result.out + result.err
    (run,) = (tmp_path / "image_tiny").iterdir()
    assert runs.checkpoints(run) == ["step-00000002.ckpt", "step-00000006.ckpt"]


def test_a_copied_run_goes_on(
    runs: ModuleType, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying may make the link a file."""
    script(monkeypatch, SCORES[:3])
    run = runs.pretrain(tmp_path / "a", *command, "trainer.max_steps=3", "schedule.max_steps=6")
    copy = tmp_path / "b" / "image_tiny" / "run"
    shutil.copytree(run, copy)
    script(monkeypatch, [0.2, 0.9, 0.4])
    runs.pretrain(tmp_path / "b", *command, "schedule.max_steps=6", f"resume={copy}")
    assert kept(runs, copy) == [5, 6]
    assert torch.load(resolve_checkpoint(copy), weights_only=True)["global_step"] == 5


@pytest.mark.parametrize("probed", [True, False])
def test_an_unknown_metric_is_named_with_the_known_ones(
    runs: ModuleType, images: Path, tmp_path: Path, probed: bool
) -> None:
    """At the first logged step, also where the probe comes much later."""
    name, callbacks = ("probe/acc", "probe") if probed else ("probe/knn", "default")
    result = runs.d2v_command(
        "pretrain", f"output_dir={tmp_path}", *runs.TINY, *runs.folder_data(images), f"callbacks={callbacks}",
        f"callbacks.checkpoint.monitor={name}",
    )  # fmt: skip
    assert result.status == 1
    assert f"d2v: error: callbacks.checkpoint.monitor={name}: no such metric" in result.err
    assert "Traceback" not in result.err + result.out
    listed = result.err.partition("choose one of ")[2].partition(", or null")[0].split(", ")
    assert {"train/loss", "train/relative_spread", "perf/samples_per_s"} < set(listed)
    assert ("probe/knn" in listed) == probed
    assert "step 2/" not in result.err


@pytest.mark.parametrize(
    ("options", "key"), [({"mode": "most"}, "mode=most.*one of max, min"), ({"keep_best": 0}, "keep_best=0.*from 1")]
)
def test_values_out_of_range(tmp_path: Path, options: dict[str, object], key: str) -> None:
    node = {"_target_": "d2v.lit.callbacks.checkpoint.CheckpointEvery", **options}
    with pytest.raises(ValueError, match=rf"callbacks\.checkpoint\.{key}"):
        build(node, {"run_dir": tmp_path}, key="callbacks.checkpoint")
