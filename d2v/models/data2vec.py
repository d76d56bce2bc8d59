"""data2vec 1.0 (Baevski et al., "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and
Language", arXiv:2202.03555): the student sees every token, masked ones as a mask token, and predicts without a decoder.

    B samples, M masks a sample, N = B * M views (sample-major), T tokens, K unmasked, P prefix tokens, D features

Deviations: M, 1 in the paper, may be larger, with the targets computed once for all masks; every view masks the same
number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from d2v.models.distillation import SelfDistillation, TargetChanges
from d2v.models.masked import masked_loss
from d2v.nn.encoder import Encoder
from d2v.nn.tokens import gather_tokens
from d2v.types import Batch, LossOutput, TargetNorm, Targets, TeacherScope
from d2v.values import Depth, NonNegativeFloat, PositiveDepth, PositiveFloat, Ratio, Width, buildable


@buildable
class RegressionHead(nn.Sequential):
    """Linear layers with GELUs in between, from the student's features (..., D) to predictions (..., D).

    Args:
        embed_dim: features D.
        depth: number of linear layers: 0 (images), 1 (speech) or 2 (text) in the released recipes.
        ratio: hidden features divided by D.

    Raises:
        ValueError: ``depth`` is negative.
    """

    def __init__(self, embed_dim: Width, depth: Depth = 1, ratio: Ratio = 2.0) -> None:
        hidden = int(embed_dim * ratio)
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [
                nn.Linear(embed_dim if i == 0 else hidden, embed_dim if i == depth - 1 else hidden),
                nn.GELU(),
            ]
        super().__init__(*layers[:-1])


@buildable
class Data2Vec(SelfDistillation):
    """Student, teacher and regression heads of data2vec 1.0.

    The arguments from ``average_top_k_layers`` to ``teacher_scope`` are the fields of :class:`Targets`, for all
    modalities.

    Args:
        encoder: the student, with mask tokens in its frontends; the teacher starts as its copy.
        heads: modules from the student's features to predictions, by modality.
        average_top_k_layers: K, number of last layers that are averaged.
        layer_norms: norms of each layer's output.
        target_norms: norms of the average.
        end_of_block_targets: whether targets are outputs of whole blocks.
        loss_scale: factor on the loss; None for 1 / sqrt(D).
        loss_beta: 0 for the squared error, else beta of smooth L1.
        teacher_scope: "context" in the released recipe for images, "transformer" for speech and text.
        targets: fields of :class:`Targets` that differ, by modality.

    Raises:
        ValueError: a value is invalid; the message names its key and the fix.
    """

    predictors_are = "heads"

    def __init__(
        self,
        encoder: Encoder,
        heads: Mapping[str, nn.Module],
        average_top_k_layers: PositiveDepth,
        layer_norms: Sequence[TargetNorm] = ("layer",),
        target_norms: Sequence[TargetNorm] = (),
        end_of_block_targets: bool = False,
        loss_scale: PositiveFloat | None = None,
        loss_beta: NonNegativeFloat = 0.0,
        teacher_scope: TeacherScope = "transformer",
        targets: TargetChanges | None = None,
    ) -> None:
        recipe = Targets(
            average_top_k_layers,
            layer_norms,
            target_norms,
            end_of_block_targets,
            loss_scale,
            loss_beta,
            cls_loss_weight=0.0,
            teacher_scope=teacher_scope,
        )
        super().__init__(encoder, heads, recipe, targets)
        for modality in encoder.frontends:
            if not encoder.frontend(modality).can_hide:
                raise ValueError(
                    f"encoder.frontends.{modality}.mask_token=false: there is no mask token; set it to true, or "
                    "give its mask_id"
                )
            if self.recipes[modality].cls_loss_weight:
                raise ValueError(
                    f"targets.{modality}.cls_loss_weight: data2vec 1.0 has no loss of the CLS token; leave it out"
                )
        self.heads = nn.ModuleDict(heads)

    def forward(self, batch: Batch) -> LossOutput:
        """Return the loss of one batch, as sums (see :class:`LossOutput`).

        Args:
            batch: inputs of one modality with M masks a sample.
        """
        mask = batch.mask
        assert mask is not None, "pretraining batches carry masks"
        frontend = self.student.frontend(batch.modality)

        hidden_NTD, features_BTD = frontend.hide(batch.inputs, mask)
        target_BTD = self.targets(batch, features_BTD)
        padding_mask = batch.padding_mask
        if padding_mask is not None:
            padding_mask = padding_mask.repeat_interleave(mask.num_masks, dim=0)
        tokens_NTD = self.student.encode(batch.modality, hidden_NTD, padding_mask=padding_mask).patch_tokens
        pred = self.heads[batch.modality](gather_tokens(tokens_NTD, mask.ids_mask))  # (N, T - K, D)
        target = gather_tokens(target_BTD, mask.ids_mask, mask.num_masks)  # (N, T - K, D)

        terms = self.latent_terms(batch.modality, pred, target, target_BTD, mask)
        visible_NKD = gather_tokens(tokens_NTD, mask.ids_keep)
        local_features = hidden_NTD if features_BTD is None else features_BTD
        return masked_loss(mask, terms, pred, target, visible_NKD, local_features)

    def _teacher_input(self, batch: Batch, features_BTD: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the input of the teacher's trunk, from the student's unmasked local features if it computed them."""
        if features_BTD is None or self.recipes[batch.modality].teacher_scope == "encoder":
            features_BTD = self.teacher.frontend(batch.modality).embed(batch.inputs)
        return self.teacher.context(batch.modality, features_BTD, padding_mask=batch.padding_mask)
