"""What users get wrong: one message that names key, value and fix, exit status 1, and no training."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from d2v.cli.loading import check_fits, check_probed


def _assert_fails(runs: ModuleType, arguments: list[str], words: list[str]) -> None:
    result = runs.d2v_command(*arguments)
    assert result.status == 1, result.out + result.err
    message = result.err[result.err.index("d2v: error: ") :]
    for word in words:
        assert word in message
    assert "Traceback" not in result.err + result.out
    assert "step 1/" not in result.err  # no training


def _assert_pretrain_fails(runs: ModuleType, tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    out = tmp_path / "out"
    _assert_fails(runs, ["pretrain", f"output_dir={out}", *runs.TINY, *overrides], words)
    assert not list(out.rglob("*.ckpt"))
    assert not list(out.rglob("metrics.csv"))


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Paths that are not what they should be."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "garbage.ckpt").write_bytes(b"not a checkpoint at all")
    names = {"EMPTY": "empty", "FILE": "file", "GARBAGE": "garbage.ckpt", "MISSING": "missing"}
    return {name: str(tmp_path / path) for name, path in names.items()}


def _filled(text: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        text = text.replace(name, path)
    return text


DATA = [
    (["data=image_folder"], ["data.root=VALUE"]),
    (["data=imagenet"], ["data.root=VALUE"]),
    (["experiment=image_base"], ["data.root=VALUE"]),
    (["data=hf_images"], ["data.path=VALUE"]),
    (["data=image_folder", "data.root=MISSING"], ["data.root=MISSING", "no such directory", "set data.root"]),
    (["data=image_folder", "data.root=FILE"], ["data.root=FILE", "not a directory", "set data.root"]),
    (["data=image_folder", "data.root=EMPTY"], ["data.root=EMPTY", "no image", "set data.root=FOLDER"]),
    (["data=imagenet", "data.root=EMPTY"], ["data.root=EMPTY", "train"]),
    (["data.img_size=30"], ["data.img_size=30", "patch_size=7", "data.img_size=28"]),
    (["data=samples_speech"], ["the data are speech", "the model reads image", "speech_tiny"]),
    (["data.in_chans=2"], ["data.in_chans=2", "1 (grey) or 3 (RGB)"]),
    (["data.mean=[0.5,0.5]"], ["data.mean=[0.5, 0.5]", "data.in_chans=1"]),
    (["data.crop_scale=[0.5,0.1]"], ["data.crop_scale=[0.5, 0.1]", "low <= high"]),
]
MASKS = [
    (["mask.num_masks=17"], ["mask.num_masks=17", "16 tokens", "1 to 16"]),
    (["mask.mask_ratio=0.99"], ["mask.mask_ratio=0.99", "at least one must stay visible", "up to"]),
    (["mask.mask_length=5"], ["mask.mask_length=5", "4x4", "1 to 4"]),
    (["mask=random"], ["mask.mask_length=2: RandomMask has no such setting: remove it"]),
]
UNKNOWN = [
    (["optim.lrr=1"], ["'optim.lrr'", "Did you mean optim.lr"]),
    (["trainer.maxsteps=3"], ["'trainer.maxsteps'", "Did you mean trainer.max_steps"]),
    (["model.encoder.dept=3"], ["'model.encoder.dept'", "Did you mean model.encoder.depth"]),
    (["global_batchsize=8"], ["'global_batchsize'", "Did you mean global_batch_size"]),
    (["data.rot=x", "data=image_folder"], ["'data.rot'", "Did you mean data.root"]),
    (["xyzzy=1"], ["'xyzzy'", "--cfg job"]),
    (["optim.learning_rate=1"], ["'optim.learning_rate'", "optim.lr"]),
    (["+xyzzy=1"], ["xyzzy"]),  # a key that nobody reads
    (["+optim.foo=1"], ["optim.foo=1: adamw has no such setting: remove it"]),
    (["+trainer.foo=1"], ["trainer", "foo"]),
    (["+model.foo=1"], ["model.foo=1: Data2Vec2 has no such setting: remove it"]),
    (["+callbacks.checkpoint.foo=1"], ["callbacks.checkpoint", "foo"]),
    (["model=image_tny"], ["image_tny", "data2vec2/image_tiny"]),
    (["experiment=null"], ["experiment"]),
    (["experiment=image_bas"], ["image_bas", "image_base"]),
    (["data=smaples"], ["smaples", "samples"]),
]
VALUES = [
    (["trainer.max_steps=many"], ["trainer.max_steps=many"]),
    (["name=../x"], ["name=../x", "leads out of output_dir"]),
    (["trainer.max_steps=0"], ["trainer.max_steps=0: give a whole number from 1"]),
    (["trainer.max_steps=1.5"], ["trainer.max_steps=1.5"]),
    (["trainer.max_steps=null"], ["trainer.max_steps"]),
    (["trainer.log_every_n_steps=0"], ["trainer.log_every_n_steps=0"]),
    (["trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val=-1"]),
    (["trainer.precision=bf16-true"], ["trainer.precision=bf16-true", "bf16-mixed"]),
    (["trainer.devices=0"], ["devices=0"]),
    (["trainer.devices=3"], ["global_batch_size=4", "3 devices", "such as 3"]),
    (["trainer.accelerator=abacus"], ["abacus", "cpu"]),
    (["global_batch_size=four"], ["global_batch_size=four"]),
    (["global_batch_size=???"], ["global_batch_size=VALUE"]),
    (["micro_batch_size=0"], ["micro_batch_size=0", "null"]),
    (["micro_batch_size=two"], ["micro_batch_size=two"]),
    (["global_batch_size=4.5"], ["global_batch_size=4.5"]),
    (["num_workers=-1"], ["num_workers=-1", "auto"]),
    (["num_threads=0"], ["num_threads=0", "auto"]),
    (["seed=-1"], ["seed=-1"]),
    (["seed=lucky"], ["seed=lucky"]),
    (["optim.lr=fast"], ["optim.lr=fast"]),
    (["optim.lr=-1"], ["lr", "-1"]),
    (["optim.betas=[0.9]"], ["optim.betas=[0.9]"]),
    (["ema.decay_start=2"], ["ema", "2"]),
    (["ema.decay_end=2"], ["ema", "2"]),
    (["schedule.warmup_steps=-1"], ["warmup_steps=-1"]),
    (["model.average_top_k_layers=9"], ["model.average_top_k_layers=9", "1 to 1"]),
    (["model.encoder.num_heads=5"], ["model.encoder.num_heads=5", "model.encoder.embed_dim=32"]),
    (["model.layer_norms=[group]"], ["model.layer_norms", "group", "instance"]),
    (["model.loss_beta=-1"], ["model.loss_beta=-1"]),
    (["model.decoders.image.kernel_size=2"], ["kernel_size=2", "3"]),
    (["callbacks.checkpoint.keep=0"], ["callbacks.checkpoint.keep=0", "-1"]),
    (["callbacks.checkpoint.every_n_steps=0"], ["callbacks.checkpoint.every_n_steps=0"]),
    (["callbacks.checkpoint.keep_best=0"], ["callbacks.checkpoint.keep_best=0: give a whole number from 1"]),
    (["callbacks.checkpoint.mode=most"], ["callbacks.checkpoint.mode=most", "choose one of max, min"]),
    (["callbacks=probe", "callbacks.probe.every_n_steps=0"], ["callbacks.probe.every_n_steps=0"]),
]
FILES = [
    (["resume=MISSING"], ["resume=MISSING", "run's folder"]),
    (["resume=EMPTY"], ["resume=EMPTY", "run's folder"]),
    (["resume=GARBAGE"], ["resume=GARBAGE"]),
    (["init_from=MISSING"], ["init_from=MISSING"]),
    (["init_from=EMPTY"], ["init_from=EMPTY"]),
    (["init_from=GARBAGE"], ["init_from=GARBAGE"]),
    (["output_dir=FILE"], ["FILE"]),
]


@pytest.mark.parametrize(
    ("overrides", "words"), [*DATA, *MASKS, *UNKNOWN, *VALUES, *FILES], ids=lambda value: " ".join(value)
)
def test_pretrain(
    runs: ModuleType, tmp_path: Path, places: dict[str, str], overrides: list[str], words: list[str]
) -> None:
    overrides, words = ([_filled(text, places) for text in texts] for texts in (overrides, words))
    _assert_pretrain_fails(runs, tmp_path, overrides, words)


def test_an_experiments_setting_of_another_option_is_left_out(runs: ModuleType, tmp_path: Path) -> None:
    _assert_fails(
        runs, ["pretrain", "mask=random", f"output_dir={tmp_path}"], ["leave it out with '~mask.mask_length'"]
    )


def test_init_from_another_size_names_what_does_not_fit(runs: ModuleType, tmp_path: Path) -> None:
    run = runs.pretrain(tmp_path / "run", "trainer.max_steps=1")
    _assert_pretrain_fails(
        runs, tmp_path, [f"init_from={run}", "model.encoder.embed_dim=64"], ["do not fit", "shape", "proj"]
    )


def test_the_stack_trace_is_there_for_those_who_ask(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2V_TRACEBACK", "1")
    with pytest.raises(Exception, match="num_masks=17"):
        runs.d2v_command("pretrain", f"output_dir={tmp_path}", *runs.TINY, "mask.num_masks=17")


OTHER_COMMANDS = [
    (["evaluate"], ["checkpoint=VALUE"]),
    (["evaluate", "checkpoint=MISSING"], ["checkpoint=MISSING", "no such file", "run's folder"]),
    (["evaluate", "checkpoint=EMPTY"], ["checkpoint=EMPTY", "checkpoints/*.ckpt"]),
    (["evaluate", "checkpoint=GARBAGE"], ["checkpoint=GARBAGE", "not a readable checkpoint"]),
    (["evaluate", "checkpoint=RUN", "network=decoder"], ["network=decoder: choose one of student, teacher"]),
    (["evaluate", "checkpoint=RUN", "prob=knn"], ["'prob'", "Did you mean probe"]),
    (["evaluate", "checkpoint=RUN", "probe=nearest"], ["probe=nearest", "knn"]),
    (["evaluate", "checkpoint=RUN", "probe.k=0", "probe=knn"], ["probe.k=0"]),
    (["evaluate", "checkpoint=RUN", "probe.layers=7", "probe=knn"], ["probe.layers=7", "choose 0 to 0"]),
    (["evaluate", "checkpoint=RUN", "probe.pool=max", "probe=knn"], ["probe.pool", "max", "mean, mean_std, cls"]),
    (["evaluate", "checkpoint=RUN", "data=image_folder", "data.root=MISSING"], ["data.root=MISSING"]),
    (["evaluate", "checkpoint=RUN", "batch_size=0"], ["batch_size=0"]),
    (["evaluate", "checkpoint=RUN", "decoder=beam"], ["decoder=...: only what a fine-tuned model transcribes"]),
    (["evaluate", "checkpoint=RUN", "optim.lr=1"], ["'optim.lr'", "It is a key of d2v pretrain, d2v finetune"]),
    (["export", "checkpoint=RUN", "output=DIR", "data.root=x"], ["unknown key 'data.root'", "a key of d2v finetune"]),
    (["check", "data=samples", "model=nope"], ["'model'", "It is a key of d2v pretrain"]),
    (["check", "data=samples", "report=FILE/x"], ["report=FILE/x: could not be written"]),
    (["runs", "output_dir="], ["output_dir=: give a path"]),
    (["extract", "checkpoint=RUN"], ["output=VALUE"]),
    (["extract", "checkpoint=RUN", "output=DIR/f.pt"], ["output=DIR/f.pt", ".safetensors or .npz"]),
    (["extract", "checkpoint=RUN", "output=DIR/f.npz", "layers=9"], ["error: layers=9", "1 blocks; choose 0 to 0"]),
    (["extract", "checkpoint=RUN", "output=DIR/f.npz", "layers=top"], ["layers", "top", "average"]),
    (["extract", "checkpoint=RUN", "output=DIR/f.npz", "pool=max"], ["pool", "max", "cls"]),
    (["extract", "checkpoint=RUN", "output=DIR/f.npz", "split=test"], ["split", "test", "train"]),
    (["extract", "checkpoint=RUN", "output=FILE/f.npz"], ["output=FILE/f.npz"]),
    (["export", "checkpoint=RUN"], ["output=VALUE"]),
    (["export", "checkpoint=RUN", "output=FILE"], ["output=FILE"]),
    (["export", "checkpoint=MISSING", "output=DIR"], ["checkpoint=MISSING"]),
    (["info", "checkpoint=MISSING"], ["checkpoint=MISSING"]),
    (["info", "checkpoint=GARBAGE"], ["checkpoint=GARBAGE"]),
]


@pytest.fixture(scope="module")
def run(runs: ModuleType, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on two classes of images."""
    return runs.pretrain(tmp_path_factory.mktemp("run"), *runs.folder_data(images), "trainer.max_steps=1")


@pytest.mark.parametrize(("arguments", "words"), OTHER_COMMANDS, ids=lambda value: " ".join(value))
def test_other_commands(
    runs: ModuleType, run: Path, tmp_path: Path, places: dict[str, str], arguments: list[str], words: list[str]
) -> None:
    places = {**places, "RUN": str(run), "DIR": str(tmp_path / "new")}
    arguments, words = ([_filled(text, places) for text in texts] for texts in (arguments, words))
    if arguments[0] == "evaluate":
        arguments.append(f"output_dir={tmp_path / 'out'}")
    _assert_fails(runs, arguments, words)
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.rglob("results.json"))


def test_what_the_encoder_lacks_is_said_before_anything_is_computed() -> None:
    encoder = SimpleNamespace(frontends={"speech": SimpleNamespace(num_prefix_tokens=0)})
    trained: Any = SimpleNamespace(path="R", encoder=encoder, encoder_node={"depth": 2}, inputs={"sample_rate": 16000})
    check_probed(1, "mean", trained, "probe.")
    with pytest.raises(ValueError, match=r"^probe.layers=2: .* has 2 blocks; choose 0 to 1"):
        check_probed(2, "mean", trained, "probe.")
    with pytest.raises(ValueError, match=r"^pool=cls: .* has no CLS token; set pool=mean"):
        check_probed("last", "cls", trained, "")


def test_another_sample_rate_than_the_encoders_is_refused() -> None:
    frontend = SimpleNamespace(num_prefix_tokens=0)
    encoder = SimpleNamespace(frontends={"speech": frontend}, frontend=lambda modality: frontend)
    trained: Any = SimpleNamespace(path="R", encoder=encoder, inputs={"sample_rate": 16000})
    check_fits(SimpleNamespace(modality="speech", sample_rate=16000), trained)
    with pytest.raises(ValueError, match=r"data.sample_rate=8000: .* was trained at 16000 Hz; leave data.sample_rate"):
        check_fits(SimpleNamespace(modality="speech", sample_rate=8000), trained)


@pytest.mark.parametrize(
    ("command", "place"),
    [("pretrain", "d2v.cli.training.write_configuration"), ("evaluate", "d2v.runs.results.replace_text")],
)
def test_a_full_disk_is_one_message(
    runs: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, place: str
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(place, full)
    words = runs.TINY if command == "pretrain" else [f"checkpoint={run}", "probe=knn", "num_workers=1"]
    result = runs.d2v_command(command, f"output_dir={tmp_path}", *words)
    assert result.status == 1
    assert f"d2v: error: output_dir={tmp_path}" in result.err
    assert "could not be written ([Errno 28] No space left on device); make room there" in result.err


def test_too_many_bad_files_are_told_as_they_are(runs: ModuleType, tmp_path: Path) -> None:
    """Not as Hydra's report of the call that they ended."""
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("torchaudio")
    soundfile.write(tmp_path / "good.wav", [0.1] * 48000, 16000)
    for name in ("bad.wav", "worse.wav"):
        (tmp_path / name).write_bytes(b"RIFF")
    data = ["experiment=speech_tiny", "data=audio_folder", f"data.root={tmp_path}", f"output_dir={tmp_path / 'out'}"]
    result = runs.d2v_command("pretrain", *data)
    assert result.status == 1
    message = result.err[result.err.index("d2v: error: ") :]
    assert message.startswith("d2v: error: 2 of the data set's 3 samples cannot be read (66.67%)")
    assert "They are:\n  bad.wav: not readable audio" in message
    assert "Error in call" not in message
    assert "\\n" not in message


def test_nothing_is_said_before_the_message(runs: ModuleType, tmp_path: Path) -> None:
    """One clear message: no echo of all overrides, no library's note."""
    result = runs.d2v_command("pretrain", f"output_dir={tmp_path}", *runs.TINY, "mask.num_masks=17")
    assert result.err.startswith("d2v: error: mask.num_masks=17"), result.err
