"""A masked autoencoder (He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv:2111.06377) for
comparison, with the encoder and masks of data2vec, pixels as targets, and no teacher.

    B samples, M masks a sample, N = B * M views (sample-major), T tokens, K visible, P prefix tokens, D features,
    V values (pixels of all channels) in a patch

Deviations: M, 1 in the paper, may be larger; the encoder's blocks may be post-norm, as data2vec's; the decoder does not
see the CLS token.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from d2v.models.masked import MaskedModel, masked_loss
from d2v.nn.encoder import Encoder
from d2v.nn.tokens import gather_tokens
from d2v.objective.losses import regression_loss_sum
from d2v.objective.targets import normalize_patches
from d2v.types import Batch, LossOutput
from d2v.values import buildable

PATCHES = ("img_size", "patch_size", "in_chans")  # attributes in which frontend and decoder must agree


@buildable
class MaskedAutoencoder(MaskedModel):
    """Student and decoders; the loss is the mean squared error of masked patches.

    Args:
        encoder: the student; its frontends cut inputs into patches.
        decoders: modules from visible tokens to the values of masked patches, by modality.
        norm_patches: whether every target patch is normalised to zero mean and unit variance (table 1d).

    Raises:
        ValueError: the tokens of a frontend are not patches, or it has a mask token; a decoder has other patches than
            its frontend; or modalities of decoders and frontends differ.
    """

    predictors_are = "decoders"

    def __init__(self, encoder: Encoder, decoders: Mapping[str, nn.Module], norm_patches: bool = True) -> None:
        super().__init__()
        if set(decoders) != set(encoder.frontends):
            raise ValueError(
                f"decoders={sorted(decoders)}, encoder.frontends={sorted(encoder.frontends)}: "
                "every modality needs one of each"
            )
        for modality, decoder in decoders.items():
            frontend = encoder.frontend(modality)
            if not frontend.patch_values:
                raise ValueError(
                    f"encoder.frontends.{modality}={type(frontend).__name__}: its tokens are no patches of inputs, so "
                    "there is nothing to reconstruct; choose a model of data2vec2"
                )
            if frontend.mask_token is not None:
                raise ValueError(
                    f"encoder.frontends.{modality}.mask_token=true: masked patches are left out, so nothing "
                    "would train it; set it to false"
                )
            for key in PATCHES:
                theirs, own = (getattr(part, key, None) for part in (frontend, decoder))
                if theirs != own and own is not None:
                    raise ValueError(
                        f"decoders.{modality}.{key}={own}: the patches of the encoder have "
                        f"encoder.frontends.{modality}.{key}={theirs}; set the two alike"
                    )
        self.student = encoder
        self.decoders = nn.ModuleDict(decoders)
        self.norm_patches = norm_patches

    def forward(self, batch: Batch) -> LossOutput:
        """Return the loss of one batch, as sums (see :class:`LossOutput`).

        Args:
            batch: inputs of one modality with M masks a sample.
        """
        mask = batch.mask
        assert mask is not None, "pretraining batches carry masks"
        frontend = self.student.frontend(batch.modality)

        features_BTD = frontend.embed(batch.inputs)  # once a sample, for all of its masks
        target = gather_tokens(self.targets(batch), mask.ids_mask, mask.num_masks)  # (N, T - K, V)
        visible_NKD = self.student.encode(batch.modality, features_BTD, mask).patch_tokens
        pred = self.decoders[batch.modality](visible_NKD, mask, frontend.token_grid(batch.inputs))  # (N, T - K, V)

        terms = {"regression": regression_loss_sum(pred, target, 1 / frontend.patch_values)}  # the mean over a patch
        return masked_loss(mask, terms, pred, target, visible_NKD, features_BTD)

    def targets(self, batch: Batch) -> Tensor:
        """Return the input values of every token, (B, T, V) float32."""
        patches = self.student.frontend(batch.modality).patches(batch.inputs)
        return normalize_patches(patches) if self.norm_patches else patches.float()
