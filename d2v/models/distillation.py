"""Base of data2vec 1.0 (arXiv:2202.03555) and 2.0 (arXiv:2212.07525): a student, its teacher, and the targets.

B samples, T tokens, P prefix tokens, D features
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from d2v.models.masked import MaskedModel
from d2v.nn.encoder import Encoder
from d2v.objective.targets import TargetNorm, normalize_targets
from d2v.objective.teacher import make_teacher, update_teacher
from d2v.types import Batch
from d2v.values import check

TeacherScope = Literal["encoder", "context", "transformer", "blocks"]

NUM_LOCAL_FEATURES = 256  # enough to see whether a frontend has collapsed


class SelfDistillation(MaskedModel):
    """A student that predicts, from masked inputs, the mean of its teacher's top-K layers on the whole input.

    Abstract: data2vec 1.0 and 2.0 define ``forward`` and ``_teacher_input``.

    Args:
        encoder: the student; the teacher starts as its copy.
        predictors: from the student's features to predictions, one for every modality of the encoder, by its name.
        average_top_k_layers: K, shared blocks whose outputs are averaged into the targets, counted from the last.
        layer_norms: norms of each layer's output before averaging, in order, of "instance" and "layer".
        target_norms: norms of the average, in order.
        end_of_block_targets: average whole blocks' outputs instead of their MLPs' (before the residual).
        loss_scale: factor on the loss; None for 1 / sqrt(D).
        loss_beta: 0 for the squared error, above 0 for smooth L1.
        teacher_scope: what the teacher averages; the rest of it follows the student. "encoder": everything;
            "context": everything after the local features; "transformer": everything but the frontends; "blocks": the
            trunk.

    Raises:
        ValueError: a value that cannot work, naming its key and the fix.
    """

    networks: ClassVar[tuple[str, ...]] = ("student", "teacher")

    def __init__(
        self,
        encoder: Encoder,
        predictors: Mapping[str, nn.Module],
        average_top_k_layers: int,
        layer_norms: Sequence[TargetNorm],
        target_norms: Sequence[TargetNorm],
        end_of_block_targets: bool,
        loss_scale: float | None,
        loss_beta: float,
        teacher_scope: TeacherScope,
    ) -> None:
        super().__init__()
        if set(predictors) != set(encoder.frontends):
            raise ValueError(
                f"model.{self.predictors_are} has {sorted(predictors)}, model.encoder.frontends "
                f"{sorted(encoder.frontends)}: every modality needs one of each"
            )
        if not 1 <= average_top_k_layers <= encoder.trunk.depth:
            raise ValueError(
                f"model.average_top_k_layers={average_top_k_layers}: targets come from the {encoder.trunk.depth} "
                f"shared blocks (model.encoder.depth); choose 1 to {encoder.trunk.depth}"
            )
        for name, value, annotation in (
            ("layer_norms", layer_norms, Sequence[TargetNorm]),
            ("target_norms", target_norms, Sequence[TargetNorm]),
            ("teacher_scope", teacher_scope, TeacherScope),
        ):
            check(value, annotation, f"model.{name}")  # another word would train something else
        self.student = encoder
        self.teacher = make_teacher(encoder)
        self.average_top_k_layers = average_top_k_layers
        self.layer_norms = tuple(layer_norms)
        self.target_norms = tuple(target_norms)
        self.end_of_block_targets = end_of_block_targets
        self.loss_scale = encoder.embed_dim**-0.5 if loss_scale is None else loss_scale
        self.loss_beta = loss_beta
        self.teacher_scope = teacher_scope

    @torch.no_grad()
    def targets(self, batch: Batch, features_BTD: Tensor | None = None) -> Tensor:
        """Return the targets of the student at every token, from the teacher on the whole input.

        Args:
            batch: its mask is ignored.
            features_BTD: the student's local features, where the teacher does not average its own; computed if None.

        Returns:
            (B, T, D) float32.
        """
        num_prefix = self.teacher.frontend(batch.modality).num_prefix_tokens
        x, attn_bias = self._teacher_input(batch, features_BTD)  # (B, P + T, D)
        first = self.teacher.trunk.depth - self.average_top_k_layers
        total: Tensor | float = 0.0
        for i, (output, mlp_output) in enumerate(self.teacher.trunk.layers(x, attn_bias)):
            if i >= first:
                layer_output = output if self.end_of_block_targets else mlp_output
                total = total + normalize_targets(layer_output[:, num_prefix:], self.layer_norms)
        assert isinstance(total, Tensor)
        return normalize_targets(total / self.average_top_k_layers, self.target_norms)

    def _teacher_input(self, batch: Batch, features_BTD: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the inputs of the teacher's shared blocks, and the bias of its attention logits."""
        raise NotImplementedError("an algorithm defines what its teacher sees")

    def is_averaged(self, name: str) -> bool:
        """Return whether the teacher averages its parameter of this name; the others it takes from the student."""
        local_parts = {modality: self.student.frontend(modality).local_parts for modality in self.student.frontends}
        return averages(self.teacher_scope, name, local_parts)

    def update_teacher(self, decay: float) -> None:
        """Move the teacher towards the student; call once after every optimizer step."""
        update_teacher(self.teacher, self.student, decay, self.is_averaged)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Every move and cast of the model ends here: the teacher moves along, but stays float32."""
        super()._apply(fn, recurse)
        self.teacher.float()
        return self

    def train(self, mode: bool = True) -> Self:
        """Training mode for student and predictors; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self


def averages(scope: TeacherScope, name: str, local_parts: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a teacher of this scope averages an encoder's parameter of this name.

    Args:
        scope: as in :class:`SelfDistillation`.
        name: within the encoder.
        local_parts: of the frontends, by modality.
    """
    part, _, rest = name.partition(".")
    if scope == "encoder" or part == "trunk":
        return True
    if scope == "blocks":
        return False
    if part != "frontends":
        return True
    if scope == "transformer":
        return False
    modality, _, rest = rest.partition(".")
    return rest.partition(".")[0] not in local_parts[modality]


def evenly(x_BTD: Tensor, count: int) -> Tensor:
    """``count`` of B * T tokens, evenly spaced, or all if there are fewer: (count, D), a copy."""
    tokens = x_BTD.flatten(0, 1)
    count = min(count, len(tokens))
    # Not a slice: compiled code would be compiled anew for every step that it takes, and x_BTD would be kept alive.
    return tokens[torch.arange(count, device=x_BTD.device) * len(tokens) // count]
