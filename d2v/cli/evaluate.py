"""``d2v evaluate``: probe frozen encoders, with their inputs and untrained encoders as baselines."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from d2v.cli.launch import configuring, run
from d2v.cli.loading import best_device, check_probed
from d2v.cli.probing import names_of, probe_rows
from d2v.cli.scoring import score_finetuned
from d2v.cli.settings import Evaluate, checked, plain
from d2v.errors import in_keys
from d2v.eval.results import probes_table
from d2v.interop.checkpoints import open_checkpoint
from d2v.lit.machine import choose_workers, set_threads
from d2v.runs.results import Results, write_results


def evaluate(cfg: DictConfig) -> None:
    """Print the table of probes and write it, with results.json, to the command's folder."""
    with configuring(cfg):
        settings = checked(Evaluate, plain(cfg, without=["data"]))
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        num_workers = choose_workers(settings.num_workers, best_device().type)
        set_threads(settings.num_threads, num_workers)
        several = not isinstance(settings.checkpoint, str)
        paths = settings.checkpoint if isinstance(settings.checkpoint, list) else [settings.checkpoint]
        checkpoints = [open_checkpoint(path, settings.network) for path in paths]
        if any(trained.is_finetuned for trained in checkpoints):
            if several:
                path = next(path for path, trained in zip(paths, checkpoints, strict=True) if trained.is_finetuned)
                raise ValueError(
                    f"checkpoint: {path} is fine-tuned; a list is probed, so score it by checkpoint={path}"
                )
            score_finetuned(cfg, settings, checkpoints[0], run_dir, num_workers)
            return
        for trained in checkpoints:
            check_probed(settings.probe.layers, settings.probe.pool, trained, "probe.")
        if settings.decoder is not None:
            raise ValueError("decoder=...: only what a fine-tuned model transcribes is decoded; remove it")
        rows = list(probe_rows(cfg, settings, checkpoints, names_of(paths, checkpoints), num_workers))
        table = in_keys(probes_table(rows), {"c_grid": "probe.c_grid"}, only_values=True)
        print(table)
        origins = [str(trained.path) for trained in checkpoints]
        steps = [trained.step for trained in checkpoints]
        about = {"checkpoint": origins if several else origins[0], "step": steps if several else steps[0]}
        print(f"results: {write_results(run_dir, Results(rows, about), table)}")


if __name__ == "__main__":
    sys.exit(run("evaluate"))
