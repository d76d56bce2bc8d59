"""data2vec 2.0 (Baevski et al., "Efficient Self-supervised Learning with Contextualized Target Representations for
Vision, Speech and Language", arXiv:2212.07525): one algorithm for every modality.

    B samples, M masks a sample, N = B * M views (sample-major), T tokens, K visible, P prefix tokens, D features

Deviation: in the reference the weight of the CLS loss grows with the batch on each GPU; here ``cls_loss_weight`` is the
effective weight, independent of devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from d2v.models.distillation import SelfDistillation, TargetChanges
from d2v.models.masked import masked_loss
from d2v.nn.encoder import Encoder
from d2v.nn.tokens import gather_tokens
from d2v.objective.losses import regression_loss_sum
from d2v.types import Batch, LossOutput, TargetNorm, Targets, TeacherScope
from d2v.values import Fraction, NonNegativeFloat, PositiveDepth, PositiveFloat, buildable


@buildable
class Data2Vec2(SelfDistillation):
    """Student, teacher and decoders of data2vec 2.0.

    The arguments from ``average_top_k_layers`` to ``teacher_scope`` are the fields of :class:`Targets`, for all
    modalities.

    Args:
        encoder: the student; the teacher starts as its copy.
        decoders: modules from visible tokens to predictions at masked ones, by modality.
        average_top_k_layers: K, number of last layers that are averaged.
        layer_norms: norms of each layer's output.
        target_norms: norms of the average.
        end_of_block_targets: whether targets are outputs of whole blocks.
        loss_scale: factor on the loss; None for 1 / sqrt(D).
        loss_beta: 0 for the squared error, else beta of smooth L1.
        cls_loss_weight: weight of the CLS token's loss (its mean over views) beside the mean over masked tokens.
        sample_mean_share: share of a sample's own mean that the norm "batch" keeps.
        teacher_scope: "encoder" in the released recipes for images, "context" for speech, "blocks" for text.
        targets: fields of :class:`Targets` that differ, by modality.

    Raises:
        ValueError: a value is invalid; the message names its key and the fix.
    """

    predictors_are = "decoders"

    def __init__(
        self,
        encoder: Encoder,
        decoders: Mapping[str, nn.Module],
        average_top_k_layers: PositiveDepth,
        layer_norms: Sequence[TargetNorm] = ("instance",),
        target_norms: Sequence[TargetNorm] = ("layer",),
        end_of_block_targets: bool = False,
        loss_scale: PositiveFloat | None = None,
        loss_beta: NonNegativeFloat = 0.0,
        cls_loss_weight: NonNegativeFloat = 0.0,
        sample_mean_share: Fraction = 1.0,
        teacher_scope: TeacherScope = "encoder",
        targets: TargetChanges | None = None,
    ) -> None:
        recipe = Targets(
            average_top_k_layers,
            layer_norms,
            target_norms,
            end_of_block_targets,
            loss_scale,
            loss_beta,
            cls_loss_weight=cls_loss_weight,
            teacher_scope=teacher_scope,
            sample_mean_share=sample_mean_share,
        )
        super().__init__(encoder, decoders, recipe, targets)
        self.decoders = nn.ModuleDict(decoders)

    def forward(self, batch: Batch) -> LossOutput:
        """Return the loss of one batch, as sums (see :class:`LossOutput`).

        Args:
            batch: inputs of one modality with M masks a sample.
        """
        mask = batch.mask
        assert mask is not None, "pretraining batches carry masks"
        frontend, recipe = self.student.frontend(batch.modality), self.recipes[batch.modality]
        scale = recipe.scale(self.student.embed_dim)

        features_BTD = frontend.embed(batch.inputs)  # once a sample, for all of its masks
        target_BTD = self.targets(batch, features_BTD)
        out = self.student.encode(batch.modality, features_BTD, mask, batch.padding_mask)
        visible_NKD = out.patch_tokens
        pred = self.decoders[batch.modality](visible_NKD, mask, frontend.token_grid(batch.inputs))  # (N, T - K, D)
        target = gather_tokens(target_BTD, mask.ids_mask, mask.num_masks)  # (N, T - K, D)

        loss_sum = regression_loss_sum(pred, target, scale, recipe.loss_beta)
        terms = {"regression": loss_sum.detach()}
        if recipe.cls_loss_weight:
            cls_target = target_BTD.mean(dim=1).repeat_interleave(mask.num_masks, dim=0)  # (N, D)
            cls_sum = regression_loss_sum(out.cls_token, cls_target, scale, recipe.loss_beta)
            cls_sum = cls_sum * (recipe.cls_loss_weight * pred.shape[1])  # mean over N views, times N * (T - K) tokens
            loss_sum = loss_sum + cls_sum
            terms["cls"] = cls_sum.detach()
        return masked_loss(mask, loss_sum, pred, target, visible_NKD, features_BTD, terms)

    def _teacher_input(self, batch: Batch, features_BTD: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the input of the teacher's trunk; the student computes the parts that the teacher does not average."""
        if self.recipes[batch.modality].teacher_scope == "encoder":
            features_BTD = self.teacher.frontend(batch.modality).embed(batch.inputs)
        elif features_BTD is None:
            features_BTD = self.student.frontend(batch.modality).embed(batch.inputs)
        context = self.student if self.recipes[batch.modality].teacher_scope == "blocks" else self.teacher
        return context.context(batch.modality, features_BTD, padding_mask=batch.padding_mask)
