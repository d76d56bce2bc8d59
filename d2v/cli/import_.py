"""``d2v import``: convert a checkpoint of the authors or of Hugging Face, with every parameter accounted for."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from d2v.cli.cards import model_card
from d2v.cli.launch import configuring, run
from d2v.cli.settings import Import, checked, plain
from d2v.interop.checkpoints import ORIGINS, open_checkpoint
from d2v.interop.exports import save_encoder
from d2v.version import __version__


def import_(cfg: DictConfig) -> None:
    """Print a description of the checkpoint, and write its encoder in the format of ``d2v export``."""
    with configuring(cfg):
        settings = checked(Import, plain(cfg))
        trained = open_checkpoint(settings.checkpoint, settings.network)
        state, node = trained.encoder.state_dict(), trained.encoder_node
        print(
            f"{trained.path}: {ORIGINS[trained.origin]}\n"
            f"encoder: {', '.join(node['frontends'])}, {node.get('prenet_depth', 0)} + {node['depth']} blocks, width "
            f"{node['embed_dim']}, {node['num_heads']} heads\n"
            f"weights: {len(state)} tensors, {sum(t.numel() for t in state.values()):,} numbers: none missing, "
            "none left over"
        )
        if trained.head is not None:
            print("its head for a task is left out: checkpoint=PATH reads it in d2v export")
        config = {"encoder": node, "inputs": trained.inputs, "d2v_version": __version__}
        folder = save_encoder(trained.encoder, config, Path(settings.output), model_card(trained, settings.network))
        print(f"written to {folder}")


if __name__ == "__main__":
    sys.exit(run("import"))
