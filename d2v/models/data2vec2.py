"""data2vec 2.0 (Baevski et al., "Efficient Self-supervised Learning with Contextualized Target Representations for
Vision, Speech and Language", arXiv:2212.07525): one algorithm for every modality.

    B samples, M masks a sample, N = B * M views (sample-major), T tokens, K visible, P prefix tokens, D features

Where we deviate: the reference's CLS loss has a weight that grows with the batch on each GPU; here
``cls_loss_weight`` is that effective weight, written down in the recipe, whatever the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from d2v.nn.encoder import Encoder
from d2v.nn.tokens import gather_tokens
from d2v.objective.losses import feature_std, regression_loss_sum
from d2v.objective.targets import check_target_norms, normalize_targets
from d2v.objective.teacher import make_teacher, update_teacher
from d2v.types import Batch, LossOutput

TeacherScope = Literal["encoder", "context", "blocks"]


NUM_LOCAL_FEATURES = 256  # enough to see whether a frontend has collapsed


class Data2Vec2(nn.Module):
    """Student, teacher and decoders.

    Args:
        encoder: the student; the teacher starts as its copy.
        decoders: one for every modality of the encoder, by its name.
        average_top_k_layers: K, shared blocks whose outputs are averaged into the targets, counted from the last.
        layer_norms: norms of each layer's output before averaging, in order, of "instance" and "layer".
        target_norms: norms of the average, in order.
        end_of_block_targets: average whole blocks' outputs instead of their MLPs' (before the residual).
        loss_scale: factor on the loss; None for 1 / sqrt(D).
        loss_beta: 0 for the squared error, above 0 for smooth L1.
        cls_loss_weight: weight of the CLS token's loss (its mean over views) beside the mean over masked tokens.
        teacher_scope: what the teacher averages; the rest of it follows the student. "encoder": everything (images);
            "context": everything after the local features (speech); "blocks": the shared blocks (text).

    Raises:
        ValueError: a value that cannot work, naming its key and the fix.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoders: Mapping[str, nn.Module],
        average_top_k_layers: int,
        layer_norms: Sequence[str] = ("instance",),
        target_norms: Sequence[str] = ("layer",),
        end_of_block_targets: bool = False,
        loss_scale: float | None = None,
        loss_beta: float = 0.0,
        cls_loss_weight: float = 0.0,
        teacher_scope: TeacherScope = "encoder",
    ) -> None:
        super().__init__()
        if set(decoders) != set(encoder.frontends):
            raise ValueError(
                f"model.decoders has {sorted(decoders)}, model.encoder.frontends {sorted(encoder.frontends)}: "
                "every modality needs one of each"
            )
        if not 1 <= average_top_k_layers <= len(encoder.blocks):
            raise ValueError(
                f"model.average_top_k_layers={average_top_k_layers}: targets come from the {len(encoder.blocks)} "
                f"shared blocks (model.encoder.depth); choose 1 to {len(encoder.blocks)}"
            )
        for modality in encoder.frontends:
            if cls_loss_weight and not encoder.frontend(modality).num_prefix_tokens:
                raise ValueError(
                    f"model.cls_loss_weight={cls_loss_weight} needs a CLS token: set "
                    f"model.encoder.frontends.{modality}.num_prefix_tokens=1, or the weight to 0"
                )
        if teacher_scope not in get_args(TeacherScope):
            raise ValueError(f"model.teacher_scope={teacher_scope}: choose one of {', '.join(get_args(TeacherScope))}")
        self.student = encoder
        self.teacher = make_teacher(encoder)
        self.decoders = nn.ModuleDict(decoders)
        self.average_top_k_layers = average_top_k_layers
        self.layer_norms = check_target_norms("model.layer_norms", layer_norms)
        self.target_norms = check_target_norms("model.target_norms", target_norms)
        self.end_of_block_targets = end_of_block_targets
        self.loss_scale = encoder.embed_dim**-0.5 if loss_scale is None else loss_scale
        self.loss_beta = loss_beta
        self.cls_loss_weight = cls_loss_weight
        self.teacher_scope = teacher_scope

    def forward(self, batch: Batch) -> LossOutput:
        """The loss of one batch, as sums (see :class:`LossOutput`).

        Args:
            batch: inputs of one modality with M masks a sample.
        """
        mask = batch.mask
        assert mask is not None, "pretraining batches carry masks"
        frontend = self.student.frontend(batch.modality)
        num_prefix = frontend.num_prefix_tokens

        features_BTD = frontend.embed(batch.inputs)  # once a sample, for all of its masks
        target_BTD = self.targets(batch, features_BTD)
        x, attn_bias = self.student.context(batch.modality, features_BTD, mask, batch.padding_mask)  # (N, P + K, D)
        for block in self.student.blocks:
            x, _ = block(x, attn_bias)
        x = self.student.norm(x)
        visible_NKD = x[:, num_prefix:]
        pred = self.decoders[batch.modality](visible_NKD, mask, frontend.token_grid(batch.inputs))  # (N, T - K, D)
        target = gather_tokens(target_BTD, mask.ids_mask, mask.num_masks)  # (N, T - K, D)

        loss_sum = regression_loss_sum(pred, target, self.loss_scale, self.loss_beta)
        terms = {"regression": loss_sum.detach()}
        if self.cls_loss_weight:
            cls_target = target_BTD.mean(dim=1).repeat_interleave(mask.num_masks, dim=0)  # (N, D)
            cls_sum = regression_loss_sum(x[:, num_prefix - 1], cls_target, self.loss_scale, self.loss_beta)
            cls_sum = cls_sum * (self.cls_loss_weight * pred.shape[1])  # mean over N views, times N * (T - K) tokens
            loss_sum = loss_sum + cls_sum
            terms["cls"] = cls_sum.detach()
        return LossOutput(
            loss_sum=loss_sum,
            count=torch.tensor(mask.ids_mask.numel(), device=pred.device),
            terms=terms,
            target_std=feature_std(target),
            pred_std=feature_std(pred),
            features=visible_NKD[:: mask.num_masks].mean(dim=1).detach().float(),
            local_features=_evenly(features_BTD.detach(), NUM_LOCAL_FEATURES).float(),
        )

    @torch.no_grad()
    def targets(self, batch: Batch, features_BTD: Tensor | None = None) -> Tensor:
        """What the student is to predict, at every token, from the teacher on the whole input.

        Args:
            batch: its mask is ignored.
            features_BTD: the student's local features, where the teacher does not average its own; computed if None.

        Returns:
            (B, T, D) float32.
        """
        modality, num_prefix = batch.modality, self.teacher.frontend(batch.modality).num_prefix_tokens
        if self.teacher_scope == "encoder":
            features_BTD = self.teacher.frontend(modality).embed(batch.inputs)
        elif features_BTD is None:
            features_BTD = self.student.frontend(modality).embed(batch.inputs)
        context = self.student if self.teacher_scope == "blocks" else self.teacher
        x, attn_bias = context.context(modality, features_BTD, padding_mask=batch.padding_mask)  # (B, P + T, D)
        first = len(self.teacher.blocks) - self.average_top_k_layers
        total: Tensor | float = 0.0
        for i, block in enumerate(self.teacher.blocks):
            x, mlp_output = block(x, attn_bias)
            if i >= first:
                layer_output = x if self.end_of_block_targets else mlp_output
                total = total + normalize_targets(layer_output[:, num_prefix:], self.layer_norms)
        assert isinstance(total, Tensor)
        return normalize_targets(total / self.average_top_k_layers, self.target_norms)

    def is_averaged(self, name: str) -> bool:
        """Whether the teacher averages its parameter of this name; the others it takes from the student."""
        part, _, rest = name.partition(".")
        if self.teacher_scope == "encoder" or part == "blocks":
            return True
        if self.teacher_scope == "blocks":
            return False
        if part != "frontends":
            return True
        modality, _, rest = rest.partition(".")
        return rest.partition(".")[0] not in self.student.frontend(modality).local_parts

    def update_teacher(self, decay: float) -> None:
        """Move the teacher towards the student; call once after every optimizer step."""
        update_teacher(self.teacher, self.student, decay, self.is_averaged)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Data2Vec2:
        """Every move and cast of the model ends here: the teacher moves along, but stays float32."""
        super()._apply(fn, recurse)
        self.teacher.float()
        return self

    def train(self, mode: bool = True) -> Data2Vec2:
        """Training mode for student and decoders; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self


def _evenly(x_BTD: Tensor, count: int) -> Tensor:
    """At most ``count`` of B * T tokens, evenly spaced: (count, D)."""
    tokens = x_BTD.flatten(0, 1)
    return tokens[:: max(1, -(-len(tokens) // count))]
