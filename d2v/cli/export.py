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
inputs = torch.zeros({shape}, dtype={dtype})  # {inputs_are}
out = encoder(d2v.Batch("{modality}", inputs, sample_ids=torch.arange(1)), return_layers=True)
out.patch_tokens  # (1, tokens, {embed_dim}) features; out.hidden_states: every block's
```

- Inputs: {inputs_are}.
- Data: `{data}`.
- Written by d2v {version}; `config.yaml` rebuilds the encoder, `encoder.safetensors` holds its weights.
"""


@hydra.main(version_base="1.3", config_path="pkg://d2v.conf", config_name="export")
def export(cfg: DictConfig) -> None:
    """Write encoder.safetensors, config.yaml, a model card, and the tokenizer of text."""
    with configuring():
        trained = load_trained(cfg.checkpoint, cfg.network)
        config = {"encoder": trained.encoder_node, "data": trained.data_node, "d2v_version": __version__}
        folder = save_encoder(trained.encoder, config, cfg.output, model_card(trained, cfg.network))
    print(f"encoder: {folder}")


def model_card(trained: Trained, network: str) -> str:
    """What a reader needs to use the encoder."""
    modality = next(iter(trained.encoder.frontends))
    frontend = trained.encoder.frontend(modality)
    example = frontend.example()
    return _CARD.format(
        parameters=sum(p.numel() for p in trained.encoder.parameters()) / 1e6,
        network=network,
        step="an unknown number of" if trained.step is None else f"{trained.step:,}",
        modality=modality,
        shape=", ".join(map(str, example.shape)),
        dtype=example.dtype,
        inputs_are=frontend.inputs_are,
        embed_dim=trained.encoder.embed_dim,
        data=trained.data_node["_target_"].rpartition(".")[2],
        version=__version__,
    )


if __name__ == "__main__":
    sys.exit(run("export"))
