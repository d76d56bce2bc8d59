"""Options of data2vec 2.0 beyond the paper: contrastive loss, input values beside the teacher's targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch

from d2v.models.data2vec2 import Data2Vec2
from d2v.nn.decoders import ConvDecoder1d
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.nn.frontends.text import TextFrontend
from d2v.objective.losses import contrastive_loss_sum
from d2v.objective.targets import normalize_patches
from d2v.types import Batch, Negatives
from tests.models.recipes import MASKS
from tests.models.recipes import make_batch as make_recipe_batch

MakeModel = Callable[..., Data2Vec2]
MakeBatch = Callable[..., Batch]


@pytest.mark.parametrize("negatives", ["sample", "batch"])
def test_contrast_and_regression_share_the_loss(
    make_model: MakeModel, make_batch: MakeBatch, negatives: Negatives
) -> None:
    batch = make_batch()
    assert batch.mask is not None
    terms = {}
    for share in (0.0, 0.25, 1.0):
        options: dict[str, Any] = {"contrastive_temperature": 0.3, "contrastive_negatives": negatives}
        torch.manual_seed(0)
        model = make_model(contrastive_share=share, **options)
        out = model(batch)
        terms[share] = out.terms
        torch.testing.assert_close(out.loss_sum.detach(), sum(out.terms.values(), start=torch.zeros(())))
    assert {share: set(names) for share, names in terms.items()} == {
        0.0: {"regression"},
        0.25: {"regression", "contrastive"},
        1.0: {"contrastive"},
    }
    torch.testing.assert_close(terms[0.25]["regression"], 0.75 * terms[0.0]["regression"])
    torch.testing.assert_close(terms[0.25]["contrastive"], 0.25 * terms[1.0]["contrastive"])
    outputs: list[torch.Tensor] = []
    model.decoder("image").register_forward_hook(lambda module, args, output: outputs.append(output))
    model(batch)
    expected = contrastive_loss_sum(outputs[0], model.targets(batch), batch.mask.ids_mask, 0.3, negatives)
    torch.testing.assert_close(terms[1.0]["contrastive"], expected.detach())


def test_input_values_and_the_teachers_targets_share_the_loss(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model(reconstruction=True), make_batch()
    losses = {}
    for share in (0.0, 0.25, 1.0):
        model.set_latent_share(share)
        torch.manual_seed(0)  # of the decoder's noise
        out = model(batch)
        assert set(out.terms) == {"regression", "reconstruction"}
        torch.testing.assert_close(out.loss_sum.detach(), out.terms["regression"] + out.terms["reconstruction"])
        losses[share] = out.terms
    assert losses[0.0]["regression"] == 0
    assert losses[1.0]["reconstruction"] == 0
    for name, full in (("regression", 1.0), ("reconstruction", 0.0)):
        weight = 0.25 if name == "regression" else 0.75
        torch.testing.assert_close(losses[0.25][name], weight * losses[full][name])
    hidden: list[torch.Tensor] = []
    model.decoder("image").value_head.register_forward_hook(lambda module, args, output: hidden.append(output))
    model.set_latent_share(0.0)
    reconstruction = model(batch).terms["reconstruction"]
    frontend, mask = model.student.frontend("image"), batch.mask
    assert mask is not None
    patches = normalize_patches(frontend.patches(batch.inputs))
    error = 0.0
    for row, ids in enumerate(mask.ids_mask.tolist()):  # the mean over values, as if a token had D of them
        for place, token in enumerate(ids):
            wanted = patches[row // mask.num_masks, token]
            error += float((hidden[0][row, place].detach() - wanted).square().mean()) * model.student.embed_dim**0.5
    assert float(reconstruction.detach()) == pytest.approx(error, rel=1e-4)


def test_the_teacher_rests_while_input_values_alone_are_predicted(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model(reconstruction=True), make_batch()
    passes = []
    for share in (0.0, 0.5):
        model.set_latent_share(share)
        for parameter in model.parameters():
            parameter.grad = None
        with mock.patch.object(type(model), "targets", autospec=True, side_effect=type(model).targets) as targets:
            model(batch).loss_sum.backward()
        passes.append(targets.call_count)
        lacking = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert lacking == [], "DDP waits for every parameter"
    assert passes == [0, 1]


def test_log_mels_of_masked_frames_can_be_predicted() -> None:
    frontend = SpeechFrontend(16, 4, [[8, 10, 5], [8, 4, 2]], pos_depth=1, pos_kernel_size=3, pos_groups=4)
    encoder = transformer_encoder({"speech": frontend}, 16, 2, 4)
    decoder = ConvDecoder1d(16, 8, 1, 3, 4, 0.0)
    model = Data2Vec2(encoder, {"speech": decoder}, 2, teacher_scope="context", reconstruction=True)
    batch = make_recipe_batch("speech-2", padded=False)
    hidden: list[torch.Tensor] = []
    assert decoder.value_head is not None
    decoder.value_head.register_forward_hook(lambda module, args, output: hidden.append(output.detach()))
    model.set_latent_share(0.0)
    loss = model(batch).terms["reconstruction"]
    mask, values = batch.mask, frontend.values(batch.inputs)
    assert mask is not None
    wanted = torch.stack([values[n // MASKS, ids] for n, ids in enumerate(mask.ids_mask)])
    torch.testing.assert_close(loss, (hidden[0] - wanted).square().mean(-1).sum() * 4)


def test_frontends_without_values_to_predict_are_refused() -> None:
    encoder = transformer_encoder({"text": TextFrontend(16, 40, 12)}, 16, 2, 4)
    with pytest.raises(ValueError, match="reconstruction=true: a TextFrontend has no values of text inputs to predict"):
        Data2Vec2(encoder, {"text": ConvDecoder1d(16, 8, 1, 3, 4, 0.0)}, 2, reconstruction=True)


def test_models_without_heads_for_input_values_have_no_curriculum(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"curriculum: a Data2Vec2 .* reconstruction=true"):
        make_model().set_latent_share(0.5)
