"""Content of imported checkpoints: node and weights of an encoder, and the form of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from d2v.interop.fitting import build_fitting
from d2v.nn.encoder import Encoder

Node = dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """Imported encoder, and the head of a fine-tuned model.

    Attributes:
        encoder_node: node that builds the encoder (:func:`d2v.interop.build.build`).
        encoder_state: state dict of the encoder, under our names.
        inputs: form of the inputs, under the keys of conf/inputs. Images: img_size, patch_size, in_chans, mean, std,
            and maybe crop_pct. Speech: sample_rate (Hz), conv_layers. Text: pad_id, vocab_size, block_size (tokens),
            and tokenizer, the content of a tokenizer.json or None.
        head_node: node that builds the head of a fine-tuned model; None without a head.
        head_state: state dict of the head.
        label_names: names of the head's outputs: classes by index, or the letters after CTC's blank as one string; None
            if unknown.
    """

    encoder_node: Node
    encoder_state: dict[str, Tensor]
    inputs: Node
    head_node: Node | None = None
    head_state: dict[str, Tensor] | None = None
    label_names: list[str] | str | None = None

    def build_encoder(self) -> Encoder:
        """Build the encoder with its weights, in eval mode."""
        encoder: Encoder = build_fitting(self.encoder_node, self.encoder_state)
        return encoder.eval().requires_grad_(False)

    def build_head(self) -> nn.Module | None:
        """Build the head with its weights, in eval mode; None without a head."""
        if self.head_node is None or self.head_state is None:
            return None
        head: nn.Module = build_fitting(self.head_node, self.head_state)
        return head.eval().requires_grad_(False)
