"""Configuration of a d2v encoder: data2vec 2.0 (arXiv:2212.07525) or 1.0 (arXiv:2202.03555)."""

from __future__ import annotations

import math
from typing import Any

from transformers import PretrainedConfig


class D2VConfig(PretrainedConfig):
    """The encoder's arguments, as in d2v, one frontend's, and a head's.

    Args:
        modality: "image", "speech", "text" or "spectrogram".
        frontend: the arguments of its frontend (see the classes of their names in modeling_d2v.py).
        embed_dim: features D.
        depth: Transformer blocks.
        num_heads: attention heads.
        prenet_depth: blocks before these, which come from the modality's own part of data2vec 2.0.
        mlp_ratio: hidden width of the MLPs over ``embed_dim``.
        norm_first: pre-norm blocks instead of post-norm.
        norm_eps: epsilon of the LayerNorms.
        input_norm: a LayerNorm before the first block.
        final_norm: a LayerNorm after the last block.
        layer_scale_init: what learned factors on the blocks' branches start at; None: there are none.
        rel_pos_grid: (rows, columns) of patches: every block has a bias of relative positions of its own; or None.
        drop_rate: dropout after attention projections.
        attn_drop_rate: dropout on attention weights.
        mlp_drop_rate: dropout inside MLPs.
        post_mlp_drop_rate: dropout on MLP outputs.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
        layer_drop_rate: probability of skipping a block in training.
        head_drop_rate: dropout in the head.
        head_norm_eps: epsilon of the head's LayerNorm (images, spectrograms).
        head_layers: "last", or "concat" for a head on the outputs of all blocks of the trunk side by side (speech).
        vocab_size: ids of tokens (text), or outputs of CTC (speech).
        pad_token_id: of padding (text), or CTC's blank (speech).
        kwargs: what all configurations have.
    """

    model_type = "d2v"
    attribute_map = {"hidden_size": "embed_dim", "num_hidden_layers": "depth", "num_attention_heads": "num_heads"}  # noqa: RUF012

    def __init__(
        self,
        modality: str = "image",
        frontend: dict[str, Any] | None = None,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        prenet_depth: int = 0,
        mlp_ratio: float = 4.0,
        norm_first: bool = False,
        norm_eps: float = 1e-6,
        input_norm: bool = True,
        final_norm: bool = False,
        layer_scale_init: float | None = None,
        rel_pos_grid: list[int] | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        mlp_drop_rate: float = 0.0,
        post_mlp_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_drop_rate: float = 0.0,
        head_drop_rate: float = 0.0,
        head_norm_eps: float = 1e-6,
        head_layers: str = "last",
        vocab_size: int | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.modality = modality
        self.frontend = dict(frontend or {})
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.prenet_depth = prenet_depth
        self.mlp_ratio = mlp_ratio
        self.norm_first = norm_first
        self.norm_eps = norm_eps
        self.input_norm = input_norm
        self.final_norm = final_norm
        self.layer_scale_init = layer_scale_init
        self.rel_pos_grid = rel_pos_grid
        self.drop_rate = drop_rate
        self.attn_drop_rate = attn_drop_rate
        self.mlp_drop_rate = mlp_drop_rate
        self.post_mlp_drop_rate = post_mlp_drop_rate
        self.drop_path_rate = drop_path_rate
        self.layer_drop_rate = layer_drop_rate
        self.head_drop_rate = head_drop_rate
        self.head_norm_eps = head_norm_eps
        self.head_layers = head_layers
        self.vocab_size = vocab_size
        self.pad_token_id = pad_token_id
        kwargs["pad_token_id"] = pad_token_id
        super().__init__(**kwargs)

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples of a waveform between two frames."""
        return math.prod(stride for _, _, stride in self.frontend.get("conv_layers", []))
