"""Speed, memory, tests and learning on a GPU in one command of at most eight minutes.

    python scripts/bench/gpu.py                     # writes outputs/bench/gpu/gpu.json and gpu.md
    python scripts/bench/gpu.py --short             # tiny models, about a minute; on a CPU, too

It needs the checkout and the samples that ship. Parts, the most important ones first: training steps of the base and
large recipes in bfloat16, with their share of the rate of a large matrix product timed in turns with them; whether the
data loader can feed them; the tests marked gpu; what short runs of ``d2v pretrain`` learn in how many seconds; the same
steps under ``torch.compile``. A part that does not fit into the budget is left out, a part that fails does not stop the
others; both are named in the results, and the exit status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import available_cores, machine_facts, write_json
from gpu_report import report
from omegaconf import OmegaConf
from parts import CommandError, Commands, LeftOutError, Outcome, Part, end_with_commands, run_parts
from step import BATCHES, Case, case_command, case_environment, case_result

from d2v.data.images.sources import SampleImages
from d2v.lit.machine import choose_workers
from d2v.runs.metrics import METRICS
from d2v.runs.record import CONFIG
from d2v.runs.results import read_results

ROOT = Path(__file__).parents[2]
RECIPES = ("image_base", "speech_base", "text_base", "image_large", "speech_large", "text_large")
TINY = ("image_tiny", "speech_tiny", "text_tiny")
# Samples a batch that keep a GPU busy; halved until they fit into its memory.
GPU_BATCHES = {
    "image_base": 32, "image_large": 16, "speech_base": 8, "speech_large": 4, "text_base": 8, "text_large": 4,
}  # fmt: skip
LOADED = {
    "image_base": ["data=image_folder"],  # its root is made here
    "speech_base": ["data=samples_speech"],
    "text_base": ["data=samples_text"],
    **{recipe: list[str]() for recipe in TINY},
}
PHOTOS, PHOTO_SIZE = 256, (500, 375)  # JPEGs of about the size of ImageNet's
LEARNING_RECIPE = "image_tiny"
LEARNING_STEPS, SHORT_LEARNING_STEPS = (400, 1600), (16,)
NO_TESTS = 5  # pytest's exit status when nothing is selected
BUDGETS = {"full": 480.0, "short": 60.0}


def main() -> int:
    """Measure what fits, write both files, and say whether a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="tiny recipes, few repetitions")
    parser.add_argument("--budget", type=float, help="seconds; 480, with --short 60, if not given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/gpu"), help="folder of gpu.json and gpu.md")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU")
    budget = args.budget if args.budget is not None else BUDGETS["short" if args.short else "full"]
    facts = machine_facts(available_cores())

    def write(outcomes: Sequence[Outcome]) -> None:
        last = outcomes[-1]
        print(f"{last.part}: {last.status} after {last.seconds:.0f} s {last.reason}".rstrip(), flush=True)
        content = {
            "machine": facts, "device": args.device, "command": sys.argv, "budget": budget,
            "parts": [asdict(outcome) for outcome in outcomes],
        }  # fmt: skip
        write_json(args.output / "gpu.json", content, quiet=True)
        (args.output / "gpu.md").write_text(report(facts, args.device, outcomes))

    with tempfile.TemporaryDirectory() as scratch:
        outcomes = run_parts(plan(args.device, args.short, Path(scratch)), budget, write)
    print(f"\n{report(facts, args.device, outcomes)}\nwritten: {args.output / 'gpu.json'}, {args.output / 'gpu.md'}")
    return int(any(outcome.status == "failed" for outcome in outcomes))


def plan(device: str, short: bool, scratch: Path) -> list[Part]:
    """The parts, the most important ones first.

    Args:
        device: "cpu" or "cuda".
        short: whether models are tiny.
        scratch: folder for what the parts write.
    """
    recipes, repetitions = (TINY, 2) if short else (RECIPES, 10 if device == "cuda" else 3)
    loaded = [recipe for recipe in recipes if recipe in LOADED]
    batches = {**BATCHES, **GPU_BATCHES} if device == "cuda" else BATCHES
    cases = [Case(recipe, "bf16-mixed", batches[recipe], steps=repetitions, device=device) for recipe in recipes]
    limit = 120.0 if device == "cuda" else float("inf")  # a CPU's large steps take what the budget gives
    steps = [Part(f"step of {case.recipe}", partial(step, case), 5.0, limit) for case in cases]
    compiled = [
        Part(f"compiled step of {case.recipe}", partial(step, replace(case, compiled=True)), 30.0, 2 * limit)
        for case in cases
    ]
    feeds = [
        Part(f"loading for {recipe}", partial(loading, recipe, device, short, scratch), 5.0, limit) for recipe in loaded
    ]
    tests = Part("tests marked gpu", partial(gpu_tests, device), 10.0, limit)
    learning_steps = SHORT_LEARNING_STEPS if short else LEARNING_STEPS
    learning = [
        Part(f"{LEARNING_RECIPE} of {n} steps", partial(learned, n, device, short, scratch), 15.0, limit)
        for n in learning_steps
    ]
    return [*steps, *feeds, tests, *learning, *([] if short else compiled)]


def step(case: Case, commands: Commands) -> dict[str, Any]:
    """A case of ``step.py``, with half of the batch until it fits into the GPU's memory."""
    while True:
        try:
            return case_result(commands.run(case_command(case), case_environment(available_cores())))
        except CommandError as error:
            if "OutOfMemoryError" not in str(error) or not case.batch or case.batch == 1:
                raise
            case = replace(case, batch=case.batch // 2)


def loading(recipe: str, device: str, short: bool, scratch: Path, commands: Commands) -> dict[str, Any]:
    """Rates of the loader with as many workers as ``d2v pretrain`` would start."""
    overrides = list(LOADED[recipe])
    if "data=image_folder" in overrides:
        overrides.append(f"data.root={photos(scratch / 'photos')}")
    workers = choose_workers("auto", device)
    seconds, repeats = ("0.5", "1") if short else ("2", "2")
    path = scratch / f"{recipe}.json"
    commands.run([
        sys.executable, str(Path(__file__).with_name("data.py")), recipe, *overrides, "--workers", str(workers),
        "--seconds", seconds, "--repeats", repeats, "--json", str(path),
    ])  # fmt: skip
    (result,) = json.loads(path.read_text())["results"]
    return {**result, "workers": workers}


def photos(folder: Path) -> Path:
    """A folder of JPEGs, enlarged from images that ship: they take as long to decode as smooth photographs."""
    if not folder.exists():
        folder.mkdir(parents=True)
        images = SampleImages("train")
        for i in range(PHOTOS):
            image = images.load(i).convert("RGB").resize(PHOTO_SIZE)
            image.save(folder / f"{i}.jpg", quality=90)
    return folder


def gpu_tests(device: str, commands: Commands) -> dict[str, Any]:
    """``pytest -m gpu`` on the checkout."""
    if device != "cuda":
        raise LeftOutError("needs a GPU")
    try:
        output = commands.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")])
    except CommandError as error:
        if str(error).startswith(f"exit status {NO_TESTS}:"):
            raise LeftOutError("no test is marked gpu") from error
        raise
    return {"summary": output.strip().splitlines()[-1]}


def learned(steps: int, device: str, short: bool, scratch: Path, commands: Commands) -> dict[str, Any]:
    """Probes of a run of so many steps on the images that ship, and the seconds that its steps took."""
    run = scratch / f"{LEARNING_RECIPE}_{steps}"
    d2v = str(Path(sys.executable).with_name("d2v"))
    schedule = [
        f"trainer.max_steps={steps}", f"schedule.warmup_steps={steps // 8}", f"ema.anneal_steps={steps // 2}",
        f"trainer.log_every_n_steps={steps // 8}", f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}",
    ]  # fmt: skip
    commands.run([d2v, "pretrain", f"experiment={LEARNING_RECIPE}", *schedule, "seed=0", f"hydra.run.dir={run}"])
    probes = ["probe=knn"] if short else ["probe.ctc=false", "probe.c_grid=[0.1,1.0,10.0]"]
    into = f"hydra.run.dir={run / 'probes'}"
    commands.run([d2v, "evaluate", f"checkpoint={run}", "baselines=false", "precision=auto", *probes, into])
    results = read_results(run / "probes")
    assert results is not None, "d2v evaluate writes results"
    (row,) = results.rows
    with (run / METRICS).open(newline="") as file:
        rates = [float(one["perf/samples_per_s"]) for one in csv.DictReader(file) if one.get("perf/samples_per_s")]
    rate = statistics.harmonic_mean(rates[1:])  # the first interval has the warm-up
    batch_size = OmegaConf.load(run / CONFIG).global_batch_size
    return {
        "recipe": LEARNING_RECIPE,
        "steps": steps,
        "seconds": steps * batch_size / rate,
        "samples_per_s": rate,
        "scores": dict(row.scores),
    }


if __name__ == "__main__":
    end_with_commands()
    sys.exit(main())
