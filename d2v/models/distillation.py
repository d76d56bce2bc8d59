"""Base class of data2vec 1.0 (arXiv:2202.03555) and 2.0 (arXiv:2212.07525): student, teacher and targets.

B samples, T tokens, P prefix tokens, D features
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, get_type_hints

import torch
from torch import Tensor, nn

from d2v.arguments import check, check_arguments
from d2v.models.masked import MaskedModel
from d2v.nn.encoder import Encoder
from d2v.objective.losses import contrastive_loss_sum, regression_loss_sum
from d2v.objective.targets import normalize_targets
from d2v.objective.teacher import make_teacher, update_teacher
from d2v.types import Batch, Targets, TeacherScope, TokenMask

TargetChanges = Mapping[str, Mapping[str, Any]]  # by modality: fields of Targets


class SelfDistillation(MaskedModel):
    """A student that predicts, from masked inputs, the mean of its teacher's top-K layers on the whole input.

    Abstract: data2vec 1.0 and 2.0 define ``forward`` and ``_teacher_input``.

    Args:
        encoder: the student; the teacher starts as its copy.
        predictors: modules from the student's features to predictions, one for every modality of the encoder.
        recipe: recipe of the targets, for all modalities.
        changes: fields of :class:`Targets` that differ, by modality; None for none.

    Attributes:
        recipes: recipe of the targets, by modality.

    Raises:
        ValueError: a value is invalid; the message names its key and the fix.
    """

    networks: ClassVar[tuple[str, ...]] = ("student", "teacher")

    def __init__(
        self,
        encoder: Encoder,
        predictors: Mapping[str, nn.Module],
        recipe: Targets,
        changes: TargetChanges | None,
    ) -> None:
        super().__init__()
        if set(predictors) != set(encoder.frontends):
            raise ValueError(
                f"{self.predictors_are}={sorted(predictors)}, encoder.frontends={sorted(encoder.frontends)}: "
                "every modality needs one of each"
            )
        self.student = encoder
        self.teacher = make_teacher(encoder)
        self.recipes = _recipes(encoder, recipe, changes or {})

    @torch.no_grad()
    def targets(self, batch: Batch, features_BTD: Tensor | None = None) -> Tensor:
        """Return the targets of the student at every token, from the teacher on the whole input.

        Args:
            batch: inputs of one modality; its mask is ignored.
            features_BTD: (B, T, D) local features of the student, for a teacher that does not average its frontend;
                None to compute them.

        Returns:
            (B, T, D) float32.
        """
        recipe = self.recipes[batch.modality]
        num_prefix = self.teacher.frontend(batch.modality).num_prefix_tokens
        x, attn_bias = self._teacher_input(batch, features_BTD)  # (B, P + T, D)
        first = self.teacher.trunk.depth - recipe.average_top_k_layers
        total: Tensor | float = 0.0
        for i, (output, mlp_output) in enumerate(self.teacher.trunk.layers(x, attn_bias)):
            if i >= first:
                layer_output = output if recipe.end_of_block_targets else mlp_output
                tokens = layer_output[:, num_prefix:]
                total = total + normalize_targets(tokens, recipe.layer_norms, recipe.sample_mean_share)
        assert isinstance(total, Tensor)
        mean = total / recipe.average_top_k_layers
        return normalize_targets(mean, recipe.target_norms, recipe.sample_mean_share)

    def latent_terms(
        self, modality: str, pred: Tensor, target: Tensor, target_BTD: Tensor, mask: TokenMask
    ) -> dict[str, Tensor]:
        """Return the parts of the loss on the teacher's targets, each summed over masked tokens.

        Args:
            modality: of the batch.
            pred: (N, T - K, D) predictions.
            target: their targets.
            target_BTD: (B, T, D) targets of all tokens.
            mask: M masks a sample.
        """
        recipe, terms = self.recipes[modality], {}
        share = recipe.contrastive_share
        if share < 1:
            scale = recipe.scale(self.student.embed_dim)
            terms["regression"] = (1 - share) * regression_loss_sum(pred, target, scale, recipe.loss_beta)
        if share > 0:
            terms["contrastive"] = share * contrastive_loss_sum(
                pred, target_BTD, mask.ids_mask, recipe.contrastive_temperature, recipe.contrastive_negatives
            )
        return terms

    def _teacher_input(self, batch: Batch, features_BTD: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the inputs of the teacher's trunk, (B, P + T, D), and the bias of its attention logits or None."""
        raise NotImplementedError("an algorithm defines what its teacher sees")

    def is_averaged(self, name: str) -> bool:
        """Return whether the teacher averages the parameter ``name``; it copies the others from the student."""
        local_parts = {modality: self.student.frontend(modality).local_parts for modality in self.student.frontends}
        scopes = {modality: recipe.teacher_scope for modality, recipe in self.recipes.items()}
        return averages(scopes, name, local_parts)

    def update_teacher(self, decay: float) -> None:
        """Update the teacher from the student; call once after every optimizer step.

        Args:
            decay: in [0, 1]; 1 freezes the teacher.
        """
        update_teacher(self.teacher, self.student, decay, self.is_averaged)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the model (every ``to``, ``half`` ... ends here); the teacher moves along, but stays float32."""
        super()._apply(fn, recurse)
        self.teacher.float()
        return self

    def train(self, mode: bool = True) -> Self:
        """Set training mode of student and predictors; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self


def _recipes(encoder: Encoder, recipe: Targets, changes: TargetChanges) -> dict[str, Targets]:
    """Return the recipe of every modality of an encoder.

    Raises:
        ValueError: a value is invalid; the message names its key and the fix.
    """
    unknown = sorted(set(changes) - set(encoder.frontends))
    if unknown:
        raise ValueError(f"targets.{unknown[0]}: the modalities of this model are {sorted(encoder.frontends)}")
    recipes = {}
    for modality in encoder.frontends:
        own = changes.get(modality, {})
        check_arguments(Targets, own, f"targets.{modality}", lambda *_: None, partial=True)
        one = replace(recipe, **own)
        annotations = get_type_hints(Targets, include_extras=True)
        keys = {name: f"targets.{modality}.{name}" if name in own else name for name in annotations}
        top_k, depth = one.average_top_k_layers, encoder.trunk.depth
        if not 1 <= top_k <= depth:
            raise ValueError(
                f"{keys['average_top_k_layers']}={top_k}: targets come from the {depth} shared blocks "
                f"(encoder.depth={depth}); choose 1 to {depth}"
            )
        for name, annotation in annotations.items():
            check(getattr(one, name), annotation, keys[name])  # an unknown word would silently train with another scope
        if one.cls_loss_weight and not encoder.frontend(modality).num_prefix_tokens:
            raise ValueError(
                f"{keys['cls_loss_weight']}={one.cls_loss_weight} needs a CLS token: set "
                f"encoder.frontends.{modality}.num_prefix_tokens=1, or the weight to 0"
            )
        recipes[modality] = replace(one, layer_norms=tuple(one.layer_norms), target_norms=tuple(one.target_norms))
    return recipes


def averages(scopes: Mapping[str, TeacherScope], name: str, local_parts: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a teacher averages a parameter of an encoder.

    Args:
        scopes: teacher scope, by modality.
        name: of the parameter: ``trunk.<...>``, or ``<part>.<modality>.<...>``.
        local_parts: :attr:`Frontend.local_parts`, by modality.
    """
    part, _, rest = name.partition(".")
    if part == "trunk":
        return True
    modality, _, rest = rest.partition(".")
    scope = scopes[modality]
    if scope in ("encoder", "blocks"):
        return scope == "encoder"
    if part != "frontends":
        return True
    return scope == "context" and rest.partition(".")[0] not in local_parts[modality]
