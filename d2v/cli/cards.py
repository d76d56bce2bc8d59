"""Model cards of exports: origin, inputs, and code to load the model."""

from __future__ import annotations

import math

import torch

from d2v.interop.checkpoints import ORIGINS, Checkpoint
from d2v.interop.huggingface import ARGUMENTS
from d2v.version import __version__

_HEADER = """---
library_name: {library}
license: other
tags: [data2vec, self-supervised, feature-extraction]
---
# {title}

{parameters:.1f}M parameters, {origin}. The weights' licence is yours to state.

```python
{code}
```

- Inputs: {inputs_are}.
- Data: `{data}`.
- Written by d2v {version}{files}.
"""

_CODE = {
    "d2v": """import torch, d2v

encoder = d2v.load_encoder("this folder")
inputs = torch.zeros({shape}, dtype={dtype})  # {inputs_are}
out = encoder(d2v.Batch("{modality}", inputs, sample_ids=torch.arange(1)), return_layers=True)
out.patch_tokens  # (1, tokens, {embed_dim}) features; out.hidden_states: every block's""",
    "transformers": """import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("this folder").eval()
model({example}).last_hidden_state  # (1, tokens, {embed_dim}) features{pooler}""",
    "AutoModel": """import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("this folder", trust_remote_code=True).eval()
model({example}).last_hidden_state  # (1, tokens, {embed_dim}) features""",
    "ONNX": """import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("{onnx}")
session.run(None, {{"inputs": np.zeros(({shape}), np.{numpy_dtype}){padding}}})[0]  # (1, tokens, {embed_dim})""",
}
_FILES = {
    "d2v": "; `config.yaml` rebuilds the encoder, `encoder.safetensors` holds its weights",
    "ONNX": "; `config.yaml` says how the encoder was built",
}


def model_card(trained: Checkpoint, network: str, library: str = "d2v") -> str:
    """Return the model card in Markdown.

    Args:
        trained: the exported checkpoint.
        network: "student" or "teacher".
        library: reader of the export: "d2v", "transformers" (its own classes), "AutoModel" (d2v's class), or "ONNX".
    """
    modality = next(iter(trained.encoder.frontends))
    frontend = trained.encoder.frontend(modality)
    with torch.device("meta"):  # its shape is what matters
        example = frontend.example()
    num_tokens = math.prod(frontend.token_grid(example))
    shape, dtype = ", ".join(map(str, example.shape)), str(example.dtype)
    values = {
        "shape": shape,
        "dtype": dtype,
        "numpy_dtype": dtype.removeprefix("torch."),
        "modality": modality,
        "embed_dim": trained.encoder.embed_dim,
        "inputs_are": frontend.inputs_are,
        "example": f"{ARGUMENTS.get(modality, 'inputs')}=torch.zeros({shape}, dtype={dtype})",
        "padding": "" if len(example.shape) > 2 else f', "padding_mask": np.zeros((1, {num_tokens}), bool)',
        "onnx": "encoder.onnx" if trained.head is None else "model.onnx",
        "pooler": "; pooler_output means nothing" if dtype == "torch.int64" else "",
    }
    origin = (
        f"from {ORIGINS[trained.origin]}"
        if trained.step is None
        else f"the {network} after {trained.step:,} optimizer steps"
    )
    return _HEADER.format(
        library={"AutoModel": "transformers", "ONNX": "onnx"}.get(library, library),
        title="A model fine-tuned with d2v" if trained.head is not None else "An encoder pretrained with d2v",
        parameters=sum(p.numel() for p in trained.encoder.parameters()) / 1e6,
        origin=origin,
        code=_CODE[library].format(**values),
        inputs_are=frontend.inputs_are,
        data=str(trained.data_node.get("_target_", "not known")).rpartition(".")[2],
        version=__version__,
        files=_FILES.get(library, ""),
    )
