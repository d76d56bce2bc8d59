"""d2v beside other libraries at equal seconds of one core: the same ViT, images and probes.

    python scripts/bench/peers.py DIR --env ENV
    python scripts/bench/peers.py DIR --env ENV --budgets 5 --seeds 0 --methods 0 2 --no-choice

DIR holds train/ and val/ with a folder for every class, such as CIFAR-10. ENV is a folder outside of the repository, in
which stable-pretraining and lightly are installed at the first call, on top of the packages of this environment. Every
method of ``methods.py`` trains the encoder of image_tiny32 with batches of as many images. First the steps a second of
every method are measured, in turns, each in a process on one core, by its processor time; a budget of seconds then is a
number of steps, so what else the machine does changes little. Then each method tries the same three learning rates at
the shortest budget, on a fifth of the training images that it is not trained on; the best by the linear probe is used.
Every run has its own warm-up and schedule to the end. Features are read out by d2v's linear and kNN probes. Runs that
are there already are not run again. On a GPU seconds are those of the GPU, and runs come one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import available_cores, machine_facts, write_json
from environment import rerun_inside, versions
from methods import LEARNING_RATES, METHODS, RECIPE, Method, recipe, train
from parts import Commands, end_with_commands
from step import case_environment
from time_to_accuracy import Score, plot, score_table, slug, third_split
from torch import Tensor

from d2v.cli.settings import built
from d2v.data.eval_loader import eval_loader
from d2v.eval.features import eval_mode
from d2v.eval.knn import knn_accuracy
from d2v.eval.linear import linear_probe
from d2v.lit.machine import choose_precision, keep_freed_memory
from d2v.objective.schedules import warmup_cosine

MIN_STEPS = 8  # an eighth is warm-up
RATE_STEPS, RATE_ROUNDS, RATE_FIRST = 100, 2, 5  # the first ones are not timed
C_GRID = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Cell:
    """A run of one process.

    Attributes:
        method: key of ``METHODS``.
        root: folder with train/ and val/.
        lr: peak learning rate.
        steps: to train.
        seed: of the run.
        device: "cpu" or "cuda".
        probed: whether features are read out; else steps are timed only.
    """

    method: str
    root: str
    lr: float
    steps: int
    seed: int
    device: str
    probed: bool = True


def main() -> None:
    """Measure rates, choose learning rates, train, probe, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = ", ".join(f"{i} {name}" for i, name in enumerate(METHODS))
    parser.add_argument("data", type=Path, nargs="?", help="DIR with train/ and val/")
    parser.add_argument("--env", type=Path, help="environment of the other libraries; this one's if not given")
    parser.add_argument("--budgets", type=float, nargs="+", default=[40, 80], help="seconds of one core")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", type=int, nargs="+", default=list(range(len(METHODS))), help=listed)
    parser.add_argument("--no-choice", action="store_true", help=f"take {LEARNING_RATES[1]:g} for every method")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, help="runs at a time, one thread each; one a core, on a GPU 1")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/peers"), help="folder of all results")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(measure(Cell(**json.loads(args.cell)))))
        return
    if args.data is None or not all((args.data / part).is_dir() for part in ("train", "val")):
        parser.error(f"{args.data}: needs folders train/ and val/")
    if wrong := [i for i in args.methods if not 0 <= i < len(METHODS)]:
        parser.error(f"--methods {wrong[0]}: choose among {listed}")
    if args.env is not None:
        rerun_inside(args.env)
    output: Path = args.output.resolve()
    study = Study(
        output, args.data.resolve(), args.device, args.jobs or (1 if args.device == "cuda" else available_cores())
    )
    names = [list(METHODS)[i] for i in args.methods]
    print(", ".join(f"{name} {version}" for name, version in versions().items()), flush=True)
    rates = study.rates(names)
    print("steps a second: " + ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items()), flush=True)
    lrs = dict.fromkeys(names, LEARNING_RATES[1])
    if not args.no_choice:
        lrs = study.chosen(names, {name: steps_of(rates[name], min(args.budgets)) for name in names})
    print("learning rates: " + ", ".join(f"{name} {lr:g}" for name, lr in lrs.items()), flush=True)
    cells = [
        (budget, Cell(name, str(args.data.resolve()), lrs[name], steps_of(rates[name], budget), seed, args.device))
        for budget in sorted(args.budgets) for name in names for seed in args.seeds
    ]  # fmt: skip
    results = study.results([cell for _, cell in cells])
    scores = [
        Score(cell.method, budget, cell.seed, cell.steps, result["linear"], result["knn"])
        for (budget, cell), result in zip(cells, results, strict=True)
    ]
    print(f"\n{score_table(scores)}\n\ndrawn: {plot(scores, output / 'peers.png')}")
    content = {
        "machine": machine_facts(1), "versions": versions(), "command": sys.argv, "rates": rates, "lrs": lrs,
        "scores": [score._asdict() for score in scores],
    }  # fmt: skip
    write_json(output / "peers.json", content)


def steps_of(rate: float, budget: float) -> int:
    """Steps that a budget of seconds buys."""
    return max(MIN_STEPS, round(rate * budget))


class Study:
    """Runs with their results in a folder.

    Args:
        output: the folder.
        data: with train/ and val/.
        device: "cpu" or "cuda".
        jobs: runs at a time.
    """

    def __init__(self, output: Path, data: Path, device: str, jobs: int) -> None:
        self.output, self.data, self.device, self.jobs = output, data, device, jobs

    def result(self, cell: Cell) -> dict[str, Any]:
        """Of a cell, from its file if it was run before.

        Raises:
            CommandError: the run failed; the message has the end of what it printed.
        """
        kind = "" if cell.probed else "_rate"
        place = "third" if Path(cell.root) != self.data else "val"
        name = f"{slug(cell.method)}_{cell.steps}steps_lr{cell.lr:g}_seed{cell.seed}_{place}{kind}.json"
        path = self.output / "runs" / name
        described = json.loads(json.dumps(asdict(cell)))
        if path.exists() and (found := json.loads(path.read_text()))["cell"] == described:
            return dict(found["result"])
        command = [sys.executable, __file__, "--cell", json.dumps(described)]
        result: dict[str, Any] = json.loads(Commands().run(command, case_environment(1)).splitlines()[-1])
        write_json(path, {"cell": described, "result": result}, quiet=True)
        if cell.probed:
            scores = f"linear {100 * result['linear']:.1f}, kNN {100 * result['knn']:.1f}"
            print(
                f"{cell.method}, {cell.steps} steps, lr {cell.lr:g}, seed {cell.seed} ({place}): {scores}", flush=True
            )
        return result

    def results(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Of several cells, as many at a time as there are jobs."""
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(self.result, cells))

    def rates(self, names: Sequence[str]) -> dict[str, float]:
        """Steps a second of every method: the best of some rounds, in each of which all methods take their turn."""
        path = self.output / "rates.json"
        rates: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        missing = [name for name in names if name not in rates]
        for turn in range(RATE_ROUNDS if missing else 0):
            for name in missing:
                cell = Cell(name, str(self.data), LEARNING_RATES[1], RATE_STEPS, turn, self.device, probed=False)
                rates[name] = max(self.result(cell)["steps_per_s"], rates.get(name, 0.0))
        write_json(path, rates, quiet=True)
        return {name: rates[name] for name in names}

    def chosen(self, names: Sequence[str], steps: dict[str, int]) -> dict[str, float]:
        """The learning rate of every method that is best by the linear probe on a fifth of the training images."""
        root = str(third_split(self.data / "train", self.output / "images"))
        cells = [Cell(name, root, lr, steps[name], 0, self.device) for name in names for lr in LEARNING_RATES]
        accuracies = [result["linear"] for result in self.results(cells)]
        best: dict[str, float] = {}
        for name in names:
            tried = [(accuracies[i], cell.lr) for i, cell in enumerate(cells) if cell.method == name]
            best[name] = max(tried)[1]
        return best


def measure(cell: Cell) -> dict[str, Any]:
    """Train a cell, in this process, and read its encoder out; accuracies are 0 to 1."""
    device = torch.device(cell.device)
    if cell.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        keep_freed_memory()
    torch.manual_seed(cell.seed)
    method = METHODS[cell.method](cell.root, cell.lr, cell.steps, cell.seed, device)
    times: dict[int, float] = {}

    def mark(step: int) -> None:
        if step in (RATE_FIRST, cell.steps):
            if cell.device == "cuda":
                torch.cuda.synchronize()
            times[step] = time.process_time() if cell.device == "cpu" else time.perf_counter()

    bf16 = choose_precision("auto", cell.device) == "bf16-mixed"
    schedule = partial(warmup_cosine, warmup_steps=max(1, cell.steps // 8), max_steps=cell.steps)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)
    loss = train(method, cell.steps, schedule, cell.seed, device, autocast, end=mark)
    result = {"loss": loss, "steps_per_s": (cell.steps - RATE_FIRST) / (times[cell.steps] - times[RATE_FIRST])}
    if not cell.probed:
        return result
    data = built(recipe(RECIPE, cell.root), "data")
    train_x, train_y = features(method, data, "train", device, autocast)
    val_x, val_y = features(method, data, "val", device, autocast)
    probe = linear_probe(train_x, train_y, val_x, val_y, C_GRID)
    return {
        **result, "linear": probe.accuracy, "c": probe.c, "converged": probe.converged,
        "knn": knn_accuracy(train_x, train_y, val_x, val_y),
    }  # fmt: skip


def features(
    method: Method, data: Any, split: str, device: torch.device, autocast: Callable[[], Any]
) -> tuple[Tensor, Tensor]:
    """(N, D) features and (N,) labels of a split, of whole images."""
    encoded, labels = [], []
    with eval_mode(method.model), torch.inference_mode(), autocast():
        for batch in eval_loader(data, split):
            encoded.append(method.encode(batch.inputs.to(device)).float().cpu())
            labels.append(batch.labels)
    return torch.cat(encoded).clone(), torch.cat(labels).clone()


if __name__ == "__main__":
    end_with_commands()
    main()
