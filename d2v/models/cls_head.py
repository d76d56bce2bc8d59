"""Head for fine-tuning on the CLS token, as EAT (arXiv:2401.03497) classifies sounds."""

from __future__ import annotations

from torch import Tensor

from d2v.models.heads import PooledHead
from d2v.types import EncoderOutput
from d2v.values import buildable


@buildable
class ClsHead(PooledHead):
    """LayerNorm and linear layer on the CLS token; output (B, C)."""

    def forward(self, out: EncoderOutput, padding_mask: Tensor | None = None) -> Tensor:
        """Return (B, C) outputs. Raises ValueError if the encoder has no CLS token."""
        if not out.num_prefix_tokens:
            raise ValueError("num_prefix_tokens=0: a ClsHead reads the CLS token; set it to 1 or use a MeanPoolHead")
        return self.classify(out.cls_token)
