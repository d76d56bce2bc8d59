"""``d2v evaluate``: probe a frozen encoder, with its inputs and the untrained encoder as baselines."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from d2v.cli.keys import argument_keys
from d2v.cli.launch import configuring, run
from d2v.cli.loading import best_device, check_probed, load_data, name_skipped
from d2v.cli.scoring import score_finetuned
from d2v.cli.settings import Evaluate, checked, plain
from d2v.data.eval_loader import eval_loader
from d2v.data.protocol import EvalData
from d2v.errors import in_keys
from d2v.eval.prober import Prober
from d2v.eval.probes import Settings
from d2v.eval.results import probes_table
from d2v.interop.checkpoints import open_checkpoint
from d2v.lit.machine import choose_precision, choose_workers, set_threads
from d2v.runs.results import Results, write_results
from d2v.terminal import watched
from d2v.types import Batch


def evaluate(cfg: DictConfig) -> None:
    """Print the table of probes and write it, with results.json, to the command's folder."""
    with configuring(cfg):
        settings = checked(Evaluate, plain(cfg, without=["data"]))
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        num_workers = choose_workers(settings.num_workers, best_device().type)
        set_threads(settings.num_threads, num_workers)
        trained = open_checkpoint(settings.checkpoint, settings.network)
        if trained.is_finetuned:
            score_finetuned(cfg, settings, trained, run_dir, num_workers)
            return
        check_probed(settings.probe.layers, settings.probe.pool, trained, "probe.")
        if settings.decoder is not None:
            raise ValueError("decoder=...: only what a fine-tuned model transcribes is decoded; remove it")
        data = load_data(cfg, trained)
        summary = "\n".join(data.describe())
        print(f"checkpoint: {trained.path}\n{in_keys(summary, argument_keys(cfg), only_values=True)}", flush=True)
        prober = Prober(
            data, probe_settings(settings), lambda split: encoding(data, split, settings, num_workers), name_skipped
        )
        rows = []
        if settings.baselines:
            rows.append(prober.probe_inputs())
            rows.append(prober.probe("untrained encoder", trained.untrained(settings.seed)))
        name = "pretrained encoder" if trained.step is None else f"pretrained encoder, {trained.step} steps"
        rows.append(prober.probe(name, trained.encoder))
        table = in_keys(probes_table(rows), {"c_grid": "probe.c_grid"}, only_values=True)
        print(table)
        about = {"checkpoint": str(trained.path), "step": trained.step}
        path = write_results(run_dir, Results(rows, about), table)
        print(f"results: {path}")


def probe_settings(settings: Evaluate) -> Settings:
    """Return the settings of the probes: the keys of ``probe``, seed, device and precision."""
    device = best_device().type
    precision = choose_precision(settings.precision, device)
    return Settings(**asdict(settings.probe), seed=settings.seed, device=device, bf16=precision == "bf16-mixed")


def encoding(data: EvalData, split: str, settings: Evaluate, num_workers: int) -> Iterable[Batch]:
    """Return the batches of a split, with progress on standard error."""
    batch_size = None if settings.batch_size == "auto" else settings.batch_size
    return watched(eval_loader(data, split, batch_size, num_workers), f"encoding {split}")


if __name__ == "__main__":
    sys.exit(run("evaluate"))
