"""``d2v import`` and ``d2v export format=...``, and ``checkpoint=`` of other people's files everywhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import d2v
from d2v.interop.checkpoints import Checkpoint
from d2v.interop.fairseq.files import FairseqCheckpoint
from d2v.models.heads import FirstTokenHead
from d2v.tasks.classification import Regression

OK = (0, None)


@pytest.fixture
def files(golden_dir: Path) -> Path:
    return golden_dir / "checkpoints"


@pytest.fixture(scope="module")
def run(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on images."""
    folder = tmp_path_factory.mktemp("run")
    result = runs.d2v_command("pretrain", *runs.TINY, f"hydra.run.dir={folder}")
    assert result.status in OK, result.err
    return folder


def test_import_says_what_it_found_and_writes_what_load_encoder_reads(
    runs: ModuleType, files: Path, tmp_path: Path
) -> None:
    result = runs.d2v_command("import", files / "audio.pt", f"output={tmp_path / 'encoder'}")
    assert result.status in OK, result.err
    assert "a checkpoint of the authors' code" in result.out
    assert "speech, 0 + 3 blocks, width 48, 6 heads" in result.out
    assert "none missing, none left over" in result.out
    theirs, ours = d2v.load_encoder(files / "audio.pt"), d2v.load_encoder(tmp_path / "encoder")
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
    card = (tmp_path / "encoder" / "README.md").read_text()
    assert "from a checkpoint of the authors' code" in card
    assert "d2v.load_encoder" in card


def test_a_checkpoint_is_recognised_by_its_content(runs: ModuleType, files: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    shutil.copyfile(files / "image.pt", path)
    result = runs.d2v_command("info", f"checkpoint={path}")
    assert "width 48, 4 heads; modalities: image" in result.out


def test_foreign_checkpoints_work_wherever_checkpoints_do(runs: ModuleType, files: Path, tmp_path: Path) -> None:
    result = runs.d2v_command(
        "extract", f"checkpoint={files / 'image.pt'}", "data=samples", f"output={tmp_path / 'f.safetensors'}",
        "data.in_chans=3",
    )  # fmt: skip
    assert result.status in OK, result.err
    assert load_file(tmp_path / "f.safetensors")["features"].shape[1] == 48
    without = runs.d2v_command("extract", f"checkpoint={files / 'image.pt'}", f"output={tmp_path / 'g.npz'}")
    assert "does not say what it was trained on: give data=..." in without.err


@pytest.mark.parametrize("command", ["import", "export", "info"])
def test_errors_name_the_file_and_the_fix(runs: ModuleType, tmp_path: Path, command: str) -> None:
    (tmp_path / "text.txt").write_text("no checkpoint")
    output = [] if command == "info" else [f"output={tmp_path / 'o'}"]
    missing = runs.d2v_command(command, "checkpoint=nothing.pt", *output)
    assert missing.status == 1
    assert "checkpoint=nothing.pt: no such file" in missing.err
    other = runs.d2v_command(command, f"checkpoint={tmp_path / 'text.txt'}", *output)
    assert "text.txt: not a readable checkpoint" in other.err or "refused" in other.err
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign.pt")
    foreign = runs.d2v_command(command, f"checkpoint={tmp_path / 'foreign.pt'}", *output)
    assert "neither written by a d2v run" in foreign.err
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    bert = runs.d2v_command(command, f"checkpoint={tmp_path / 'bert'}", *output)
    assert "is a Hugging Face model of the type 'bert'" in bert.err


def test_formats(runs: ModuleType, run: Path, files: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    written = {
        "safetensors": "encoder.safetensors",
        "huggingface": "model.safetensors",
        "onnx": "encoder.onnx",
        "fairseq": "checkpoint.pt",
    }
    for name, file in written.items():
        result = runs.d2v_command("export", f"checkpoint={run}", f"output={tmp_path / name}", f"format={name}")
        assert result.status in OK, result.err
        assert (tmp_path / name / file).is_file()
        if name != "fairseq":
            assert (tmp_path / name / "README.md").read_text().startswith("---\nlibrary_name:")
    unknown = runs.d2v_command("export", f"checkpoint={run}", f"output={tmp_path}", "format=tensorflow")
    assert "format=tensorflow: choose one of safetensors, huggingface, onnx, fairseq" in unknown.err
    alone = runs.d2v_command("export", f"checkpoint={files / 'text.pt'}", f"output={tmp_path}", "format=fairseq")
    assert "is an encoder alone; give a run of d2v pretrain" in alone.err
    again = runs.d2v_command("import", tmp_path / "huggingface", f"output={tmp_path / 'x'}")
    assert "was written by d2v export format=huggingface, for transformers" in again.err


def test_a_run_goes_to_the_authors_format_and_back(runs: ModuleType, run: Path, tmp_path: Path) -> None:
    """A new run that starts from the file begins as one that starts from the run itself."""
    runs.d2v_command("export", f"checkpoint={run}", f"output={tmp_path}", "format=fairseq")
    checkpoint = FairseqCheckpoint.load(tmp_path / "checkpoint.pt")
    assert checkpoint.model_state().keys() > {
        "student.trunk.blocks.0.attn.qkv.weight",
        "teacher.trunk.blocks.0.attn.qkv.weight",
    }
    losses = []
    for start in (run, tmp_path / "checkpoint.pt"):
        folder = tmp_path / f"from_{start.name}"
        result = runs.d2v_command("pretrain", *runs.TINY, f"init_from={start}", f"hydra.run.dir={folder}")
        assert result.status in OK, result.err
        losses.append([row["train/loss"] for row in runs.metrics(folder)])
    assert losses[0] == losses[1]


WRITE = {"_target_": "pathlib.Path.write_text", "_args_": [{"_target_": "pathlib.Path", "_args_": ["FILE"]}, "owned"]}


def _poisoned(run: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The run's checkpoint with another configuration inside."""
    (source,) = (run / "checkpoints").glob("step-*4.ckpt")
    content = torch.load(source, weights_only=True)
    change(content["d2v"]["config"])
    torch.save(content, path)
    return path


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_features_replace_nothing_but_features(runs: ModuleType, files: Path, tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"mine{ending}"
    output.write_text("my thesis")
    words = ("extract", f"checkpoint={files / 'image.pt'}", "data=samples", f"output={output}")
    result = runs.d2v_command(*words)
    assert f"output={output}: is there already and is no file of features" in result.err
    assert output.read_text() == "my thesis"
    tensors = {"features": torch.zeros(1, 2), "sample_ids": torch.zeros(1, dtype=torch.int64)}
    if ending == ".npz":
        np.savez(output, **{name: value.numpy() for name, value in tensors.items()})
    else:
        save_file(tensors, output)
    assert "is there already" not in runs.d2v_command(*words, "batch_size=0").err  # another error ends it


@pytest.mark.parametrize("command", ["extract", "evaluate", "finetune"])
def test_the_configuration_in_a_checkpoint_executes_nothing(
    runs: ModuleType, run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = _poisoned(run, tmp_path / "evil.ckpt", lambda config: config["inputs"].update(mean=[WRITE]))
    task = ["task=image_classification", "trainer.max_steps=1"] if command == "finetune" else ["data=image_folder"]
    extra = [f"output={tmp_path / 'x.npz'}"] if command == "extract" else [f"hydra.run.dir={tmp_path / 'out'}"]
    result = runs.d2v_command(command, f"checkpoint={path}", f"data.root={images}", *task, *extra)
    assert result.status == 1
    assert "data.mean is no plain value: refused" in result.err
    assert not Path("FILE").exists()


def test_references_in_a_checkpoint_are_not_resolved(runs: ModuleType, run: Path, images: Path, tmp_path: Path) -> None:
    path = _poisoned(run, tmp_path / "evil.ckpt", lambda config: config["inputs"].update(crop_pct="${oc.decode:0.9}"))
    result = runs.d2v_command(
        "extract", f"checkpoint={path}", "data=image_folder", f"data.root={images}", f"output={tmp_path / 'x.npz'}"
    )
    assert result.status == 1
    assert "data.crop_pct=${oc.decode:0.9}: give a number" in result.err


def test_an_export_writes_nothing_outside_its_folder(runs: ModuleType, run: Path, tmp_path: Path) -> None:
    path = _poisoned(run, tmp_path / "evil.ckpt", lambda config: config["inputs"].update({"../outside": "{}"}))
    result = runs.d2v_command("export", f"checkpoint={path}", f"output={tmp_path / 'out'}")
    assert result.status in OK, result.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.ckpt", "out"]


@pytest.mark.parametrize(
    "name",
    ["a=b.pt", "a,b.pt", "ünï cöde.pt", "a[1].pt", "~a.pt", "a'b.pt", "a(b){c}.pt", "${x}.pt", "true", "1", "b\\'c.pt"],
)
def test_import_of_any_file_name(
    runs: ModuleType, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(files / "text.pt", name)
    result = runs.d2v_command("import", name, "output=out")
    assert result.status in OK, result.err
    assert (tmp_path / "out" / "encoder.safetensors").is_file()


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_a_teacher_that_lacks_a_parameter_is_refused(files: Path, tmp_path: Path, modality: str) -> None:
    content = torch.load(files / f"{modality}.pt", weights_only=True)
    name = next(name for name in content["model"]["_ema"] if "attn.qkv.weight" in name)
    del content["model"]["_ema"][name]
    torch.save(content, tmp_path / "file.pt")
    for network in ("student", "teacher"):  # of a file that is not whole, nothing is taken
        with pytest.raises(ValueError, match=r"teacher.*lacks.*qkv\.weight"):
            d2v.load_encoder(tmp_path / "file.pt", network)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["model"].update({1: torch.ones(1)}),
        lambda c: c["cfg"]["model"].update(modalities=None),
        lambda c: c["model"].update(_ema=[1]),
        lambda c: c.update(cfg=None),
    ],
)
def test_damaged_contents_name_the_file(
    runs: ModuleType, files: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    content = torch.load(files / "image.pt", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "file.pt")
    result = runs.d2v_command("import", tmp_path / "file.pt", f"output={tmp_path / 'out'}", "network=teacher")
    assert result.status == 1
    assert result.err.startswith(f"d2v: error: checkpoint={tmp_path / 'file.pt'}: ")


@pytest.mark.parametrize("change", [lambda c: c.clear(), lambda c: c.update(model=None)])
def test_a_run_without_its_configuration(
    runs: ModuleType, run: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    path = _poisoned(run, tmp_path / "run.ckpt", change)
    result = runs.d2v_command("info", f"checkpoint={path}")
    assert result.status == 1
    assert result.err.startswith(f"d2v: error: checkpoint={path}: ")
    assert "Traceback" not in result.err


def test_other_settings_of_an_encoder_with_equal_shapes_are_said(
    runs: ModuleType, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = ["model.encoder.num_heads=4", "trainer.max_steps=1"]
    result = runs.d2v_command("pretrain", *runs.TINY, f"hydra.run.dir={tmp_path}", f"init_from={run}", *other)
    assert result.status in OK, result.err
    assert "num_heads=2 there, 4 here" in (tmp_path / "pretrain.log").read_text() + caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "huggingface", "onnx"])
@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_the_code_of_a_card_runs(
    runs: ModuleType, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modality: str, form: str
) -> None:
    result = runs.d2v_command(
        "export", f"checkpoint={files / f'{modality}.pt'}", f"output={tmp_path / 'out'}", f"format={form}"
    )
    assert result.status in OK, result.err
    monkeypatch.chdir(tmp_path / "out")
    code = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
    *lines, last = code.replace('"this folder"', '"."').strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    features = eval(last, names)
    assert features.shape[0] == 1
    assert features.ndim == 3


@pytest.mark.parametrize("name", ["image", "audio", "text"])
def test_info_of_the_authors_files(runs: ModuleType, files: Path, name: str) -> None:
    result = runs.d2v_command("info", f"checkpoint={files / f'{name}.pt'}")
    assert result.status in OK, result.err
    assert "a checkpoint of the authors' code" in result.out


def test_init_from_a_fine_tuned_run(runs: ModuleType, run: Path, images: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    result = runs.d2v_command(
        "finetune", "task=image_classification", f"data.root={images}", f"checkpoint={run}", f"hydra.run.dir={tuned}",
        "trainer.max_steps=2", "global_batch_size=8", "num_threads=1", "trainer.accelerator=cpu",
    )  # fmt: skip
    assert result.status in OK, result.err
    again = ["trainer.max_steps=1", f"init_from={tuned}", f"hydra.run.dir={tmp_path / 'again'}"]
    result = runs.d2v_command("pretrain", *runs.TINY, *again)  # the first step's learning rate is 0
    assert result.status in OK, result.err
    ours, theirs = d2v.load_encoder(tmp_path / "again"), d2v.load_encoder(tuned)
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


def test_folders_and_files_that_are_not_what_is_meant(runs: ModuleType, run: Path, files: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    assert runs.d2v_command("export", f"checkpoint={run}", f"output={export}").status in OK
    with pytest.raises(ValueError, match="give its folder"):
        d2v.load_encoder(export / "encoder.safetensors")
    (export / "config.json").write_text('{"model_type": "data2vec-text"}')
    with pytest.raises(ValueError, match="two models"):
        d2v.load_encoder(export)
    (export / "config.json").unlink()
    (export / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"config\.yaml is not the file that was exported"):
        d2v.load_encoder(export)
    (export / "config.yaml").unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r"config\.yaml.*is missing"):
        d2v.load_encoder(export)
    folder = tmp_path / "theirs"
    folder.mkdir()
    shutil.copyfile(files / "text.pt", folder / "checkpoint_best.pt")
    with pytest.raises(FileNotFoundError, match=r"such as .*checkpoint_best\.pt"):
        d2v.load_encoder(folder)


def test_evaluate_reads_foreign_checkpoints(runs: ModuleType, files: Path, images: Path, tmp_path: Path) -> None:
    result = runs.d2v_command(
        "evaluate", f"checkpoint={files / 'image.pt'}", "data=image_folder", f"data.root={images}", "probe=knn",
        "baselines=false", "probe.k=3", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert result.status in OK, result.err
    assert (tmp_path / "results.md").is_file()


def test_an_exported_regression_puts_out_scores(files: Path) -> None:
    torch.manual_seed(0)
    encoder = d2v.load_encoder(files / "text.pt")
    head = FirstTokenHead(encoder.embed_dim, 1).eval()
    node = {"embed_dim": encoder.embed_dim}
    trained = Checkpoint("run", files, encoder, node, {}, head=head, head_node=node, label_names=(1.0, 5.0))
    batch = d2v.Batch("text", torch.arange(4, 12).view(2, 4), torch.arange(2))
    with torch.no_grad():
        out = encoder(batch)
        found = trained.answering_head()(out)
        expected = Regression((1.0, 5.0)).predict(head(out), batch)
    torch.testing.assert_close(found.squeeze(-1), torch.tensor(expected))
    classes = replace(trained, label_names=["no", "yes"])
    assert classes.answering_head() is head


def test_a_task_of_another_modality_is_named(runs: ModuleType, files: Path, tmp_path: Path) -> None:
    words = ("finetune", "task=ctc", f"checkpoint={files / 'image.pt'}", "data=samples", "epochs=1")
    result = runs.d2v_command(*words, f"hydra.run.dir={tmp_path / 'run'}")
    assert "labels.letters=" in result.err
    assert "is not for data of the kind image; choose another task=... or data=..." in result.err
