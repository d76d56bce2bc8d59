"""Words of a command that resumes, composed by Hydra; and ``resume=RUN`` alone, end to end."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from d2v.cli.resume_words import loosened, names_a_run
from d2v.cli.resuming import composed_of, leave_words_of_writing, words_of
from d2v.data.texts.tokenizer import train_tokenizer
from d2v.runs.listing import ENDED
from d2v.runs.resuming import Words


@pytest.mark.parametrize(
    ("command", "given", "wanted"),
    [
        ("pretrain", ["resume=auto", "optim.lr=1"], ["resume=auto", "optim.lr=1"]),
        ("pretrain", ["optim.lr=1"], ["optim.lr=1"]),
        (
            "pretrain", ["resume=R", "data.root=/a.b=c", "seed=1", "~callbacks.probe", "+x.y=1", "hydra.run.dir=d"],
            ["resume=R", "++data.root=/a.b=c", "seed=1", "~callbacks.probe", "+x.y=1", "hydra.run.dir=d",
             "hydra.output_subdir=null"],
        ),
        ("finetune", ["resume=R"], ["resume=R", "hydra.output_subdir=null", "~task", "++task_name=null"]),
        ("finetune", ["resume=R", "task=ctc"], ["resume=R", "task=ctc", "hydra.output_subdir=null"]),
        ("extract", ["checkpoint=R", "data.root=D"], ["checkpoint=R", "++data.root=D"]),
        ("extract", ["data=image_folder", "data.root=D"], ["data=image_folder", "data.root=D"]),
        ("export", ["data.root=D"], ["data.root=D"]),
    ],
)  # fmt: skip
def test_keys_that_only_the_run_has_can_be_given(command: str, given: list[str], wanted: list[str]) -> None:
    assert loosened(command, given) == wanted
    assert loosened(command, loosened(command, given)) == wanted  # further devices run the words anew


@pytest.mark.parametrize(
    ("words", "found"),
    [([], False), (["resume=auto"], False), (["resume=null"], False), (["resume='a b'"], True),
     (["resume=auto", "resume=R"], True)],
)  # fmt: skip
def test_a_run_is_named_or_not(words: list[str], found: bool) -> None:
    assert names_a_run(words) == found


def test_which_words_count(runs: ModuleType) -> None:
    overrides = [
        "data=image_folder", "data.root=/a", "++optim.lr=1", "experiment=image_tiny", "~callbacks.health",
        "callbacks=probe", "launcher=slurm", "data.label_fraction=0.5",
    ]  # fmt: skip
    choices = {"data": "image_folder", "experiment": "image_tiny", "callbacks": "probe", "launcher": "slurm"}
    own = {"data": "image_folder", "experiment": "text_tiny", "callbacks": "default"}
    assert words_of(overrides, choices, own, {"mask": {}}) == Words(
        ["data.root", "optim.lr", "label_fraction"], ["", "callbacks"], ["callbacks.health"]
    )


def test_what_cannot_be_resolved_is_left(runs: ModuleType) -> None:
    with runs.configuration("finetune", "task=image_classification") as cfg:
        composed = composed_of(cfg)
    assert composed["checkpoint"] == "???"
    assert composed["data"]["root"] == "???"
    assert composed["optim"]["lr"] == 1e-3
    with runs.configuration("pretrain", "model=data2vec2/text_tiny") as cfg:
        composed = composed_of(cfg)
    assert composed["model"]["encoder"]["frontends"]["text"]["vocab_size"] == "${data.vocab_size}"


def test_a_file_does_not_say_where_to_write(caplog: pytest.LogCaptureFixture) -> None:
    data = {"root": "/a", "cache": "/home/theirs", "download": True}
    leave_words_of_writing(data, {}, "R")
    assert data == {"root": "/a"}
    assert "data.cache=/home/theirs of resume=R is not taken from a file: give it anew" in caplog.text
    data = {"cache": "/home/mine"}
    leave_words_of_writing(data, {"data": {"cache": "/home/mine"}}, "R")
    assert data == {"cache": "/home/mine"}


def _finish(runs: ModuleType, *words: str | Path) -> str:
    result = runs.d2v_command(*words)
    assert result.status in (0, None), result.err
    return result.out + result.err


@pytest.fixture(scope="module")
def run(runs: ModuleType, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps on images of a folder, with a checkpoint in between."""
    return runs.pretrain(
        tmp_path_factory.mktemp("run"), *runs.folder_data(images), "callbacks.checkpoint.every_n_steps=2"
    )


@pytest.fixture
def stopped(run: Path, tmp_path: Path) -> Path:
    """A copy of it, after two steps."""
    copy = tmp_path / "image_tiny" / "copy"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "step-00000004.ckpt").unlink()
    return copy


def test_a_run_goes_on_by_its_name_alone(runs: ModuleType, run: Path, stopped: Path, images: Path) -> None:
    before = yaml.safe_load((stopped / "config.yaml").read_text())
    overrides = (stopped / ".hydra" / "overrides.yaml").read_bytes()
    said = _finish(runs, "pretrain", f"resume={stopped}")
    assert str(images / "train") in said
    whole, end = runs.load(run, 4), runs.load(stopped, 4)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert not runs.differences(whole[part], end[part])
    after = yaml.safe_load((stopped / "config.yaml").read_text())
    assert after == before
    assert (stopped / ".hydra" / "overrides.yaml").read_bytes() == overrides
    assert runs.checkpoints(stopped) == runs.checkpoints(run)


def _content(folder: Path) -> dict[Path, bytes]:
    """Files of a run, but for what it logs and how it ended."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log" and path.name != ENDED)
    return {path: path.read_bytes() for path in files}


def test_what_is_not_the_runs_is_refused_before_anything_is_written(
    runs: ModuleType, stopped: Path, images: Path, tmp_path: Path
) -> None:
    before = _content(stopped)
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    (moved / "train" / "dark" / "0.png").unlink()
    for words, said in (
        (["seed=5", "experiment=text_tiny"], "seed=5: the run that is resumed has 0"),
        ([f"data.root={moved}"], "the data had 24 samples, now 23"),
    ):
        result = runs.d2v_command("pretrain", f"resume={stopped}", *words)
        assert result.status == 1
        assert said in result.err
        assert "init_from=" in result.err
    assert _content(stopped) == before
    said = _finish(runs, "pretrain", f"resume={stopped}", f"data.root={moved}", "resume_with_other_data=true")
    assert "the data had 24 samples, now 23" in said
    assert "resumed with data.root=" in said


def test_a_fine_tuning_run_goes_on_without_what_it_began_with(
    runs: ModuleType, run: Path, images: Path, tmp_path: Path
) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(run, encoder)
    words = [
        "finetune", "task=image_classification", *runs.folder_data(images), "global_batch_size=8",
        "trainer.max_steps=4", "schedule.warmup_fraction=0", "optim.lr=3e-3", "optim.layer_decay=1",
        "trainer.accelerator=cpu", "trainer.precision=32-true", "num_threads=1", "callbacks.score.every_n_steps=2",
        "callbacks.checkpoint.every_n_steps=2", "callbacks.checkpoint.keep=-1", f"checkpoint={encoder}",
        "data.label_fraction=0.5",
    ]  # fmt: skip
    whole = tmp_path / "whole"
    _finish(runs, *words, f"hydra.run.dir={whole}")
    shutil.rmtree(encoder)
    for name, command in (("alone", ["finetune"]), ("again", words)):
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        (folder / "checkpoints" / "step-00000004.ckpt").unlink()
        (folder / "results.json").unlink()
        _finish(runs, *command, f"resume={folder}")
        assert not runs.differences(runs.load(whole, 4)["state_dict"], runs.load(folder, 4)["state_dict"])
        assert (folder / "results.json").read_text() == (whole / "results.json").read_text()


def test_classes_of_a_file_are_refused(runs: ModuleType, stopped: Path, tmp_path: Path) -> None:
    """A checkpoint may name what is marked as buildable, and nothing that the user did not name."""
    path = stopped / "checkpoints" / "step-00000002.ckpt"
    content: Any = torch.load(path, weights_only=True)
    canary = tmp_path / "canary"
    for node in ({"_target_": "os.mkdir", "path": str(canary)}, {"_target_": "builtins.open", "file": str(canary)}):
        content["d2v"]["config"]["data"]["mean"] = node
        torch.save(content, path)
        result = runs.d2v_command("pretrain", f"resume={stopped}")
        assert result.status == 1
        assert "refused" in result.err
        assert not canary.exists()
    content["d2v"]["config"]["data"]["mean"] = "${oc.env:HOME}"
    torch.save(content, path)
    result = runs.d2v_command("pretrain", f"resume={stopped}")
    assert result.status == 1
    assert "${oc.env:HOME}" in result.err


def test_relative_paths_are_kept_absolute(
    runs: ModuleType, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    words = [o for o in runs.folder_data(images) if not o.startswith("data.root=")]
    run = runs.pretrain(Path("out"), *words, f"data.root={images.name}", "trainer.max_steps=1")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["root"] == str(images)
    assert config["output_dir"] == str(images.parent / "out")
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "f.npz"
    _finish(runs, "extract", f"checkpoint={images.parent / run}", f"output={output}")
    monkeypatch.undo()
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    said = _finish(runs, "extract", f"checkpoint={images.parent / run}", f"output={output}", f"data.root={moved}")
    assert str(moved) in said


def test_more_warm_up_than_steps(runs: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refused = runs.d2v_command("pretrain", *runs.TINY, f"output_dir={tmp_path}", "schedule.warmup_steps=4")
    assert "schedule.warmup_steps=4 of trainer.max_steps=4: all warm-up" in refused.err
    short = [word for word in runs.TINY if not word.startswith("schedule.")]
    with caplog.at_level(logging.WARNING):
        said = _finish(runs, "pretrain", *short, f"output_dir={tmp_path}", "trainer.max_steps=2")
    assert "the learning rate ends at 0.02 of its peak" in said + caplog.text


def test_another_tokenizer_than_the_weights_have(runs: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    text = runs.text_file(tmp_path / "t.txt", 400)
    for name, words in (("a", ["the cat sees"]), ("b", ["dog runs away"])):
        (tmp_path / f"{name}.json").write_text(train_tokenizer(words, 270).to_json())
    common = [
        "experiment=text_tiny", "data=text_files", f"data.root={text}", "data.vocab_size=280", *runs.SMALL["text"],
        f"data.cache={tmp_path / 'cache'}", "global_batch_size=4", "trainer.max_steps=1", "schedule.warmup_steps=1",
        "trainer.accelerator=cpu", "num_threads=1", "callbacks.health.min_spread=null",
    ]  # fmt: skip
    run, other = tmp_path / "run", f"data.tokenizer={tmp_path / 'b.json'}"
    _finish(runs, "pretrain", *common, f"data.tokenizer={tmp_path / 'a.json'}", f"hydra.run.dir={run}")
    refused = runs.d2v_command("pretrain", f"resume={run}", other, "resume_with_other_data=true")
    assert "the tokenizer is another one" in refused.err
    said = _finish(runs, "pretrain", *common, other, f"init_from={run}", f"hydra.run.dir={tmp_path / 'new'}")
    assert f"{other} is another tokenizer than the one that the weights of init_from={run}" in said
    extract = ["extract", f"checkpoint={run}", f"output={tmp_path / 'f.npz'}", "split=train"]
    refused = runs.d2v_command(*extract, other)
    assert "data.tokenizer: is another tokenizer than the one that checkpoint=" in refused.err
    same = f"data.tokenizer={tmp_path / 'a.json'}"
    assert "features" in _finish(runs, *extract, "data=text_files", f"data.root={text}", "data.vocab_size=280", same)
    _finish(runs, "pretrain", f"resume={run}", "trainer.max_steps=2", same)
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["tokenizer"] == str(tmp_path / "a.json")
    _finish(runs, "pretrain", f"resume={run}")  # its own, which is in the checkpoint
