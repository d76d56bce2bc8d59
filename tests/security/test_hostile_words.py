"""What files say is checked where commands use it: data, parts, tokenizers, names and links."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import hostile as make
import pytest
from canary import SECRET, Canary, refused

from d2v.cli import loading
from d2v.cli.starting import with_tokenizer
from d2v.interop.checkpoints import open_checkpoint
from d2v.interop.fitting import sketch
from d2v.interop.huggingface.inputs import write_tokenizer


@pytest.fixture(scope="module")
def tiny() -> list[str]:
    """Overrides of a run of the model of ``hostile.py``."""
    return [
        "model.encoder.embed_dim=16", "model.encoder.depth=1", "model.encoder.num_heads=2",
        "model.decoders.image.decoder_dim=8", "model.decoders.image.groups=2", "model.decoders.image.depth=1",
        "model.average_top_k_layers=1", "global_batch_size=4", "trainer.max_steps=1", "trainer.accelerator=cpu",
    ]  # fmt: skip


DATA_NODES: dict[str, Any] = {
    "code": {"_target_": "os.system", "command": "x"},
    "a tokenizer that is code": {**make.DATA, "tokenizer": {"_target_": "os.system", "command": "x"}},
    "a mean that is code": {**make.DATA, "mean": [{"_target_": "os.system", "command": "x"}]},
    "a text to resolve": {**make.DATA, "crop_pct": "${oc.env:D2V_CANARY}"},
    "an endless pattern": {
        "_target_": "d2v.data.speech.factories.audio_folder", "root": "/tmp", "label_pattern": "(a+)+$",
        "conv_layers": [[8, 10, 5]],
    },
    "a part of the trainer": {"_target_": "d2v.lit.loggers.CSVLogger", "run_dir": "EXECUTED"},
    "a logger in the user's folder": {"_target_": "d2v.lit.loggers.CSVLogger", "run_dir": "home"},
    "what makes no data": {"_target_": "d2v.data.images.augment.ImageAugment"},
    "a promise of data": {**make.DATA, "_partial_": True},
    "a cache in the user's folder": {
        "_target_": "d2v.data.texts.factories.samples_text",
        "vocab_size": 300,
        "cache": "home",
    },
    "a download to the user's folder": {
        "_target_": "d2v.data.speech.factories.librispeech", "root": "home", "train": "dev-clean",
        "val": None, "download": True,
        "conv_layers": [[8, 10, 5]],
    },
    "a huge image": {**make.DATA, "img_size": 10**9},
}  # fmt: skip


@pytest.mark.parametrize("name", DATA_NODES)
def test_data_that_a_checkpoint_was_trained_on(
    name: str, runs: ModuleType, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``d2v evaluate checkpoint=EVIL`` builds them."""
    monkeypatch.chdir(canary.folder)
    path = make.run_file(canary.folder / "evil.ckpt", lambda config: config.update(data=DATA_NODES[name]))
    result = runs.d2v_command("evaluate", f"checkpoint={path}", "probe=knn", f"output_dir={canary.folder / 'out'}")
    assert result.status not in (0, None)
    assert "d2v: error" in result.err
    assert SECRET not in result.out + result.err


OTHER_PARTS = {
    "a logger that writes": {"_target_": "d2v.lit.loggers.CSVLogger", "run_dir": "."},
    "a logger that connects": {"_target_": "d2v.lit.loggers.wandb_logger", "run_dir": "."},
    "a callback": {"_target_": "d2v.lit.callbacks.finite.SkippedSteps"},
    "a decoder that reads files": {"_target_": "d2v.eval.beam.BeamDecoder", "lexicon": "x", "letters": "a"},
}


@pytest.mark.parametrize("name", OTHER_PARTS)
def test_marked_classes_are_built_in_their_own_place_only(name: str, canary: Canary) -> None:
    node = OTHER_PARTS[name]
    with pytest.raises(ValueError, match=r"refused: a file may name only .* in d2v\.models or d2v\.nn here"):
        sketch(node, {})
    refused(make.run_file(canary.folder / "evil.ckpt", lambda config: config.update(model=node)))
    refused(make.export_folder(canary.folder / "evil", lambda config: config.update(encoder=node)))
    with pytest.raises(ValueError, match=r"refused: a file may name only .* in d2v\.data here"):
        loading._built_data(node, {}, canary.folder)


def test_values_of_files_among_the_users_words_are_inert(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of the user's own may take anything as its tokenizer: what a file says of it is never built."""
    evil = {"_target_": "os.system", "command": "x"}
    for value in (evil, [evil], [[1, evil]], {"a": 1}):
        with pytest.raises(ValueError, match=r"its data\.mean is no plain value: refused"):
            loading.inert(value, "data.mean", canary.folder)
    for value in (None, True, 1, 0.5, "${oc.env:HOME}", [1, [2.0, "x"]]):
        assert loading.inert(value, "data.mean", canary.folder) is value
    path = make.run_file(canary.folder / "evil.ckpt", make.put("inputs.tokenizer", evil))
    settings = SimpleNamespace(init_from=str(path), data={"_target_": "mine.data", "tokenizer": None})
    with pytest.raises(ValueError, match=r"init_from=.*its data\.tokenizer is no plain value"):
        with_tokenizer(settings, open_checkpoint(path))  # type: ignore[arg-type]


COMMANDS = (
    ["info", "checkpoint=EVIL"],
    ["export", "checkpoint=EVIL", "output=OUT"],
    ["import", "checkpoint=EVIL", "output=OUT"],
    ["extract", "checkpoint=EVIL", "output=OUT/features.npz"],
    ["finetune", "checkpoint=EVIL", "task=image_classification", "data=samples", "output_dir=OUT"],
    ["pretrain", "init_from=EVIL", "output_dir=OUT", "TINY"],
    ["pretrain", "resume=EVIL", "TINY"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c[0]} {c[1].partition('=')[0]}")
def test_every_command_refuses_in_words(command: list[str], runs: ModuleType, canary: Canary, tiny: list[str]) -> None:
    folder = canary.folder / "run"
    path = make.run_file(
        folder / "checkpoints" / "step-00000001.ckpt",
        make.put("model.encoder", {"_target_": "os.system", "command": "x"}),
    )
    evil = folder if "resume=EVIL" in command else path
    words = [w.replace("EVIL", str(evil)).replace("OUT", str(canary.folder / "out")) for w in command]
    words = [word for w in words for word in (tiny if w == "TINY" else [w])]
    result = runs.d2v_command(*words)
    assert result.status not in (0, None)
    assert "d2v: error" in result.err
    assert "Traceback" not in result.err


def test_names_in_a_file_write_nothing_elsewhere(runs: ModuleType, canary: Canary) -> None:
    data = {**make.DATA, "../outside": "{}", "/tmp/x": "{}", "config": "{}", "README": "{}", "tokenizer": "{}"}
    path = make.run_file(canary.folder / "evil.ckpt", lambda config: config.update(data=data))
    out = canary.folder / "deep" / "out"
    result = runs.d2v_command("export", f"checkpoint={path}", f"output={out}")
    if result.status in (0, None):
        assert {p.name for p in out.iterdir()} <= {
            "README.md",
            "SHA256SUMS",
            "config.yaml",
            "encoder.safetensors",
            "tokenizer.json",
        }
    assert [path.name for path in (canary.folder / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("value", ["{", "{}", '{"model": []}', '{"ids": [], "tokenizer": 1}'])
def test_tokenizers_of_checkpoints_are_exported_in_words(value: str, canary: Canary) -> None:
    with pytest.raises(ValueError, match=r"tokenizer: not the content"):
        write_tokenizer(canary.folder, {"tokenizer": value, "pad_id": 1}, 16)
    for other in ({"_target_": "os.system", "command": "x"}, [1], 5, None):
        assert write_tokenizer(canary.folder, {"tokenizer": other, "pad_id": 1}, 16) == {}


def test_links_in_an_older_export_are_not_followed(runs: ModuleType, canary: Canary) -> None:
    out = canary.folder / "out"
    path = make.run_file(canary.folder / "good.ckpt")
    assert runs.d2v_command("export", f"checkpoint={path}", f"output={out}").status in (0, None)
    for name in ("config.yaml", "README.md", "encoder.safetensors"):
        (out / name).unlink()
        (out / name).symlink_to(canary.file)
    result = runs.d2v_command("export", f"checkpoint={path}", f"output={out}")
    if result.status in (0, None):
        assert not any(file.is_symlink() for file in out.iterdir())
    else:
        assert "d2v: error: output=" in result.err


def test_texts_to_resolve_stay_texts(runs: ModuleType, canary: Canary) -> None:
    data = {**make.DATA, "note": "${oc.env:D2V_CANARY}", "odd": "${", "more": "${oc.env:HOME,${x}}"}
    path = make.run_file(canary.folder / "evil.ckpt", lambda config: config.update(data=data))
    result = runs.d2v_command("info", f"checkpoint={path}")
    assert "Traceback" not in result.err
    assert SECRET not in result.out + result.err
