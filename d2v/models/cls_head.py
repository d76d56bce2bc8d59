"""Head for fine-tuning on the CLS token, as EAT (arXiv:2401.03497) classifies sounds."""

from __future__ import annotations

from torch import Tensor, nn

from d2v.types import EncoderOutput
from d2v.values import Epsilon, Rate, Width, buildable


@buildable
class ClsHead(nn.Module):
    """LayerNorm and linear layer on the CLS token; output (B, C)."""

    def __init__(self, embed_dim: Width, num_outputs: Width, norm_eps: Epsilon = 1e-6, drop_rate: Rate = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.drop = nn.Dropout(drop_rate)
        self.proj = nn.Linear(embed_dim, num_outputs)
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def forward(self, out: EncoderOutput, padding_mask: Tensor | None = None) -> Tensor:
        """Return (B, C) outputs. Raises ValueError if the encoder has no CLS token."""
        if not out.num_prefix_tokens:
            raise ValueError("num_prefix_tokens=0: a ClsHead reads the CLS token; set it to 1 or use a MeanPoolHead")
        return self.proj(self.drop(self.norm(out.cls_token)))
