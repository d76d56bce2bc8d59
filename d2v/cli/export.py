"""``d2v export``: an encoder as a folder to hand on."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from d2v.cli.launch import configuring, run
from d2v.cli.loading import Trained, load_trained
from d2v.interop.native import save_encoder
from d2v.version import __version__

_CARD = """---
library_name: d2v
license: other
tags: [data2vec, self-supervised, feature-extraction]
---
# An encoder pretrained with data2vec 2.0

{parameters:.1f}M parameters, the {network} after {step} optimizer steps. The weights' licence is yours to state.

```python
import torch, d2v

encoder = d2v.load_encoder("this folder")
images = torch.zeros(1, {in_chans}, {img_size}, {img_size})  # normalised with mean {mean}, std {std}
batch = d2v.Batch("image", images, sample_ids=torch.arange(1))
out = encoder(batch, return_layers=True)
out.patch_tokens  # (1, tokens, {embed_dim}) features; out.hidden_states: every block's
```

- Data: `{data}`.
- Written by d2v {version}; `config.yaml` rebuilds the encoder, `encoder.safetensors` holds its weights.
"""


@hydra.main(version_base="1.3", config_path="pkg://d2v.conf", config_name="export")
def export(cfg: DictConfig) -> None:
    """Write encoder.safetensors, config.yaml and a model card."""
    with configuring():
        trained = load_trained(cfg.checkpoint, cfg.network)
        config = {"encoder": trained.encoder_node, "data": trained.data_node, "d2v_version": __version__}
        folder = save_encoder(trained.encoder, config, cfg.output, model_card(trained, cfg.network))
    print(f"encoder: {folder}")


def model_card(trained: Trained, network: str) -> str:
    """What a reader needs to use the encoder."""
    data = trained.data_node
    return _CARD.format(
        parameters=sum(p.numel() for p in trained.encoder.parameters()) / 1e6,
        network=network,
        step="an unknown number of" if trained.step is None else f"{trained.step:,}",
        in_chans=data["in_chans"],
        img_size=data["img_size"],
        mean=data["mean"],
        std=data["std"],
        embed_dim=trained.encoder.embed_dim,
        data=data["_target_"].rpartition(".")[2],
        version=__version__,
    )


if __name__ == "__main__":
    sys.exit(run("export"))
