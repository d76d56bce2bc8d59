"""data2vec 1.0 against a slow second implementation, and what must hold whatever the parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from slow_data2vec import (
    DIM,
    HEADS,
    IMAGE,
    MASK,
    PAD,
    PATCH,
    RECIPES,
    TOKENS,
    VOCAB,
    Options,
    Params,
    build,
    each_modality,
    frontend,
    gelu,
    make_batch,
    parameters,
    rows,
    run,
)
from torch import Tensor, nn

from d2v.models.data2vec import Data2Vec, RegressionHead
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.base import Frontend
from d2v.nn.frontends.image import BeitFrontend, ImageFrontend
from d2v.nn.frontends.speech import SpeechFrontend
from d2v.nn.frontends.text import TextFrontend
from d2v.types import Batch, LossOutput, TokenMask

CASES = {
    "image": RECIPES["image"],
    "image_3_masks": replace(RECIPES["image"], num_masks=3),
    "image_own_biases": replace(RECIPES["image"], shared_bias=False),
    "image_encoder": replace(RECIPES["image"], scope="encoder", end_of_block=False, layer_norms=("instance",)),
    "image_head": replace(RECIPES["image"], head_depth=1, beta=0.5, top_k=3, target_norms=()),
    "speech": RECIPES["speech"],
    "speech_3_masks": replace(RECIPES["speech"], num_masks=3),
    "speech_padded": replace(RECIPES["speech"], padded=True, num_masks=2),
    "speech_encoder": replace(RECIPES["speech"], scope="encoder", padded=True),
    "speech_context": replace(RECIPES["speech"], scope="context", target_norms=("instance",), head_depth=2),
    "speech_blocks": replace(RECIPES["speech"], scope="blocks", beta=1.0, scale=2.0),
    "text": RECIPES["text"],
    "text_3_masks": replace(RECIPES["text"], num_masks=3),
    "text_padded": replace(RECIPES["text"], padded=True, num_masks=2),
    "text_encoder": replace(RECIPES["text"], scope="encoder", top_k=1),
    "text_blocks": replace(RECIPES["text"], scope="blocks", head_depth=3, eps=1e-2),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients_match_the_slow_oracle(name: str) -> None:
    o = CASES[name]
    model, batch = build(o), make_batch(o)
    assert batch.mask is not None
    student, heads = parameters(model.student, True), parameters(model.heads, True)
    expected = run(student, heads, parameters(model.teacher), batch, o)
    expected.loss.backward()

    torch.testing.assert_close(model.targets(batch).double(), expected.targets, rtol=1e-4, atol=1e-4)
    out = model(batch)
    assert out.loss_sum.item() == pytest.approx(expected.loss.item(), rel=2e-5)
    assert out.terms.keys() == {"regression"}
    assert out.terms["regression"].item() == out.loss_sum.item()
    assert out.count.item() == 3 * o.num_masks * 5
    assert out.count.dtype == torch.int64
    wanted = expected.targets.repeat_interleave(o.num_masks, 0)[batch.mask.mask]
    for ours, theirs in ((out.logged["target_std"], wanted), (out.logged["pred_std"], expected.pred.detach())):
        assert ours.item() == pytest.approx((theirs.var(0) + 1e-6).sqrt().mean().item(), rel=1e-4)
    torch.testing.assert_close(out.watched["features"].double(), expected.features.detach(), rtol=1e-4, atol=1e-4)
    others = [
        out.count,
        out.watched["features"],
        out.watched["frontend"],
        out.logged["target_std"],
        out.logged["pred_std"],
        *out.terms.values(),
    ]
    assert not any(t.requires_grad for t in others)

    out.loss_sum.backward()
    for prefix, ours, theirs in (("student", model.student, student), ("heads", model.heads, heads)):
        for key, p in ours.named_parameters():
            gradient = theirs[key].grad
            assert p.grad is not None, f"{prefix}.{key}"
            assert gradient is not None, f"{prefix}.{key}"
            # What cannot change the loss, the bias of keys, has a gradient of rounding errors: hence the 1.
            scale = max(1.0, float(gradient.abs().max()))
            difference = (p.grad - gradient).abs().max().item() / scale
            assert difference < 1e-4, f"{prefix}.{key}: {difference}"
    assert all(p.grad is None for p in model.teacher.parameters())


@each_modality
def test_targets_and_local_features_are_computed_once_for_all_masks(o: Options) -> None:
    o = replace(o, num_masks=3)
    model, batch, calls = build(o), make_batch(o), []
    for who in ("student", "teacher"):
        network = getattr(model, who)
        front = network.frontends[o.modality]
        local = {"image": "proj", "speech": "convs.0", "text": "token_embed"}[o.modality]
        for part, module in (("local", front.get_submodule(local)), ("block", network.trunk.blocks[0])):
            module.register_forward_pre_hook(
                lambda _, inputs, name=f"{who} {part}": calls.append((name, len(inputs[0])))
            )
    model(batch)
    expected = [("student block", 9), ("teacher block", 3)]
    if o.modality == "text":  # the student embeds masked texts, the teacher whole ones
        expected += [("student local", 9), ("teacher local", 3)]
    else:
        expected += [("student local", 3)]
    assert sorted(calls) == sorted(expected)


@each_modality
def test_many_masks_are_as_many_passes_over_the_same_targets(o: Options) -> None:
    o = replace(o, num_masks=3)
    model, batch = build(o), make_batch(o)
    assert batch.mask is not None
    alone = [model(replace(batch, mask=TokenMask.from_bool(batch.mask.mask[m::3]))) for m in range(3)]
    together = model(batch)
    assert together.loss_sum.item() == pytest.approx(sum(out.loss_sum.item() for out in alone), rel=1e-5)
    torch.testing.assert_close(together.watched["features"], alone[0].watched["features"], rtol=1e-4, atol=1e-5)


def gradients(model: Data2Vec) -> Params:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("padded", [False, True])
@each_modality
def test_a_batch_in_two_parts_has_the_same_summed_loss_and_gradients(o: Options, padded: bool) -> None:
    o = replace(o, num_masks=2, padded=padded and o.modality != "image")
    model, batch = build(o), make_batch(o)
    whole = model(batch)
    whole.loss_sum.backward()
    expected = gradients(model)
    parts: list[LossOutput] = [model(rows(batch, 0, 1)), model(rows(batch, 1, 3))]
    sum((out.loss_sum for out in parts), torch.zeros(())).backward()
    assert whole.loss_sum.item() == pytest.approx(sum(out.loss_sum.item() for out in parts), rel=1e-5)
    assert whole.count.item() == sum(out.count.item() for out in parts)
    torch.testing.assert_close(
        whole.watched["features"], torch.cat([out.watched["features"] for out in parts]), rtol=1e-4, atol=1e-5
    )
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("o", [RECIPES["image"], RECIPES["speech"]], ids=["image", "speech"])
@torch.no_grad()
def test_the_mask_token_stands_exactly_where_masks_are(o: Options) -> None:
    o = replace(o, num_masks=3)
    front, batch = build(o).student.frontend(o.modality), make_batch(o)
    assert batch.mask is not None
    hidden, features = front.hide(batch.inputs, batch.mask)
    assert features is not None
    assert torch.equal(features, front.embed(batch.inputs))
    assert hidden.shape == (9, TOKENS[o.modality], DIM)
    for n, masked in enumerate(batch.mask.mask):
        for t in range(TOKENS[o.modality]):
            assert torch.equal(hidden[n, t], front.mask_token if masked[t] else features[n // 3, t])


@torch.no_grad()
def test_the_mask_id_stands_exactly_where_masks_are() -> None:
    o = replace(RECIPES["text"], num_masks=3, padded=True)
    front, batch, seen = build(o).student.frontend("text"), make_batch(o), []
    assert batch.mask is not None
    front.get_submodule("token_embed").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    before = batch.inputs.clone()
    _, features = front.hide(batch.inputs, batch.mask)
    assert features is None
    (ids,) = seen
    for n, masked in enumerate(batch.mask.mask):
        assert ids[n].tolist() == [MASK if h else i for i, h in zip(before[n // 3].tolist(), masked, strict=True)]
    assert torch.equal(batch.inputs, before)  # the teacher's


@torch.no_grad()
def test_a_mask_that_hides_what_it_shows_changes_nothing() -> None:
    """Where every patch is the mask token anyway, the student's output is that of the whole image."""
    o = RECIPES["image"]
    model, batch = build(o), make_batch(o)
    inputs = torch.ones_like(batch.inputs)
    front = model.student.frontend("image")
    assert front.mask_token is not None
    front.mask_token.copy_(front.embed(inputs)[0, 0])
    seen: list[Tensor] = []
    model.heads["image"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(replace(batch, inputs=inputs))
    assert batch.mask is not None
    tokens = model.student(replace(batch, inputs=inputs)).patch_tokens[batch.mask.mask].view_as(seen[0])
    torch.testing.assert_close(seen[0], tokens, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_head_sees_the_final_features_at_masked_places_without_cls() -> None:
    o = replace(RECIPES["image"], num_masks=2)
    model, batch = build(o), make_batch(o)
    assert batch.mask is not None
    seen: list[Tensor] = []
    model.heads["image"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(batch)
    hidden, _ = model.student.frontend("image").hide(batch.inputs, batch.mask)
    x = model.student.encode("image", hidden).x[:, 1:]
    assert torch.equal(seen[0], torch.stack([x[n, m] for n, m in enumerate(batch.mask.mask)]))


def test_no_gradient_reaches_pixels_that_every_mask_hides() -> None:
    o = replace(RECIPES["image"], num_masks=2)
    model, batch = build(o), make_batch(o)
    assert batch.mask is not None
    images = batch.inputs.clone().requires_grad_()
    model(replace(batch, inputs=images)).loss_sum.backward()
    assert images.grad is not None
    patches = images.grad.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).abs().sum((1, 4, 5)).flatten(1)
    always_hidden = batch.mask.mask.view(3, 2, 16).all(1)
    assert always_hidden.any()
    assert not patches[always_hidden].any()
    assert (patches[~always_hidden] > 0).all()


@torch.no_grad()
def test_masked_tokens_change_targets_but_not_predictions() -> None:
    o = RECIPES["text"]
    model, batch, preds = build(o), make_batch(o), []
    assert batch.mask is not None
    model.heads["text"].register_forward_hook(lambda _m, _i, out: preds.append(out))
    first = model(batch)
    second = model(replace(batch, inputs=torch.where(batch.mask.mask, batch.inputs % 30 + 5, batch.inputs)))
    assert torch.equal(*preds)
    assert first.loss_sum.item() != pytest.approx(second.loss_sum.item(), rel=1e-4)


def test_appended_padding_changes_no_text_target_and_no_loss() -> None:
    """Text: targets are normalised over features. (Instance norm covers padded frames, as in the reference.)"""
    o = RECIPES["text"]
    model, batch = build(o), make_batch(o)
    assert batch.mask is not None
    inputs = nn.functional.pad(batch.inputs, (0, 2), value=PAD)
    mask = TokenMask.from_bool(nn.functional.pad(batch.mask.mask, (0, 2)))
    padded = Batch("text", inputs, batch.sample_ids, mask, inputs == PAD)
    torch.testing.assert_close(model.targets(padded)[:, :12], model.targets(batch), rtol=1e-4, atol=1e-4)
    assert model(padded).loss_sum.item() == pytest.approx(model(batch).loss_sum.item(), rel=1e-5)


@each_modality
def test_bfloat16_autocast_keeps_losses_and_targets_in_float32(o: Options) -> None:
    model, batch = build(o), make_batch(o)
    exact = model(batch).loss_sum.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(batch)
        assert model.targets(batch).dtype == torch.float32
    assert {
        t.dtype
        for t in (
            out.loss_sum,
            out.logged["target_std"],
            out.logged["pred_std"],
            out.watched["features"],
            out.watched["frontend"],
        )
    } == {torch.float32}
    assert out.loss_sum.item() == pytest.approx(exact, rel=0.05)
    out.loss_sum.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.student.parameters())


@each_modality
def test_losses_fall_when_trained_on_one_batch(o: Options) -> None:
    model, batch = build(o), make_batch(o)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(25):
        out = model(batch)
        optimizer.zero_grad()
        (out.loss_sum / out.count).backward()
        optimizer.step()
        losses.append(out.loss_sum.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("o", [RECIPES["image"], RECIPES["text"]], ids=["image", "text"])
def test_compiles_without_graph_breaks(o: Options) -> None:
    o = replace(o, num_masks=2, padded=o.modality != "image")
    model, batch = build(o), make_batch(o)
    torch._dynamo.reset()
    out = torch.compile(model, fullgraph=True, backend="eager")(batch)
    assert out.loss_sum.item() == pytest.approx(model(batch).loss_sum.item(), rel=1e-6)
    torch._dynamo.reset()


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_heads_are_linear_layers_with_gelus_between(depth: int) -> None:
    head, x = RegressionHead(6, depth, 3.0), torch.randn(4, 5, 6)
    linears = [m for m in head if isinstance(m, nn.Linear)]
    assert len(linears) == depth
    expected = x
    for i, layer in enumerate(linears):
        expected = (gelu(expected) if i else expected) @ layer.weight.T + layer.bias
        assert layer.out_features == (6 if i == depth - 1 else 18)
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-5)


def test_errors_name_key_value_and_fix() -> None:
    def make(front: Frontend, modality: str = "image", **options: Any) -> Data2Vec:
        encoder = transformer_encoder({"image": front}, DIM, 2, HEADS)
        return Data2Vec(encoder, {modality: RegressionHead(DIM)}, **({"average_top_k_layers": 2} | options))

    beit = BeitFrontend(DIM, HEADS, IMAGE, PATCH)
    with pytest.raises(ValueError, match=r"heads=\['text'\], encoder\.frontends=\['image'\]"):
        make(beit, "text")
    for k in (0, 3):
        with pytest.raises(ValueError, match=rf"average_top_k_layers={k}: .* 2 shared blocks .*choose 1 to 2"):
            make(beit, average_top_k_layers=k)
    no_token = r"encoder\.frontends\.image\.mask_token=false: there is no mask token; set it to true"
    for front in (
        BeitFrontend(DIM, HEADS, IMAGE, PATCH, mask_token=False),
        ImageFrontend(DIM, IMAGE, PATCH),
        TextFrontend(DIM, VOCAB),
        SpeechFrontend(DIM, HEADS),
    ):
        with pytest.raises(ValueError, match=no_token):
            make(front)
    with pytest.raises(ValueError, match=r"teacher_scope=all: choose one of .*transformer"):
        make(beit, teacher_scope="all")
    with pytest.raises(ValueError, match=r"layer_norms\[0\]=group: choose one of instance, layer, batch"):
        make(beit, layer_norms=["group"])
    with pytest.raises(ValueError, match=r"target_norms\[0\]=group: choose one of instance, layer"):
        make(beit, target_norms=["group"])
    for mask_id in (-1, VOCAB):
        with pytest.raises(ValueError, match=rf"mask_id={mask_id}: must be an id .*0 to {VOCAB - 1}"):
            TextFrontend(DIM, VOCAB, mask_id=mask_id)


def test_defaults_are_the_papers_for_speech() -> None:
    model = Data2Vec(
        transformer_encoder({"speech": frontend(RECIPES["speech"])}, DIM, 2, HEADS), {"speech": RegressionHead(DIM)}, 1
    )
    assert model.recipes["speech"].scale(16) == 0.25  # 1 / sqrt(16)
    assert model.recipes["speech"].loss_beta == 0
    assert model.recipes["speech"].teacher_scope == "transformer"
    for (name, ours), theirs in zip(
        model.student.state_dict().items(), model.teacher.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
