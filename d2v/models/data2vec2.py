"""data2vec 2.0 (Baevski et al., "Efficient Self-supervised Learning with Contextualized Target Representations for
Vision, Speech and Language", arXiv:2212.07525): one algorithm for every modality.

    B samples, M masks a sample, N = B * M views (sample-major), T tokens, K visible, P prefix tokens, D features

Deviation: in the reference the weight of the CLS loss grows with the batch on each GPU; here ``cls_loss_weight`` is the
effective weight, independent of devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from d2v.models.distillation import SelfDistillation, TargetChanges
from d2v.models.masked import masked_loss
from d2v.nn.decoders import Decoder
from d2v.nn.encoder import Encoder
from d2v.nn.tokens import gather_tokens
from d2v.objective.losses import regression_loss_sum
from d2v.types import Batch, LossOutput, Negatives, TargetNorm, Targets, TeacherScope, TokenMask
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
        contrastive_share: share of InfoNCE in the loss on targets; the rest is the regression loss.
        contrastive_temperature: of InfoNCE's softmax over cosines.
        contrastive_negatives: "sample": the other targets of the same sample; "batch": targets of the micro-batch.
        teacher_scope: "encoder" in the released recipes for images, "context" for speech, "blocks" for text.
        targets: fields of :class:`Targets` that differ, by modality.
        reconstruction: also predict normalised input values of masked tokens, by a second linear layer on each decoder:
            pixels of patches (MAE, arXiv:2111.06377), log-mels of frames. :meth:`set_latent_share` weighs the two. The
            authors' code has such a loss and no recipe with it.

    Raises:
        ValueError: a value is invalid; the message names its key and the fix.
    """

    predictors_are = "decoders"

    def __init__(
        self,
        encoder: Encoder,
        decoders: Mapping[str, Decoder],
        average_top_k_layers: PositiveDepth,
        layer_norms: Sequence[TargetNorm] = ("instance",),
        target_norms: Sequence[TargetNorm] = ("layer",),
        end_of_block_targets: bool = False,
        loss_scale: PositiveFloat | None = None,
        loss_beta: NonNegativeFloat = 0.0,
        cls_loss_weight: NonNegativeFloat = 0.0,
        sample_mean_share: Fraction = 1.0,
        contrastive_share: Fraction = 0.0,
        contrastive_temperature: PositiveFloat = 0.2,
        contrastive_negatives: Negatives = "batch",
        teacher_scope: TeacherScope = "encoder",
        targets: TargetChanges | None = None,
        reconstruction: bool = False,
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
            contrastive_share=contrastive_share,
            contrastive_temperature=contrastive_temperature,
            contrastive_negatives=contrastive_negatives,
        )
        super().__init__(encoder, decoders, recipe, targets)
        self.decoders = nn.ModuleDict(decoders)
        self.reconstruction = reconstruction
        if reconstruction:
            add_value_heads(encoder, decoders)
        self.register_buffer("latent_share", torch.ones(()), persistent=False)
        self.latent_share: Tensor
        self._asks_teacher = True

    def decoder(self, modality: str) -> Decoder:
        """The decoder of a modality."""
        decoder = self.decoders[modality]
        assert isinstance(decoder, Decoder)
        return decoder

    def set_latent_share(self, share: float) -> None:
        """Set the share of the loss on the teacher's targets from now on; the rest is on input values.

        Args:
            share: from 0 to 1. At 0 the teacher does not run.

        Raises:
            ValueError: the model predicts no input values.
        """
        if not self.reconstruction:
            super().set_latent_share(share)
        self.latent_share.fill_(share)
        self._asks_teacher = share > 0

    def forward(self, batch: Batch) -> LossOutput:
        """Return the loss of one batch, as sums (see :class:`LossOutput`).

        Args:
            batch: inputs of one modality with M masks a sample.
        """
        mask = batch.mask
        assert mask is not None, "pretraining batches carry masks"
        frontend, decoder = self.student.frontend(batch.modality), self.decoder(batch.modality)
        recipe = self.recipes[batch.modality]
        scale = recipe.scale(self.student.embed_dim)

        features_BTD = frontend.embed(batch.inputs)  # once a sample, for all of its masks
        target_BTD = self.targets(batch, features_BTD) if self._asks_teacher else None
        out = self.student.encode(batch.modality, features_BTD, mask, batch.padding_mask)
        visible_NKD = out.patch_tokens
        outputs = decoder(visible_NKD, mask, frontend.token_grid(batch.inputs))  # (N, T - K, D), or D + V
        pred = outputs[..., : self.student.embed_dim]
        target = None
        if target_BTD is None:  # no loss, but a gradient for every parameter, which DDP wants
            terms = {"regression": regression_loss_sum(pred, pred.detach(), scale)}
        else:
            target = gather_tokens(target_BTD, mask.ids_mask, mask.num_masks)  # (N, T - K, D)
            terms = self.latent_terms(batch.modality, pred, target, target_BTD, mask)
        if recipe.cls_loss_weight and target_BTD is not None:
            cls_target = target_BTD.mean(dim=1).repeat_interleave(mask.num_masks, dim=0)  # (N, D)
            cls_sum = regression_loss_sum(out.cls_token, cls_target, scale, recipe.loss_beta)
            terms["cls"] = cls_sum * (recipe.cls_loss_weight * pred.shape[1])  # mean over N views x N * (T - K) tokens
        if self.reconstruction:
            terms = self._with_reconstruction(terms, batch, mask, outputs[..., self.student.embed_dim :])
        return masked_loss(mask, terms, pred, target, visible_NKD, features_BTD)

    def _with_reconstruction(
        self, terms: Mapping[str, Tensor], batch: Batch, mask: TokenMask, values: Tensor
    ) -> dict[str, Tensor]:
        """Weigh the terms of the loss by ``latent_share``, and the squared error of the inputs by the rest.

        Args:
            terms: sums of losses on the teacher's targets.
            batch: inputs.
            mask: M masks a sample.
            values: (N, T - K, V) predicted input values of masked tokens.
        """
        values_BTV = self.student.frontend(batch.modality).values(batch.inputs)
        wanted = gather_tokens(values_BTV, mask.ids_mask, mask.num_masks)
        embed_dim = self.student.embed_dim
        scale = self.recipes[batch.modality].scale(embed_dim) * embed_dim / values.shape[-1]  # as if V were D
        reconstruction = (1 - self.latent_share) * regression_loss_sum(values, wanted, scale)
        return {name: self.latent_share * value for name, value in terms.items()} | {"reconstruction": reconstruction}

    def _teacher_input(self, batch: Batch, features_BTD: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the input of the teacher's trunk; the student computes the parts that the teacher does not average."""
        if self.recipes[batch.modality].teacher_scope == "encoder":
            features_BTD = self.teacher.frontend(batch.modality).embed(batch.inputs)
        elif features_BTD is None:
            features_BTD = self.student.frontend(batch.modality).embed(batch.inputs)
        context = self.student if self.recipes[batch.modality].teacher_scope == "blocks" else self.teacher
        return context.context(batch.modality, features_BTD, padding_mask=batch.padding_mask)


def add_value_heads(encoder: Encoder, decoders: Mapping[str, Decoder]) -> None:
    """Let every decoder predict the input values of masked tokens, too.

    Raises:
        ValueError: a frontend has no values to predict.
    """
    for modality, decoder in decoders.items():
        frontend = encoder.frontend(modality)
        if not frontend.num_values:
            raise ValueError(
                f"reconstruction=true: a {type(frontend).__name__} has no values of {modality} inputs to predict; "
                "set it to false"
            )
        decoder.add_value_head(frontend.num_values)
