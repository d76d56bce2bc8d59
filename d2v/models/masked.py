"""Base class of all pretraining models: a student encoder and its predictors."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from d2v.nn.encoder import Encoder
from d2v.objective.masking import MaskGenerator
from d2v.types import Batch, LossOutput


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
        found = self.get_submodule(self.predictors_are)
        assert isinstance(found, nn.ModuleDict)
        return found

    def network(self, name: str) -> Encoder:
        """Return an encoder by its name.

        Raises:
            ValueError: the model has no such encoder.
        """
        if name not in self.networks:
            raise ValueError(f"network={name}: a {type(self).__name__} has none: set network={self.networks[0]}")
        found = self.get_submodule(name)
        assert isinstance(found, Encoder)
        return found

    def forward(self, batch: Batch) -> LossOutput:
        """Return the loss of one batch, as sums."""
        raise NotImplementedError("an algorithm defines forward")

    def update_teacher(self, decay: float) -> None:
        """Update the teacher, after every optimizer step; does nothing without a teacher."""

    def check_mask(self, mask: MaskGenerator | None) -> None:
        """Raise ValueError if the model needs masks and there are none."""
        if mask is None and self.needs_mask:
            raise ValueError(
                f"mask=null: a {type(self).__name__} predicts masked tokens; "
                "choose mask=random, block, inverse_block or span"
            )
