"""``d2v info``: versions, hardware, and the content of a checkpoint."""

from __future__ import annotations

import sys
import textwrap

import torch
import yaml
from omegaconf import DictConfig

from d2v.cli.launch import configuring, run
from d2v.cli.settings import Info, checked, plain
from d2v.interop.checkpoints import ORIGINS, open_checkpoint
from d2v.lit.machine import choose_precision, describe_run


def info(cfg: DictConfig) -> None:
    """Print versions, hardware and, if given, the content of a checkpoint, for bug reports."""
    with configuring(cfg):
        settings = checked(Info, plain(cfg))
    run = describe_run(seed=0)
    print(f"d2v {run['d2v']}, Python {run['python']}, {run['platform']}")
    print(", ".join(f"{name} {version}" for name, version in run["packages"].items()))
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{run['device']}, {run['cores']} cores, precision auto = {choose_precision('auto', accelerator)}")
    if settings.checkpoint is None:
        return
    with configuring(cfg):
        trained = open_checkpoint(settings.checkpoint, "student")
    node = trained.encoder_node
    print(f"\n{trained.path}")
    print(ORIGINS[trained.origin] + ("" if trained.step is None else f", step {trained.step}"))
    parameters = sum(p.numel() for p in trained.encoder.parameters())
    print(
        f"encoder: {parameters:,} parameters, {node.get('prenet_depth', 0)} + {node['depth']} blocks, "
        f"width {node['embed_dim']}, {node['num_heads']} heads; modalities: {', '.join(node['frontends'])}"
    )
    for title, values in (("inputs", trained.inputs), ("data", trained.data_node)):
        short = {key: textwrap.shorten(v, 100) if isinstance(v, str) else v for key, v in values.items()}
        if title == "inputs" or short:
            lines = yaml.safe_dump(short, sort_keys=False, allow_unicode=True)
            print(f"{title}:\n{textwrap.indent(lines, '  ')}", end="")


if __name__ == "__main__":
    sys.exit(run("info"))
