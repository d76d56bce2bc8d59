"""Demo: pretrain on the shipped samples, probe the frozen encoder, draw figures.

``python scripts/demo.py image --seed 0`` runs and prints the commands that a user would type.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Subset

from d2v.data.keys import RandomStream, SampleKey, sample_rng
from d2v.eval.features import extract, extract_frames
from d2v.eval.figures.curves import plot_curves
from d2v.eval.figures.images import plot_masks, plot_pca
from d2v.eval.figures.sequences import plot_clips, plot_texts
from d2v.interop.build import build
from d2v.interop.checkpoints import open_checkpoint
from d2v.nn.encoder import Encoder
from d2v.objective.masking import MaskGenerator
from d2v.runs.metrics import METRICS


class Demo(NamedTuple):
    """Settings of a demo: the experiment, seconds of training, more overrides of pretraining and of the probes.

    ``least_steps`` are trained even where they take longer: with fewer, the inputs themselves would be as good.
    """

    experiment: str
    seconds: int
    least_steps: int
    pretrain: list[str]
    evaluate: list[str]


DEMOS = {
    "image": Demo(
        "image_tiny", 330, 1150, ["callbacks=probe", "callbacks.probe.every_n_steps=500"], ["probe.layers=concat"]
    ),
    "speech": Demo("speech_tiny", 180, 0, [], ["probe.layers=concat", "probe.ctc_epochs=15"]),
    "text": Demo("text_tiny", 140, 0, [], ["probe.layers=concat", "probe.c_grid=[0.001,0.01,0.1]"]),
}
CONF = Path(__file__).parents[1] / "conf"
TRIAL_STEPS = 30
SUSTAINED = 0.75  # of a short trial's rate is kept for minutes: machines slow down once they are warm or shared


def main() -> None:
    """Run the demo of one modality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modality", nargs="?", default="image", choices=sorted(DEMOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, help="of training, at most; the demo's own if not given")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    parser.add_argument("overrides", nargs="*", help="more overrides for d2v pretrain")
    args = parser.parse_args()

    run_dir = args.output / f"{args.modality}_seed{args.seed}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    demo = DEMOS[args.modality]
    experiment = [f"experiment={demo.experiment}", f"seed={args.seed}", *args.overrides]
    max_steps = plan_steps(experiment, demo, args.seconds)
    run(
        "pretrain",
        *experiment,
        f"hydra.run.dir={run_dir}",
        f"trainer.max_steps={max_steps}",
        *demo.pretrain,
    )
    probe = [f"hydra.run.dir={run_dir}/evaluate", f"seed={args.seed}", *demo.evaluate]
    run("evaluate", f"checkpoint={run_dir}", *probe)
    print("\npictures:")
    for path in draw(run_dir):
        print(f"  {path}")


def plan_steps(experiment: list[str], demo: Demo, seconds: int | None) -> int:
    """The recipe's steps, or as many as take the demo's time here: the schedule must reach its end.

    Without ``seconds`` there are at least ``demo.least_steps``, and it is said where they take longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = [f"trainer.max_steps={TRIAL_STEPS}", f"trainer.log_every_n_steps={TRIAL_STEPS // 3}"]
        run("pretrain", *experiment, f"hydra.run.dir={folder}/trial", *trial)
        with Path(folder, "trial", METRICS).open(newline="") as file:
            rates = [float(row["perf/steps_per_s"]) for row in csv.DictReader(file)]
    rate = SUSTAINED * statistics.median(rates[1:])  # the first rate holds the start
    affordable = int(rate * (seconds or demo.seconds))
    recipe: int = OmegaConf.load(CONF / "experiment" / f"{demo.experiment}.yaml").trainer.max_steps
    print(
        f"\nthis machine affords {affordable:,} steps in {seconds or demo.seconds} s; the recipe has {recipe:,}",
        flush=True,
    )
    if not seconds and affordable < demo.least_steps:
        minutes = demo.least_steps / rate / 60
        print(
            f"fewer than {demo.least_steps:,} do not beat the inputs: it takes these, in about {minutes:.0f} minutes",
            flush=True,
        )
        affordable = demo.least_steps
    return min(recipe, affordable)


def run(*arguments: str) -> None:
    """Run a d2v command, shown as one would type it."""
    print("\n$ d2v " + " ".join(arguments), flush=True)
    start = time.monotonic()
    subprocess.run([str(Path(sys.executable).with_name("d2v")), *arguments], check=True)
    print(f"({time.monotonic() - start:.0f} s)", flush=True)


def draw(run_dir: Path) -> list[Path]:
    """The run's curves, and samples with their masks and features."""
    trained = open_checkpoint(run_dir)
    config = trained.config
    data, mask = (build(config[key], key=key) for key in ("data", "mask"))
    draw_samples = {"image": draw_images, "speech": draw_clips, "text": draw_texts}[data.modality]
    pictures = run_dir / "pictures"
    curves = plot_curves(run_dir / METRICS, pictures / "curves.png")
    return [curves, *draw_samples(trained.encoder, data, mask, config["seed"], pictures)]


def draw_images(
    encoder: Encoder, data: Any, mask: MaskGenerator, seed: int, pictures: Path, count: int = 8
) -> list[Path]:
    """Training images with their masks; held-out ones with their patch features as colours."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    dataset, collate = data.pretrain_dataset(seed), data.pretrain_collate(mask, seed)
    batch = collate([dataset[SampleKey(epoch=0, index=index)] for index in range(count)])
    views = (batch.inputs * std + mean).clamp(0, 1)

    loader = DataLoader(
        Subset(data.eval_dataset("val"), range(count * 4)), batch_size=count * 4, collate_fn=data.eval_collate
    )
    images = torch.cat([b.inputs for b in loader])
    tokens = extract(encoder, loader, pool="none").features[:, -math.prod(data.token_grid) :]
    return [
        plot_masks(views, batch.mask.mask, data.token_grid, mask.num_masks, pictures / "masks.png"),
        plot_pca((images * std + mean).clamp(0, 1), tokens, data.token_grid, pictures / "pca.png"),
    ]


def draw_clips(
    encoder: Encoder, data: Any, mask: MaskGenerator, seed: int, pictures: Path, count: int = 4
) -> list[Path]:
    """Held-out clips: spectrograms, masks as training would draw them, and frame features as colours."""
    chosen = list(range(0, len(data.val), max(1, len(data.val) // count)))[:count]
    loader = DataLoader(Subset(data.eval_dataset("val"), chosen), batch_size=1, collate_fn=data.eval_collate)
    frames, ids, _ = extract_frames(encoder, loader)
    mels, mel_ids = data.raw_frames("val")
    spectrograms = [mels[mel_ids.tolist().index(i)] for i in ids.tolist()]
    rngs = [sample_rng(seed, 0, i, RandomStream.MASK) for i in ids.tolist()]
    masks = [torch.from_numpy(mask((len(x),), [rng])) for x, rng in zip(frames, rngs, strict=True)]
    return [plot_clips(spectrograms, masks, frames, pictures / "clips.png")]


def draw_texts(
    encoder: Encoder, data: Any, mask: MaskGenerator, seed: int, pictures: Path, count: int = 6
) -> list[Path]:
    """Training blocks with their masks."""
    dataset, collate = data.pretrain_dataset(seed), data.pretrain_collate(mask, seed)
    batch = collate([dataset[SampleKey(epoch=0, index=index)] for index in range(count)])
    tokens = [[data.tokenizer.decode([i]) or "|" for i in block] for block in batch.inputs.tolist()]
    return [plot_texts(tokens, list(batch.mask.mask.view(count, mask.num_masks, -1)), pictures / "masks.png")]


if __name__ == "__main__":
    main()
