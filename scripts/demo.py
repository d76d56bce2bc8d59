"""The demo: pretrain on the samples that ship, probe the frozen encoder, draw what happened.

``python scripts/demo.py image --seed 0`` runs the same commands a user would type and prints them.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset

from d2v.cli.loading import load_trained
from d2v.data.sampler import SampleKey
from d2v.eval.features import extract
from d2v.eval.figures import plot_curves, plot_masks, plot_pca
from d2v.interop.native import Checkpoint, build

EXPERIMENTS = {"image": "image_tiny"}
MAX_TIME = "00:00:06:00"  # of training; the recipe takes less on two quiet cores


def main() -> None:
    """Run the demo of one modality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modality", nargs="?", default="image", choices=sorted(EXPERIMENTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    parser.add_argument("overrides", nargs="*", help="more overrides for d2v pretrain")
    args = parser.parse_args()

    run_dir = args.output / f"{args.modality}_seed{args.seed}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    d2v(
        "pretrain",
        f"experiment={EXPERIMENTS[args.modality]}",
        f"seed={args.seed}",
        f"hydra.run.dir={run_dir}",
        f"trainer.max_time={MAX_TIME}",
        "callbacks=probe",
        "callbacks.probe.every_n_steps=500",
        *args.overrides,
    )
    d2v("evaluate", f"checkpoint={run_dir}", f"hydra.run.dir={run_dir}/evaluate", f"seed={args.seed}")
    print("\npictures:")
    for path in draw(run_dir):
        print(f"  {path}")


def d2v(*arguments: str) -> None:
    """Run a d2v command, shown as one would type it."""
    print("\n$ d2v " + " ".join(arguments), flush=True)
    start = time.monotonic()
    subprocess.run([str(Path(sys.executable).with_name("d2v")), *arguments], check=True)
    print(f"({time.monotonic() - start:.0f} s)", flush=True)


def draw(run_dir: Path, num_images: int = 8) -> list[Path]:
    """The run's curves, images with their masks, and patch features as colours."""
    trained = load_trained(str(run_dir), "student")
    config = Checkpoint.load(trained.path).config
    data, mask = build(config["data"]), build(config["mask"])
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))

    dataset, collate = data.pretrain_dataset(config["seed"]), data.pretrain_collate(mask, config["seed"])
    batch = collate([dataset[SampleKey(epoch=0, index=index)] for index in range(num_images)])
    views = (batch.inputs * std + mean).clamp(0, 1)

    val = data.eval_dataset("val")
    loader = DataLoader(Subset(val, range(num_images * 4)), batch_size=num_images * 4, collate_fn=data.eval_collate)
    images = torch.cat([b.inputs for b in loader])
    tokens = extract(trained.encoder, loader, pool="none").features[:, -math.prod(data.token_grid) :]
    pictures = run_dir / "pictures"
    return [
        plot_curves(run_dir / "metrics.csv", pictures / "curves.png"),
        plot_masks(views, batch.mask.mask, data.token_grid, mask.num_masks, pictures / "masks.png"),
        plot_pca((images * std + mean).clamp(0, 1), tokens, data.token_grid, pictures / "pca.png"),
    ]


if __name__ == "__main__":
    main()
