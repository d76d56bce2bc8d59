"""Recordings of sounds through every command, as spectrograms."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

import d2v
from d2v.runs.results import read_results

OK = (0, None)


@pytest.fixture(scope="module")
def sounds(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, to train on and to evaluate."""
    folder = tmp_path_factory.mktemp("sounds")
    runs.sounds(folder / "train", clips=6)
    runs.sounds(folder / "val", clips=3, seconds=0.7)
    return folder


@pytest.fixture(scope="module")
def run(runs: ModuleType, sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out")
    result = runs.d2v_command(
        "pretrain", "experiment=eat_tiny", *runs.SMALL["spectrogram"], f"data.root={sounds / 'train'}",
        f"data.val_root={sounds / 'val'}", "data.class_folders=true", "data.crop=random", "model.cls_loss_weight=192",
        "global_batch_size=4", "trainer.max_steps=4", "schedule.warmup_steps=1", "num_threads=1",
        "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", f"output_dir={output}", "~curriculum",
        "model.reconstruction=false",
    )  # fmt: skip
    assert result.status in OK, result.err
    assert "each 48 tokens" in result.out
    return next((output / "eat_tiny").iterdir())


def test_training_reports_the_loss_on_the_cls_token(runs: ModuleType, run: Path) -> None:
    rows = runs.metrics(run)
    assert len(rows) == 4
    assert all(float(row["train/loss_cls"]) > 0 for row in rows)


def test_check_suggests_statistics(runs: ModuleType, sounds: Path) -> None:
    result = runs.d2v_command("check", "data=sound_folder", f"data.root={sounds / 'train'}", "data.class_folders=true")
    assert result.status in OK, result.err
    assert "classes: class0 6, class1 6" in result.out
    assert "suggested: data.mean=-" in result.out
    assert "12 samples, 0 bad" in result.out


def test_evaluate_probes_and_extract_writes(runs: ModuleType, run: Path, tmp_path: Path) -> None:
    result = runs.d2v_command("evaluate", f"checkpoint={run}", "probe.k=3", "num_threads=1")
    assert result.status in OK, result.err
    assert "| log-mel features" in result.out
    assert "| pretrained encoder, 4 steps |" in result.out
    for pool, width in (("cls", 32), ("mean_std", 64)):
        path = tmp_path / f"{pool}.safetensors"
        assert runs.d2v_command("extract", f"checkpoint={run}", f"output={path}", f"pool={pool}").status in OK
        assert load_file(path)["features"].shape == (6, width)


def test_groups_are_held_out_in_turn(runs: ModuleType, run: Path, sounds: Path) -> None:
    result = runs.d2v_command(
        "evaluate", f"checkpoint={run}", "data=sound_folder", f"data.root={sounds / 'train'}",
        "data.class_folders=true", "probe.k=3", r"data.group_pattern='/([0-9])\.'", "num_threads=1",
    )  # fmt: skip
    assert result.status in OK, result.err
    assert "| log-mel features" in result.out


@pytest.mark.parametrize("name", ["eat.pt", "eat_hf_finetuned"])
def test_their_files_are_imported_and_give_features_of_recordings(
    runs: ModuleType, golden_dir: Path, sounds: Path, tmp_path: Path, name: str
) -> None:
    theirs = golden_dir / "checkpoints" / name
    result = runs.d2v_command("import", f"checkpoint={theirs}", f"output={tmp_path / 'eat'}")
    assert result.status in OK, result.err
    assert "spectrogram, 0 + 2 blocks, width 16, 4 heads" in result.out
    ours, encoder = d2v.load_encoder(tmp_path / "eat"), d2v.load_encoder(theirs)
    state = encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    result = runs.d2v_command(
        "extract", f"checkpoint={tmp_path / 'eat'}", f"output={tmp_path / 'f.safetensors'}", "data=sound_folder",
        f"data.root={sounds / 'val'}", "pool=none",
    )  # fmt: skip
    assert result.status in OK, result.err
    assert load_file(tmp_path / "f.safetensors")["features"].shape == (6, 81, 16)  # 160 frames, as it was trained


def test_a_run_starts_from_their_file(runs: ModuleType, golden_dir: Path, sounds: Path, tmp_path: Path) -> None:
    result = runs.d2v_command(
        "pretrain", "experiment=eat_base", f"init_from={golden_dir / 'checkpoints' / 'eat.pt'}",
        f"data.root={sounds / 'train'}", "data.num_frames=160", "model.encoder.embed_dim=16", "model.encoder.depth=2",
        "model.encoder.num_heads=4", "model.average_top_k_layers=2", "model.decoders.spectrogram.decoder_dim=16",
        "model.decoders.spectrogram.groups=4", "model.decoders.spectrogram.depth=3", "global_batch_size=2",
        "mask.num_masks=2", "trainer.max_steps=1", "num_threads=1", "trainer.accelerator=cpu",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.status in OK, result.err
    assert "its encoder alone" not in result.err  # teacher and decoder, too
    assert runs.checkpoints(tmp_path / "run") == ["step-00000001.ckpt"]


def finetuned(runs: ModuleType, output: Path, *overrides: str) -> tuple[str, Path]:
    """What a short fine-tuning prints, and its folder."""
    result = runs.d2v_command(
        "finetune", *overrides, "trainer.max_steps=2", "global_batch_size=4", "num_threads=1",
        "trainer.accelerator=cpu", f"hydra.run.dir={output}",
    )  # fmt: skip
    assert result.status in OK, result.err
    return result.out, output


def test_fine_tuning_on_classes_is_scored_and_exported(
    runs: ModuleType, run: Path, sounds: Path, tmp_path: Path
) -> None:
    folders = [f"data.root={sounds / 'train'}", f"data.val_root={sounds / 'val'}", "data.class_folders=true"]
    _, tuned = finetuned(
        runs, tmp_path / "run", "task=audio_classification", f"checkpoint={run}", *folders,
        "head._target_=d2v.models.cls_head.ClsHead",
    )  # fmt: skip
    (row,) = read_results(tuned).rows
    assert row.scores.keys() == {"unweighted_accuracy", "accuracy", "macro_f1"}
    again = runs.d2v_command("evaluate", f"checkpoint={tuned}", f"output_dir={tmp_path / 'out'}")
    assert again.status in OK, again.err
    exported = runs.d2v_command("export", f"checkpoint={tuned}", f"output={tmp_path / 'hf'}", "format=huggingface")
    assert exported.status in OK, exported.err
    assert '"D2VForAudioClassification"' in (tmp_path / "hf" / "config.json").read_text()


def test_waveform_encoders_are_fine_tuned_on_classes(runs: ModuleType, sounds: Path, tmp_path: Path) -> None:
    _, tuned = finetuned(
        runs, tmp_path / "run", "task=audio_classification", "checkpoint=null", "model=data2vec2/speech_tiny",
        "data=audio_folder", f"data.root={sounds / 'train'}", f"data.val_root={sounds / 'val'}",
        r"data.label_pattern='^([^/]+)/'", "data.min_seconds=0.5", "optim.layer_decay=1",
        *runs.SMALL["speech"],
    )  # fmt: skip
    (row,) = read_results(tuned).rows
    assert row.metric == "unweighted_accuracy"


def test_tagging_is_scored_by_mean_average_precision(runs: ModuleType, run: Path, sounds: Path, tmp_path: Path) -> None:
    given = []
    for split, prefix in (("train", ""), ("val", "val_")):
        files = sorted((sounds / split).rglob("*.flac"))
        lines = [f"{file.relative_to(sounds)}\t16000" for file in files]
        (tmp_path / f"{split}.tsv").write_text("\n".join([str(sounds), *lines]) + "\n")
        (tmp_path / f"{split}.txt").write_text("".join(f"{file.parent.name};sound\n" for file in files))
        given += [f"data.{prefix}manifest={tmp_path / split}.tsv", f"data.{prefix}classes={tmp_path / split}.txt"]
    _, tuned = finetuned(
        runs, tmp_path / "run", "task=audio_tagging", f"checkpoint={run}", *given, "data.separator=';'",
        "data.min_seconds=0.1",
    )  # fmt: skip
    (row,) = read_results(tuned).rows
    assert row.scores.keys() == {"map"}
    assert 0 < row.scores["map"] <= 1
    assert "sound" in (tuned / "predictions_val.tsv").read_text()
