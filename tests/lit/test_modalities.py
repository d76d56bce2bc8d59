"""Speech and text train, resume, accumulate, export and are probed as images are."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

import d2v

COMMON = [
    "micro_batch_size=null", "num_threads=1", "trainer.accelerator=cpu", "trainer.precision=32-true",
    "trainer.log_every_n_steps=1", "schedule.warmup_steps=1", "callbacks.checkpoint.keep=-1",
    "callbacks.health.min_spread=null", "callbacks.health.min_frontend_spread=null", "ema.decay_start=0.9",
    "ema.decay_end=0.99", "ema.anneal_steps=5",
]  # fmt: skip
NOISE = ["model.encoder.drop_rate=0.1", "model.encoder.layer_drop_rate=0.2", "model.encoder.post_mlp_drop_rate=0.1"]


@pytest.fixture(params=["speech", "text"])
def small(
    request: pytest.FixtureRequest, runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Overrides of a small run of this modality on small data."""
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))
    if request.param == "speech":
        root = runs.librispeech(tmp_path / "data", speakers=3, clips=4)
        runs.librispeech(tmp_path / "data", speakers=2, clips=1, part="test-clean")
        data = ["data=librispeech", f"data.root={root}", "data.train=train-clean-100", "data.val=test-clean",
                "data.probe_train=null", "global_batch_size=8"]  # fmt: skip
    else:
        root = runs.text_file(tmp_path / "text.txt")
        data = ["data=text_files", f"data.root={root}", "data.vocab_size=300", "global_batch_size=4"]
    return [f"experiment={request.param}_tiny", *runs.SMALL[request.param], *data, *COMMON]


def train(runs: ModuleType, folder: Path, *overrides: str) -> Path:
    result = runs.d2v_command("pretrain", f"output_dir={folder}", *overrides)
    assert result.status in (0, None), result.err
    return Path(result.out.rpartition("run: ")[2].strip())


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_two_n_steps_equal_n_resumed_for_n(runs: ModuleType, tmp_path: Path, small: list[str], workers: int) -> None:
    common = [*small, *NOISE, f"num_workers={workers}", "callbacks.checkpoint.every_n_steps=3"]
    whole = train(runs, tmp_path / "whole", *common, "trainer.max_steps=6")
    half = train(runs, tmp_path / "half", *common, "trainer.max_steps=6", "callbacks.checkpoint.every_n_steps=3")
    (half / "checkpoints" / "step-00000006.ckpt").unlink()
    resumed = train(runs, tmp_path / "half", *common, "trainer.max_steps=6", f"resume={half}")
    assert resumed == half
    a, b = runs.load(whole, 6), runs.load(half, 6)
    assert runs.differences(a["state_dict"], b["state_dict"]) == []
    assert runs.differences(a["optimizer_states"], b["optimizer_states"]) == []


@pytest.mark.parametrize("key", ["resume", "init_from"])
def test_embeddings_keep_their_tokenizer(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Text that has changed would have another tokenizer, in which the embeddings mean other things."""
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))
    text = runs.text_file(tmp_path / "text.txt")
    small = ["experiment=text_tiny", *runs.SMALL["text"], "data=text_files", f"data.root={text}", "data.vocab_size=300",
             *COMMON]  # fmt: skip
    first = train(runs, tmp_path / "out", *small, "trainer.max_steps=2")
    tokenizer = (first / "tokenizer.json").read_text()
    text.write_text("".join(f"{i} other words, nothing of before\n" for i in range(300)))
    own = train(runs, tmp_path / "own", *small, "trainer.max_steps=2")
    assert (own / "tokenizer.json").read_text() != tokenizer
    other_text = ["resume_with_other_data=true"] if key == "resume" else []
    second = train(runs, tmp_path / "more", *small, "trainer.max_steps=4", f"{key}={first}", *other_text)
    assert (second / "tokenizer.json").read_text() == tokenizer


def test_accumulation_is_exact_though_parts_differ_in_size(runs: ModuleType, tmp_path: Path, small: list[str]) -> None:
    noiseless = [o for o in small if not o.startswith("micro_batch_size")] + ["trainer.max_steps=3", "optim.eps=1e-4"]
    modality = small[0].partition("=")[2].partition("_")[0]
    noiseless += [f"model.decoders.{modality}.mask_noise_std=0"]
    if modality == "speech":
        noiseless += ["global_batch_size=16"]  # five or so clips
    micro = {"speech": "micro_batch_size=8", "text": "micro_batch_size=1"}[modality]
    one = train(runs, tmp_path / "one", *noiseless, "micro_batch_size=null")
    split = train(runs, tmp_path / "split", *noiseless, micro)
    a, b = runs.load(one, 3)["state_dict"], runs.load(split, 3)["state_dict"]
    for name in a:
        torch.testing.assert_close(
            b[name], a[name], rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    losses = [[float(row["train/loss"]) for row in runs.metrics(run)] for run in (one, split)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_from_pretraining_to_an_encoder(runs: ModuleType, tmp_path: Path, small: list[str]) -> None:
    run = train(runs, tmp_path / "out", *small, "trainer.max_steps=2")
    folder = tmp_path / "encoder"
    exported = runs.d2v_command("export", f"checkpoint={run}", f"output={folder}")
    assert exported.status in (0, None), exported.err
    encoder = d2v.load_encoder(folder)
    student = d2v.load_encoder(run)
    for (name, a), (_, b) in zip(encoder.state_dict().items(), student.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    (modality,) = encoder.frontends
    inputs = encoder.frontend(modality).example(2)
    out = encoder(d2v.Batch(modality, inputs, torch.arange(2)), return_layers=True)
    assert out.x.shape[0] == 2
    card = (folder / "README.md").read_text()
    assert f'd2v.Batch("{modality}"' in card
    assert (folder / "tokenizer.json").exists() == (modality == "text")
    info = runs.d2v_command("info", f"checkpoint={folder}")
    assert f"modalities: {modality}" in info.out


def test_probes_of_what_the_data_know(runs: ModuleType, tmp_path: Path, small: list[str]) -> None:
    run = train(runs, tmp_path / "out", *small, "trainer.max_steps=2")
    if small[0] == "experiment=speech_tiny":
        result = runs.d2v_command(
            "evaluate", f"checkpoint={run}", f"output_dir={tmp_path}", "probe.ctc_epochs=2", "num_workers=1"
        )
        assert "letter error" in result.out, result.err
        by_speaker = runs.d2v_command(
            "evaluate", f"checkpoint={run}", f"output_dir={tmp_path}", "data=audio_folder",
            f"data.root={tmp_path / 'data' / 'LibriSpeech' / 'train-clean-100'}", "data.label_pattern='-([0-9]+).flac'",
            "data.group_pattern='^([0-9]+)/'", "probe=knn", "probe.k=1", "name=by_speaker",
        )  # fmt: skip
        assert "log-mel features" in by_speaker.out, by_speaker.err
    else:
        for name, rows in (("train", 12), ("val", 6)):
            lines = [f"the {'cat' if i % 2 else 'dog'} runs\t{'cat' if i % 2 else 'dog'}" for i in range(rows)]
            (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]))
        tables = [f"data.probe_train={tmp_path / 'train.tsv'}", f"data.probe_val={tmp_path / 'val.tsv'}"]
        result = runs.d2v_command(
            "evaluate", f"checkpoint={run}", f"output_dir={tmp_path}", "data=text_files", "data.root=null", *tables,
            "probe.k=3", "probe.c_grid=[1.0]", "num_workers=1",
        )  # fmt: skip
        assert "TF-IDF" in result.out, result.err
        features = runs.d2v_command(
            "extract", f"checkpoint={run}", f"output={tmp_path / 'f.npz'}", "data=text_files", "data.root=null", *tables
        )
        assert "(6, 32) features" in features.out, features.err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=image_tiny", "data=audio_folder", "data.root=x"], "data are speech, but the model reads image"),
        (["experiment=speech_tiny", "data=samples"], "the data are image, but the model reads speech"),
        (["experiment=speech_tiny", "data=librispeech", "data.root=gone"], "/gone: no such folder"),
        (["experiment=speech_tiny", "global_batch_size=3"], "global_batch_size=3 seconds"),
        (["experiment=text_tiny", "data=text_files", "data.root=gone"], "/gone: no such file or folder"),
        (["experiment=text_tiny", "data.vocab_size=100"], "vocab_size=100"),
        (["experiment=text_tiny", "data.tokenizer=gone.json"], "/gone.json: no such file"),
        (["experiment=text_tiny", "global_batch_size=2.5"], "global_batch_size=2.5"),
    ],
)
def test_errors_name_key_value_and_fix(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: str
) -> None:
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))
    result = runs.d2v_command("pretrain", f"output_dir={tmp_path}", *overrides)
    assert result.status == 1
    assert words in result.err
