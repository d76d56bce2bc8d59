"""``d2v finetune`` and ``d2v evaluate`` of what it made, end to end, on data that can be learned in seconds."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from d2v.interop.checkpoints import load_encoder
from d2v.interop.native import RunCheckpoint
from d2v.lit.callbacks import score
from d2v.runs.results import Results, read_results

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
QUICK = [
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.log_every_n_steps=1",
    "num_threads=1",
    "optim.layer_decay=1",
]
NO_NOISE = [
    "freeze_steps=0", "feature_mask=null", "head.drop_rate=0", "encoder.drop_rate=0", "encoder.post_mlp_drop_rate=0",
]  # fmt: skip
PLAIN = ["labels.augment.auto_augment=null", "labels.augment.erase_prob=0", "labels.augment.crop_scale=[0.8,1.0]"]
IMAGES = [
    "task=image_classification", "global_batch_size=8", "trainer.max_steps=6", "schedule.warmup_fraction=0",
    "optim.lr=3e-3", *QUICK, *PLAIN,
]  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(runs: ModuleType, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.pretrain(tmp_path_factory.mktemp("pretrained"), *runs.folder_data(images), "trainer.max_steps=2")


def _finetune(runs: ModuleType, folder: Path, *overrides: str) -> Path:
    result = runs.d2v_command("finetune", f"hydra.run.dir={folder}", *overrides)
    assert result.status in (0, None), result.err
    assert f"run: {folder}" in result.out
    return folder


def _pretrain(runs: ModuleType, folder: Path, *overrides: str) -> Path:
    """A checkpoint of speech or text."""
    common = ["num_threads=1", "trainer.accelerator=cpu", "trainer.precision=32-true", "callbacks.health=null"]
    result = runs.d2v_command("pretrain", f"output_dir={folder}", *overrides, *common, "schedule.warmup_steps=1")
    assert result.status in (0, None), result.err
    return Path(result.out.rpartition("run: ")[2].strip())


def _results(folder: Path) -> Results:
    results = read_results(folder)
    assert results is not None
    return results


@pytest.fixture(scope="module")
def finetuned(runs: ModuleType, images: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    return _finetune(
        runs, folder, *IMAGES, *runs.folder_data(images), f"checkpoint={pretrained}", "trainer.max_steps=30",
        "callbacks.score.every_n_steps=10",
    )  # fmt: skip


def test_images_are_learned_and_everything_is_written(finetuned: Path) -> None:
    results = _results(finetuned)
    assert results.row("val").metric == "top1"
    assert results.row("val").scores["top1"] >= 0.9  # dark and bright
    for name in ("results.md", "predictions_val.tsv", "report_val.md", "confusion_val.png", "config.yaml", "run.json"):
        assert (finetuned / name).stat().st_size > 0, name
    assert (finetuned / "checkpoints" / "best.ckpt").is_file()
    rows = (finetuned / "metrics.csv").read_text().splitlines()
    assert "val/top1" in rows[0]


def test_a_finetuned_checkpoint_is_scored_by_evaluate(
    runs: ModuleType, finetuned: Path, images: Path, tmp_path: Path
) -> None:
    found = runs.d2v_command(
        "evaluate", f"checkpoint={finetuned}", "num_workers=1", f"hydra.run.dir={tmp_path / 'own'}"
    )
    assert found.status in (0, None), found.err
    assert _results(tmp_path / "own").rows == _results(finetuned).rows
    predictions = "predictions_val.tsv"
    assert (tmp_path / "own" / predictions).read_text() == (finetuned / predictions).read_text()
    bare, there = images / "val", tmp_path / "bare"  # neither train/ nor val/ in it
    data = ["data=image_folder", f"data.root={bare}"]
    found = runs.d2v_command("evaluate", f"checkpoint={finetuned}", *data, f"hydra.run.dir={there}")
    assert found.status in (0, None), found.err
    assert _results(there).rows == _results(finetuned).rows
    assert f"12 images from {bare}" in found.out
    swapped = tmp_path / "swapped"
    for split in ("train", "val"):
        (swapped / split).mkdir(parents=True)
        (swapped / split / "dark").symlink_to(images / split / "dark")
        (swapped / split / "night").symlink_to(images / split / "light")
    other = runs.d2v_command("evaluate", f"checkpoint={finetuned}", "data=image_folder", f"data.root={swapped}")
    assert "it knows 2 classes (dark, light), and these data have others: night" in other.err
    probed = runs.d2v_command("evaluate", f"checkpoint={finetuned}", "probe=knn")
    assert "is fine-tuned, and is scored" in probed.err
    decoded = runs.d2v_command("evaluate", f"checkpoint={finetuned}", "decoder=beam")
    assert "only transcripts are decoded" in decoded.err


def test_its_encoder_can_be_taken_elsewhere(
    runs: ModuleType, finetuned: Path, pretrained: Path, tmp_path: Path
) -> None:
    encoder, before = load_encoder(finetuned), load_encoder(pretrained)
    assert any(not a.equal(b) for a, b in zip(encoder.parameters(), before.parameters(), strict=True))
    result = runs.d2v_command("export", f"checkpoint={finetuned}", f"output={tmp_path / 'export'}")
    assert result.status in (0, None), result.err
    exported = load_encoder(tmp_path / "export")
    assert all(a.equal(b) for a, b in zip(encoder.parameters(), exported.parameters(), strict=True))


def test_resuming_is_exact(
    runs: ModuleType, images: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best checkpoint, of a step before the resume, included."""
    monkeypatch.setattr(score, "_score", lambda trainer, module: {"top1": 1 / trainer.global_step})
    options = [*IMAGES, *runs.folder_data(images), f"checkpoint={pretrained}", "callbacks.checkpoint.every_n_steps=3"]
    options += ["callbacks.checkpoint.keep=-1", "encoder.drop_path_rate=0.2", "callbacks.score.every_n_steps=2"]
    whole = _finetune(runs, tmp_path / "whole", *options)
    halves = _finetune(runs, tmp_path / "halves", *options)
    (halves / "checkpoints" / "step-00000006.ckpt").unlink()
    (halves / "results.json").unlink()
    again = runs.d2v_command(
        "finetune", *options, f"resume={halves / 'checkpoints' / 'step-00000003.ckpt'}", f"hydra.run.dir={halves}"
    )
    assert again.status in (0, None), again.err
    assert runs.differences(runs.load(whole, 6)["state_dict"], runs.load(halves, 6)["state_dict"]) == []
    assert _results(whole) == _results(halves)
    assert _results(halves).about["step"] == 2
    best = [torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for run in (whole, halves)]
    assert runs.differences(*best) == []


def test_a_stop_while_scoring_is_exact(
    runs: ModuleType, images: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scoring that was interrupted is the first thing that the run which goes on does."""
    options = [*IMAGES, *runs.folder_data(images), f"checkpoint={pretrained}", "callbacks.checkpoint.every_n_steps=100"]
    options += ["callbacks.checkpoint.keep=-1", "callbacks.score.every_n_steps=2", "trainer.log_every_n_steps=1"]
    whole = _finetune(runs, tmp_path / "whole", *options)
    scorings, predict = itertools.count(1), score.predict

    def interrupted(model: Any, task: Any, batches: Any, device: Any) -> Any:
        if next(scorings) == 2:
            signal.raise_signal(signal.SIGTERM)
        return predict(model, task, batches, device)

    run = tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr(score, "predict", interrupted)
        result = runs.d2v_command("finetune", *options, f"hydra.run.dir={run}")
    assert result.status == 143, result.err
    assert f"stopped by SIGTERM after step 4 of 6\nto go on: d2v finetune resume={run}\n" in result.out
    assert not (run / "results.json").exists()
    result = runs.d2v_command("finetune", f"resume={run}")
    assert result.status in (0, None), result.err
    for name in ("step-00000006.ckpt", "best.ckpt"):
        a, b = (torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (whole, run))
        assert a["global_step"] == b["global_step"]
        assert runs.differences(a["state_dict"], b["state_dict"]) == []
    assert _results(whole).rows == _results(run).rows
    scored = [
        {row["step"]: row["val/top1"] for row in runs.metrics(folder) if row["val/top1"]} for folder in (whole, run)
    ]
    assert scored[0] == scored[1]
    assert scored[0].keys() == {"2", "4", "6"}


def test_from_scratch(runs: ModuleType, images: Path, tmp_path: Path) -> None:
    model = ["model=data2vec2/image_tiny", *[o for o in runs.MODEL if "encoder" in o]]
    model += ["data.patch_size=7", "checkpoint=null"]
    run = _finetune(runs, tmp_path / "run", *IMAGES, *runs.folder_data(images), *model)
    assert "from_scratch" not in _results(run).about
    missing = runs.d2v_command("finetune", *IMAGES, *runs.folder_data(images), "checkpoint=null")
    assert "choose the encoder by model=data2vec2/" in missing.err


def test_what_is_for_trained_encoders_is_refused_from_scratch(runs: ModuleType, images: Path) -> None:
    model = ["model=data2vec2/image_tiny", "checkpoint=null", "data.patch_size=7"]
    for key in ("train_frontend=false", "freeze_steps=1", "optim.layer_decay=0.5"):
        name = key.partition("=")[0]
        options = [o for o in IMAGES if not o.startswith(name)]
        result = runs.d2v_command("finetune", *options, *runs.folder_data(images), *model, key)
        assert f"checkpoint=null: {name}=" in result.err
    both = runs.d2v_command("finetune", *IMAGES, *runs.folder_data(images), model[0], "checkpoint=x")
    assert "the encoder is that of checkpoint=x" in both.err


def test_averaged_weights_are_scored_and_kept(runs: ModuleType, images: Path, pretrained: Path, tmp_path: Path) -> None:
    options = [*IMAGES, *runs.folder_data(images), f"checkpoint={pretrained}", "ema_decay=0.9"]
    run = _finetune(runs, tmp_path / "run", *options)
    best = runs.load(run, 6)["state_dict"]
    names = [name.removeprefix("average.") for name in best if name.startswith("average.")]
    assert names
    assert any(not best[f"average.{name}"].equal(best[f"model.{name}"]) for name in names)
    found = runs.d2v_command("evaluate", f"checkpoint={run}", "num_workers=1", f"hydra.run.dir={tmp_path / 'again'}")
    assert found.status in (0, None), found.err
    assert _results(tmp_path / "again").rows == _results(run).rows


def test_early_stopping(runs: ModuleType, images: Path, pretrained: Path, tmp_path: Path) -> None:
    run = _finetune(
        runs, tmp_path / "run", *IMAGES, *runs.folder_data(images), f"checkpoint={pretrained}", "optim.lr=1e-30",
        "callbacks.score.every_n_steps=1", "callbacks.score.patience=2", "trainer.max_steps=30",
    )  # fmt: skip
    assert len(runs.metrics(run)) == 3
    assert RunCheckpoint.load(run / "checkpoints" / "best.ckpt").step == 3  # of equals the latest


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.label_fraction=0"], "data.label_fraction=0"),
        (["data.label_fraction=2"], "data.label_fraction=2"),
        (["global_batch_size=7"], "global_batch_size=7: mixing takes an even number"),
        (["encoder.drop_path=1"], "Did you mean encoder.drop_rate or encoder.drop_path_rate"),
        (["epochs=1"], "epochs and trainer.max_steps say the same"),
        (["checkpoint=nowhere"], "checkpoint=nowhere: no such file"),
        (["callbacks.checkpoint.monitor=val/top1"], "callbacks.checkpoint.monitor=val/top1: here callbacks.score"),
        (["callbacks.score.patience=0"], "callbacks.score.patience=0"),
        (["decoder=beam"], "only transcripts are decoded"),
        (["task.metric=best"], "task.metric=best: choose one of top1"),
    ],
)
def test_errors_name_key_and_fix(
    runs: ModuleType, images: Path, pretrained: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    given = [f"checkpoint={pretrained}", *IMAGES, *runs.folder_data(images), f"hydra.run.dir={tmp_path}"]
    keys = {o.partition("=")[0] for o in overrides}
    result = runs.d2v_command("finetune", *[o for o in given if o.partition("=")[0] not in keys], *overrides)
    assert result.status == 1
    assert message in result.err


@pytest.mark.parametrize(("task", "modality"), [("ctc", "speech"), ("librispeech/10h", "speech"), ("glue/rte", "text")])
def test_a_checkpoint_of_another_modality(
    runs: ModuleType, pretrained: Path, tmp_path: Path, task: str, modality: str
) -> None:
    result = runs.d2v_command(
        "finetune", f"task={task}", f"checkpoint={pretrained}", f"data.root={tmp_path}",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.status == 1
    assert f"checkpoint={pretrained}/checkpoints/" in result.err
    assert f"reads image, but the data are {modality}: choose another checkpoint" in result.err


def test_speech(runs: ModuleType, tmp_path: Path) -> None:
    root = runs.librispeech(tmp_path / "data")
    pretrained = _pretrain(
        runs, tmp_path / "pretrained", "experiment=speech_tiny", *runs.SMALL["speech"], "data=librispeech",
        f"data.root={root}",
        "data.train=train-clean-100", "data.val=null", "data.probe_train=null", "global_batch_size=12",
        "trainer.max_steps=1",
    )  # fmt: skip
    run = _finetune(
        runs, tmp_path / "run", "task=ctc", f"data.root={root}", "data.train=train-clean-100",
        "data.probe_train=null", "data.val=train-clean-100", f"checkpoint={pretrained}", "global_batch_size=20",
        "trainer.max_steps=4", "freeze_steps=2", "feature_mask.channel_length=4", "schedule.warmup_fraction=0", *QUICK,
    )  # fmt: skip
    scores = _results(run).row("val").scores
    assert scores.keys() == {"wer_cer", "wer", "cer"}
    # However a step is accumulated, it is the same step: letters are counted over all of it.
    parts = _finetune(
        runs, tmp_path / "parts", "task=ctc", f"data.root={root}", "data.train=train-clean-100",
        "data.probe_train=null", "data.val=train-clean-100", f"checkpoint={pretrained}", "global_batch_size=20",
        "trainer.max_steps=2", "micro_batch_size=10", *NO_NOISE, *QUICK,
    )  # fmt: skip
    whole = _finetune(
        runs, tmp_path / "whole", "task=ctc", f"data.root={root}", "data.train=train-clean-100",
        "data.probe_train=null", "data.val=train-clean-100", f"checkpoint={pretrained}", "global_batch_size=20",
        "trainer.max_steps=2", *NO_NOISE, *QUICK,
    )  # fmt: skip
    for a, b in zip(runs.metrics(parts), runs.metrics(whole), strict=True):
        assert float(a["train/loss"]) == pytest.approx(float(b["train/loss"]), rel=1e-5)
        assert float(a["train/grad_norm"]) == pytest.approx(float(b["train/grad_norm"]), rel=1e-4)
    assert _results(run).row("val").samples == 6
    pytest.importorskip("flashlight")
    found = runs.d2v_command("evaluate", f"checkpoint={run}", "decoder=beam", f"hydra.run.dir={tmp_path / 'beam'}")
    assert found.status in (0, None), found.err
    assert _results(tmp_path / "beam").row("val").samples == 6


def test_glue(runs: ModuleType, tmp_path: Path) -> None:
    pretrained = _pretrain(
        runs, tmp_path / "pretrained", "experiment=text_tiny", *runs.SMALL["text"], "data=text_files",
        f"data.root={runs.text_file(tmp_path / 'corpus.txt')}", "data.vocab_size=300",
        f"data.cache={tmp_path / 'cache'}", "trainer.max_steps=1",
    )  # fmt: skip
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    rows = [f"the {'cat' if i % 2 else 'dog'} runs\t{i % 2}" for i in range(24)]
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(f"{row}\n" for row in rows))
    (folder / "test.tsv").write_text("index\tsentence\n0\tthe cat runs\n1\tthe dog runs\n2\tthe cat runs\n")
    options = ["task=glue/sst2", f"data.root={tmp_path / 'glue'}", f"checkpoint={pretrained}", "global_batch_size=8"]
    options += ["optim.lr=1e-2", *QUICK]
    run = _finetune(runs, tmp_path / "run", *options, "epochs=10")
    assert len(runs.metrics(run)) == 30  # 10 epochs of 24 in batches of 8
    assert _results(run).row("val").scores["accuracy"] == 1.0
    assert (run / "submission" / "SST-2.tsv").read_text() == "index\tprediction\n0\t1\n1\t0\n2\t1\n"
    long = runs.d2v_command(
        "finetune",
        *options,
        "trainer.max_steps=1",
        "epochs=null",
        "data.block_size=64",
        f"hydra.run.dir={tmp_path / 'long'}",
    )
    assert "data.block_size=64: the encoder of" in long.err
    assert "has 32 positions; set data.block_size=32 or less" in long.err
    # The best checkpoint holds its tokenizer: text can be scored wherever it is taken, or other files.
    (tmp_path / "corpus.txt").unlink()
    (folder / "dev.tsv").write_text("sentence\tlabel\nthe cat runs\t1\nno label\t\nthe dog runs\t0\n")
    elsewhere = ["data=glue", "data.task=sst2", f"data.root={tmp_path / 'glue'}", "data.on_bad_row=skip"]
    other = runs.d2v_command("evaluate", f"checkpoint={run}", *elsewhere, f"hydra.run.dir={tmp_path / 'other'}")
    assert other.status in (0, None), other.err
    found = _results(tmp_path / "other").row("val")
    assert (found.scores["accuracy"], found.samples) == (1.0, 2)
    (entry,) = found.skipped
    assert entry.startswith("dev.tsv:3: no label")
    (folder / "dev.tsv").write_text("sentence\tlabel\nthe cat runs\t1\n")
    found = runs.d2v_command("evaluate", f"checkpoint={run}", "num_workers=1", f"hydra.run.dir={tmp_path / 'again'}")
    assert found.status in (0, None), found.err
