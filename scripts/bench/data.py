"""Speed of loading and masking, by the number of data workers, and the cost of a sample.

    python scripts/bench/data.py                                   # the samples that ship: images, speech, text
    python scripts/bench/data.py --images DIR                      # a folder of images as image_base reads it
    python scripts/bench/data.py speech_base data.root=DIR --workers 0 1 2 4 --json outputs/bench/data.json

The loader is the one that training uses, with nobody but this loop taking its batches; what workers have made ahead of
the clock is taken before it starts. One thread computes in every process, as on a machine whose cores are all busy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from common import (
    Spread,
    available_cores,
    compose_recipe,
    explained,
    machine_facts,
    recipes_and_overrides,
    table,
    write_json,
)
from torch.utils.data import DataLoader

from d2v.cli.settings import built
from d2v.data.batching import BatchSplit
from d2v.data.keys import RandomStream, sample_rng
from d2v.objective.masking import MaskGenerator
from d2v.types import Batch, TokenMask

DEFAULT_RECIPES = ("image_tiny", "speech_tiny", "text_tiny")
STEPS = 10**9  # more than anybody waits for
COST_BATCHES = 20  # after one that does not count
PREFETCHED = 2  # batches a worker makes ahead, torch's default
SEED = 0


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="RECIPE|KEY=VALUE", help="experiments, overrides of all of them")
    parser.add_argument(
        "--images", type=Path, help="measure this folder, at image_base's size unless a RECIPE is given"
    )
    parser.add_argument("--workers", type=int, nargs="+", help="0, 1, 2, ... one a core if not given")
    parser.add_argument("--seconds", type=float, default=3.0, help="that a rate is measured, each time")
    parser.add_argument("--repeats", type=int, default=3, help="of every rate")
    parser.add_argument("--json", type=Path, help="where everything measured goes")
    args = parser.parse_intermixed_args()

    if args.images and not args.images.is_dir():
        parser.error(f"--images {args.images}: no such directory")
    recipes, overrides = recipes_and_overrides(args.words, ("image_base",) if args.images else DEFAULT_RECIPES)
    overrides += ["data=image_folder", f"data.root={args.images}"] if args.images else []
    workers = args.workers or list(range(available_cores() + 1))
    torch.set_num_threads(1)
    results = []
    for recipe in recipes:
        with explained():
            result = measure(recipe, overrides, workers, args.seconds, args.repeats)
        results.append(result)
        print(f"\n{describe(result)}\n\n{rate_table(result)}\n\n{cost_table(result)}", flush=True)
    if args.json:
        write_json(args.json, {"machine": machine_facts(threads=1), "command": sys.argv, "results": results})


def measure(
    recipe: str, overrides: Sequence[str], workers: Sequence[int], seconds: float, repeats: int
) -> dict[str, Any]:
    """A recipe's data: samples a second for each number of workers, seconds a sample for each piece of the work."""
    cfg = compose_recipe(recipe, overrides)
    data, mask = (built(cfg, key) for key in ("data", "mask"))
    if data.streaming:
        raise SystemExit(f"{recipe}: streams are not measured; give data with data.streaming=false")
    split = data.split_batch(cfg.global_batch_size, cfg.micro_batch_size, 1)
    batch = next(batches(data, mask, split, 0))
    rates = {n: [rates_of(data, mask, split, n, seconds) for _ in range(repeats)] for n in workers}
    return {
        "recipe": recipe,
        "overrides": list(overrides),
        "data": type(data).__name__,
        "inputs": list(batch.inputs.shape),
        "masks": mask.num_masks,
        "tokens": batch.mask.mask.shape[1] if batch.mask else 0,
        "samples_per_s": {str(n): Spread(tuple(samples for samples, _ in rates[n])).record() for n in rates},
        "values_per_s": {str(n): Spread(tuple(values for _, values in rates[n])).record() for n in rates},
        "seconds_per_sample": {name: spread.record() for name, spread in costs(data, mask, split).items()},
    }


def batches(data: Any, mask: MaskGenerator, split: BatchSplit, num_workers: int) -> Iterator[Batch]:
    """Training batches of one device, without end."""
    loader: DataLoader[Any] = DataLoader(
        data.pretrain_dataset(SEED),
        batch_sampler=endless_sampler(data, split),
        collate_fn=data.pretrain_collate(mask, SEED),
        num_workers=num_workers,
    )
    return iter(loader)


def endless_sampler(data: Any, split: BatchSplit) -> Any:
    """Keys of training batches."""
    return data.pretrain_sampler(SEED, split, num_batches=STEPS * split.accumulate, accumulate=split.accumulate)


def rates_of(
    data: Any, mask: MaskGenerator, split: BatchSplit, num_workers: int, seconds: float
) -> tuple[float, float]:
    """Samples and input values (channels of pixels, samples of a waveform, tokens) a second in the long run."""
    loaded = batches(data, mask, split, num_workers)
    for _ in islice(loaded, 1 + PREFETCHED * num_workers):
        pass
    samples, values, start = 0, 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not samples:
        inputs = next(loaded).inputs
        samples, values = samples + len(inputs), values + inputs.numel()
    return samples / elapsed, values / elapsed


def costs(data: Any, mask: MaskGenerator, split: BatchSplit) -> dict[str, Spread]:
    """Seconds a sample, in this process: to load and vary it, to draw its masks, to index them, to make a batch of it.

    "batch" is all of the collation: masks and their indices are part of it.
    """
    dataset, collate = data.pretrain_dataset(SEED), data.pretrain_collate(mask, SEED)
    sampler = endless_sampler(data, split)
    times: dict[str, list[float]] = {"load": [], "masks": [], "indices": [], "batch": []}
    for keys in islice(sampler, 1 + COST_BATCHES):
        readings = [time.perf_counter()]
        samples = [dataset[key] for key in keys]
        readings.append(time.perf_counter())
        batch = collate(samples)
        readings.append(time.perf_counter())
        rngs = [sample_rng(SEED, key.epoch, key.index, RandomStream.MASK) for key in keys]
        drawn = torch.from_numpy(mask(collate.grid(batch.inputs), rngs))
        readings.append(time.perf_counter())
        TokenMask.from_bool(drawn, mask.num_masks)
        readings.append(time.perf_counter())
        spent = [(end - start) / len(keys) for start, end in pairwise(readings)]
        for name, value in zip(("load", "batch", "masks", "indices"), spent, strict=True):
            times[name].append(value)
    return {name: Spread(tuple(values[1:])) for name, values in times.items()}


def describe(result: dict[str, Any]) -> str:
    """The data in a line."""
    shape = " x ".join(map(str, result["inputs"]))
    masks = f"{result['masks']} masks of {result['tokens']} tokens"
    return f"{result['recipe']} ({result['data']}): batches of {shape}, {masks}"


def rate_table(result: dict[str, Any]) -> str:
    """A row for every number of workers."""
    rows, rates = [], result["samples_per_s"]
    first = next(iter(rates.values()))["median"]
    for workers, spread in rates.items():
        median = spread["median"]
        rows.append([workers, f"{median:.0f}", f"{spread['min']:.0f}-{spread['max']:.0f}", f"{median / first:.2f}"])
    return table(["workers", "samples/s", "min-max", "times the first"], rows)


def cost_table(result: dict[str, Any]) -> str:
    """A row for every piece of the work."""
    rows = [
        [name, f"{1e6 * spread['median']:.0f}", f"{1e6 * spread['min']:.0f}-{1e6 * spread['max']:.0f}"]
        for name, spread in result["seconds_per_sample"].items()
    ]
    return table(["work", "us a sample", "min-max"], rows)


if __name__ == "__main__":
    main()
