"""Runs small enough for tests: overrides, the command line inside this process, and what a run leaves behind."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from PIL import Image

import d2v.cli.launch  # registers the resolver that the configuration uses
from d2v.cli import main as command_line
from d2v.cli.settings import built
from d2v.lit import setup
from d2v.lit.data import PretrainDataModule
from d2v.lit.pretrain import PretrainModule

assert d2v.cli.launch is not None

MODEL = [
    "model.encoder.embed_dim=32",
    "model.encoder.depth=1",
    "model.encoder.prenet_depth=1",
    "model.encoder.num_heads=2",
    "model.decoders.image.decoder_dim=16",
    "model.decoders.image.depth=1",
    "model.decoders.image.groups=4",
    "model.average_top_k_layers=1",
    "model.cls_loss_weight=2.56",
]
SIZE = [*MODEL[:4], "model.average_top_k_layers=1"]
CONVS = "data.conv_layers=[[8,20,10],[16,4,4],[16,4,4]]"
# What makes a recipe of each modality small.
SMALL = {
    "image": MODEL,
    "speech": [
        *SIZE, CONVS, "model.encoder.frontends.speech.pos_depth=1", "model.decoders.speech.decoder_dim=16",
        "model.decoders.speech.depth=1",
    ],
    "text": [*SIZE, "model.decoders.text.decoder_dim=16", "model.decoders.text.depth=1", "data.block_size=32"],
    "spectrogram": [
        *SIZE, "model.encoder.prenet_depth=0", "model.encoder.frontends.spectrogram.max_frames=256",
        "model.decoders.spectrogram.decoder_dim=16", "model.decoders.spectrogram.depth=1", "data.num_frames=96",
    ],
}  # fmt: skip
PLAIN = ["~curriculum", "model.reconstruction=false"]  # a teacher from the first step on
TINY = [
    *PLAIN,
    *MODEL,
    "data.patch_size=7",  # 4 x 4 tokens
    "mask.num_masks=2",
    "mask.mask_length=2",
    "mask.mask_ratio=0.8",
    "mask.mask_ratio_adjust=0.07",
    "global_batch_size=4",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=1",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "schedule.warmup_steps=1",
    "optim.lr=0.01",
    "num_threads=1",
    "callbacks.checkpoint.keep=-1",
    "ema.decay_start=0.9",
    "ema.decay_end=0.99",
    "ema.anneal_steps=5",
    "callbacks.health.check_every_n_steps=1",
    "callbacks.health.min_spread=0.001",
]
NOISE = [
    "model.encoder.drop_rate=0.1",
    "model.encoder.attn_drop_rate=0.1",
    "model.encoder.mlp_drop_rate=0.1",
    "model.encoder.post_mlp_drop_rate=0.1",
    "model.encoder.drop_path_rate=0.2",
    "model.decoders.image.mask_noise_std=0.5",
    "model.decoders.image.input_drop_rate=0.1",
]


class Result(NamedTuple):
    """How a command ended."""

    status: Any
    out: str
    err: str


def d2v_command(*arguments: str | Path) -> Result:
    """``d2v ARGUMENTS`` in this process: what it prints and its exit status; process-wide state is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    argv, environment = sys.argv, dict(os.environ)
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["d2v", *map(str, arguments)]
    status: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                command_line.main()
            except SystemExit as error:
                status = error.code
                if isinstance(status, str):  # what the interpreter does with it
                    print(status, file=sys.stderr)
                    status = 1
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:], root.level = handlers, level
    return Result(status, out.getvalue(), err.getvalue())


def pretrain(output_dir: Path, *overrides: str) -> Path:
    """A tiny run that must succeed.

    Returns:
        The run's folder.
    """
    result = d2v_command("pretrain", f"output_dir={output_dir}", *TINY, *overrides)
    assert result.status in (0, None), result.err
    return Path(result.out.rpartition("run: ")[2].strip())


@contextlib.contextmanager
def configuration(command: str, *overrides: str) -> Iterator[DictConfig]:
    """The configuration that ``d2v COMMAND OVERRIDES`` would use; interpolations can be resolved inside the context."""
    with initialize_config_module("d2v.conf", version_base="1.3"):
        cfg = compose(command, overrides=[*overrides], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = "RUN"
            cfg.hydra.job.num = 0
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        try:
            yield cfg
        finally:
            HydraConfig.instance().cfg = None


class Fit(NamedTuple):
    """The pieces of a run."""

    module: PretrainModule
    datamodule: PretrainDataModule
    trainer: L.Trainer


def fit(*overrides: str, callbacks: list[L.Callback] | None = None, loggers: list[Any] | None = None) -> Fit:
    """Train the tiny model by the pieces, without the command line, with these callbacks only."""
    setup.quiet_libraries()
    with configuration("pretrain", *TINY, *overrides) as cfg:
        L.seed_everything(cfg.seed, verbose=False)
        data, mask, model = (built(cfg, key) for key in ("data", "mask", "model"))
        trainer = setup.make_trainer(cfg.trainer, callbacks or [], loggers or [])
        split = data.split_batch(cfg.global_batch_size, cfg.micro_batch_size, trainer.world_size)
        trainer.accumulate_grad_batches = split.accumulate
        optim, ema = (built(cfg, key) for key in ("optim", "ema"))
        schedule = built(cfg, "schedule", max_steps=cfg.trainer.max_steps)
        module = PretrainModule(model, optim, schedule, ema, cfg.seed)
        datamodule = PretrainDataModule(data, mask, split, 0, cfg.seed)
    trainer.fit(module, datamodule)
    return Fit(module, datamodule, trainer)


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``."""
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def checkpoints(run: Path) -> list[str]:
    """Names of a run's checkpoints, oldest first."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def load(run: Path, step: int) -> dict[str, Any]:
    """A run's checkpoint, without executing anything."""
    return torch.load(run / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=True)


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested containers differ, tensors compared bit by bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{path}.{key}" for key in a.keys() ^ b.keys()]
        return found + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [path]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [path]


def image_folder(root: Path, train: int = 12, val: int = 6, size: int = 20) -> Path:
    """Class directories ``train`` and ``val`` of a dark and a bright class, so many images each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, brightness in (("dark", 60), ("light", 190)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(brightness, 30, (size, size)), 0, 255).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def librispeech(root: Path, speakers: int = 2, clips: int = 3, part: str = "train-clean-100") -> Path:
    """A part of LibriSpeech of tones: so many clips of 2 to 3 s of every speaker, with transcripts."""
    import soundfile

    rng = np.random.default_rng(0)
    for speaker in range(speakers):
        folder = root / "LibriSpeech" / part / str(100 + speaker) / "1"
        folder.mkdir(parents=True)
        lines = []
        for i in range(clips):
            name = f"{100 + speaker}-1-{i:04d}"
            time = np.arange(int(16000 * (2 + i / max(1, clips)))) / 16000
            wave = 0.3 * np.sin(2 * np.pi * (200 + 150 * speaker + 40 * i) * time) + 0.02 * rng.normal(size=len(time))
            soundfile.write(folder / f"{name}.flac", wave.astype("float32"), 16000)
            lines.append(f"{name} {'HIGH' if speaker else 'LOW'} TONE\n")
        (folder / f"{100 + speaker}-1.trans.txt").write_text("".join(lines))
    return root


def sounds(root: Path, classes: int = 2, clips: int = 4, seconds: float = 1.0) -> Path:
    """Folders of tones and noise, so many recordings of a class."""
    import soundfile

    rng = np.random.default_rng(0)
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(clips):
            time = np.arange(int(16000 * seconds * (1 + i / clips))) / 16000
            wave = 0.3 * np.sin(2 * np.pi * (300 + 900 * label + 40 * i) * time) + 0.02 * rng.normal(size=len(time))
            soundfile.write(folder / f"{i}.flac", wave.astype("float32"), 16000)
    return root


def image_shards(folder: Path, num_shards: int = 4, rows: int = 6) -> list[str]:
    """Parquet shards of images, every other one a row longer, and the overrides that share them out to readers."""
    import datasets

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for shard in range(num_shards):
        images = []
        for _ in range(rows + shard % 2):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (28, 28), dtype=np.uint8)).save(file, "png")
            images.append({"bytes": file.getvalue(), "path": None})
        datasets.Dataset.from_dict({"image": images}).to_parquet(folder / f"train-{shard}.parquet")
    return [
        "data=hf_images", f"data.path={folder}", "data.streaming=sharded", "data.shuffle_buffer=4", "data.img_size=28",
        "data.in_chans=1", "data.mean=[0.5]", "data.std=[0.5]",
    ]  # fmt: skip


def text_file(path: Path, lines: int = 200) -> Path:
    """Sentences of a few words, one a line."""
    rng = np.random.default_rng(0)
    words = ["the", "cat", "dog", "sees", "hears", "a", "house", "tree", "and", "runs", "away", "slowly"]
    path.write_text("".join(" ".join(rng.choice(words, 8)) + ".\n" for _ in range(lines)))
    return path


def folder_data(root: Path) -> list[str]:
    """Overrides that train on :func:`image_folder`."""
    return [
        "data=image_folder",
        f"data.root={root}",
        "data.img_size=28",
        "data.in_chans=1",
        "data.mean=[0.5]",
        "data.std=[0.5]",
    ]
