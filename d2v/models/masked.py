"""Base class of all pretraining models: a student encoder and its predictors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from d2v.nn.encoder import Encoder
from d2v.objective.losses import feature_std
from d2v.objective.masking import MaskGenerator
from d2v.types import Batch, LossOutput, TokenMask

NUM_LOCAL_FEATURES = 256  # enough to see whether a frontend has collapsed


class MaskedModel(nn.Module):
    """An encoder that learns to predict what masks hide from it. Abstract: a subclass defines :meth:`forward`.

    Attributes:
        student: the trained encoder.
        predictors_are: name of the attribute with the predictors: "decoders" or "heads".
        networks: names of the encoders.
        needs_mask: whether batches must have masks.
    """

    student: Encoder
    predictors_are: ClassVar[str]
    networks: ClassVar[tuple[str, ...]] = ("student",)
    needs_mask: ClassVar[bool] = True

    @property
    def predictors(self) -> nn.ModuleDict:
        """Modules that predict from the student's features, by modality."""
        module = self.get_submodule(self.predictors_are)
        assert isinstance(module, nn.ModuleDict)
        return module

    def network(self, name: str) -> Encoder:
        """Return an encoder by its name.

        Raises:
            ValueError: the model has no such encoder.
        """
        if name not in self.networks:
            raise ValueError(f"network={name}: a {type(self).__name__} has none: set network={self.networks[0]}")
        module = self.get_submodule(name)
        assert isinstance(module, Encoder)
        return module

    def forward(self, batch: Batch) -> LossOutput:
        """Return the loss of one batch, as sums."""
        raise NotImplementedError("an algorithm defines forward")

    def update_teacher(self, decay: float) -> None:
        """Update the teacher, after every optimizer step; does nothing without a teacher."""

    def start_from(self, modality: str, inputs: Iterable[Tensor]) -> None:
        """Start a frontend, and the teacher's, from statistics of training inputs (:meth:`Frontend.start_from`)."""
        self.student.frontend(modality).start_from(inputs)
        self.update_teacher(0.0)

    def set_latent_share(self, share: float) -> None:
        """Set the share of the loss on the teacher's targets for the next step; the rest is on the input values.

        Raises:
            ValueError: the model cannot predict both.
        """
        raise ValueError(
            f"curriculum: a {type(self).__name__} does not predict both the teacher's targets and input values; "
            "leave out curriculum, or choose a Data2Vec2 with reconstruction=true"
        )

    def check_mask(self, mask: MaskGenerator | None) -> None:
        """Raise ValueError if the model needs masks and there are none."""
        if mask is None and self.needs_mask:
            raise ValueError(
                f"mask=null: a {type(self).__name__} predicts masked tokens; "
                "choose mask=random, block, inverse_block or span"
            )


def masked_loss(
    mask: TokenMask,
    terms: Mapping[str, Tensor],
    pred: Tensor,
    target: Tensor | None,
    visible_NKD: Tensor,
    features_BTD: Tensor,
) -> LossOutput:
    """Return a loss over masked tokens, with what to log and to watch of it.

    Args:
        mask: N masks, M a sample.
        terms: parts of the loss by name, summed over all masked tokens.
        pred: (N, T - K, D) predictions.
        target: their targets; None while there are none.
        visible_NKD: (N, K, D) student's output at the visible tokens.
        features_BTD: (B, T, D) local features.
    """
    return LossOutput(
        loss_sum=torch.stack(list(terms.values())).sum(),
        count=torch.tensor(mask.ids_mask.numel(), device=pred.device),
        terms={name: value.detach() for name, value in terms.items()},
        logged=({} if target is None else {"target_std": feature_std(target)})
        | {
            "pred_std": feature_std(pred),
            "masked_fraction": torch.tensor(mask.masked_fraction, device=pred.device),
        },
        watched={
            "features": visible_NKD[:: mask.num_masks].mean(dim=1).detach().float(),
            "frontend": evenly(features_BTD.detach(), NUM_LOCAL_FEATURES).float(),
        },
    )


def evenly(x_BTD: Tensor, count: int) -> Tensor:
    """Return ``count`` of the B * T tokens, evenly spaced, or all if there are fewer: (count, D), a copy."""
    tokens = x_BTD.flatten(0, 1)
    count = min(count, len(tokens))
    # Not a slice: compiled code would be recompiled for every stride, and x_BTD would be kept alive.
    return tokens[torch.arange(count, device=x_BTD.device) * len(tokens) // count]
