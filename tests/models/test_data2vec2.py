"""The whole forward pass against the slow oracle, and what must hold whatever the parameters."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from d2v.models.data2vec2 import Data2Vec2
from d2v.nn.decoders import ConvDecoder2d
from d2v.nn.encoder import transformer_encoder
from d2v.nn.frontends.image import ImageFrontend
from d2v.types import Batch, LossOutput, TokenMask

MakeModel = Callable[..., Data2Vec2]

MakeBatch = Callable[..., Batch]

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "default": (2, {}),
    "one_sample_one_mask": (1, {"num_masks": 1}),
    "four_masks": (3, {"num_masks": 4}),
    "top_1": (2, {"average_top_k_layers": 1}),
    "top_all": (2, {"average_top_k_layers": 3}),
    "no_prenet": (2, {"prenet_depth": 0}),
    "prenet_2": (2, {"prenet_depth": 2}),
    "layer_then_instance": (2, {"layer_norms": ("layer",), "target_norms": ("instance",)}),
    "both_norms_twice": (2, {"layer_norms": ("instance", "layer"), "target_norms": ("layer", "instance")}),
    "no_norms": (2, {"layer_norms": (), "target_norms": ()}),
    "end_of_block": (2, {"end_of_block_targets": True}),
    "smooth_l1": (2, {"loss_beta": 0.5}),
    "smooth_l1_wide": (2, {"loss_beta": 4.0, "loss_scale": 1.0}),
    "loss_scale": (2, {"loss_scale": 3.0}),
    "no_cls": (2, {"cls_loss": 0.0}),
    "no_prefix": (2, {"cls_loss": 0.0, "num_extra_tokens": 0}),
    "cls_weight": (3, {"cls_loss": 0.1, "num_masks": 3}),
    "three_prefix": (2, {"num_extra_tokens": 3}),
    "pre_norm": (2, {"layer_norm_first": True}),
    "pre_norm_end_of_block": (2, {"layer_norm_first": True, "end_of_block_targets": True, "prenet_depth": 2}),
    "wide_decoder": (2, {"decoder_dim": 16, "decoder_groups": 4, "decoder_layers": 2, "decoder_kernel": 5}),
    "eps": (2, {"norm_eps": 1e-2}),
    "five_heads": (1, {"embed_dim": 20, "num_heads": 5, "mlp_hidden": 30}),
}


def build(o: Any, batch_size: int) -> Data2Vec2:
    """Our model for the oracle's options."""
    frontend = ImageFrontend(o.embed_dim, o.input_size, o.patch_size, o.in_chans, o.num_extra_tokens)
    encoder = transformer_encoder(
        {"image": frontend},
        embed_dim=o.embed_dim,
        depth=o.depth,
        num_heads=o.num_heads,
        prenet_depth=o.prenet_depth,
        mlp_ratio=o.mlp_hidden / o.embed_dim,
        norm_first=o.layer_norm_first,
        norm_eps=o.norm_eps,
    )
    decoder = ConvDecoder2d(
        o.embed_dim, o.decoder_dim, o.decoder_layers, o.decoder_kernel, o.decoder_groups, mask_noise_std=0.0
    )
    return Data2Vec2(
        encoder,
        {"image": decoder},
        average_top_k_layers=o.average_top_k_layers,
        layer_norms=o.layer_norms,
        target_norms=o.target_norms,
        end_of_block_targets=o.end_of_block_targets,
        loss_scale=o.loss_scale,
        loss_beta=o.loss_beta,
        cls_loss_weight=o.cls_loss * batch_size * o.num_masks,
    )


@pytest.mark.parametrize("name", CASES)
def test_forward_matches_the_slow_oracle(oracle: ModuleType, name: str) -> None:
    batch_size, options = CASES[name]
    o = oracle.Options(**options)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    student, teacher = (oracle.random_parameters(o, generator) for _ in range(2))
    source = torch.randn(batch_size, o.in_chans, o.input_size, o.input_size, generator=generator)
    bits = torch.zeros(batch_size * o.num_masks, o.side**2, dtype=torch.bool)
    for row in bits:
        row[torch.randperm(o.side**2, generator=generator)[:11]] = True
    student = {k: v.float().double().requires_grad_() for k, v in student.items()}
    teacher = {k: v.float().double() for k, v in teacher.items() if oracle.in_teacher(k)}
    expected = oracle.run(student, teacher, source, bits, o)
    expected.loss.backward()

    model = build(o, batch_size)
    state = oracle.to_d2v_state({k: v.detach() for k, v in student.items()}, teacher)
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert {k.rpartition(".")[2] for k in left.missing_keys} == {"positions"}
    batch = Batch("image", source, torch.arange(batch_size), TokenMask.from_bool(bits, o.num_masks))
    torch.testing.assert_close(model.targets(batch).double(), expected.target, rtol=1e-3, atol=1e-4)
    out = model(batch)
    assert out.terms["regression"].item() == pytest.approx(expected.regression.item(), rel=2e-5)
    assert set(out.terms) == ({"regression", "cls"} if o.cls_loss else {"regression"})
    if o.cls_loss:
        assert out.terms["cls"].item() == pytest.approx(expected.cls.item(), rel=2e-5)
    assert out.loss_sum.item() == pytest.approx((expected.regression + expected.cls).item(), rel=2e-5)
    assert out.count.item() == expected.count
    assert out.count.dtype == torch.int64
    assert out.logged["target_std"].item() == pytest.approx(oracle.spread(expected.target_masked), rel=1e-4)
    assert out.logged["pred_std"].item() == pytest.approx(oracle.spread(expected.pred.detach()), rel=1e-4)
    torch.testing.assert_close(out.watched["features"].double(), expected.features.detach(), rtol=1e-4, atol=1e-4)
    assert not any(
        t.requires_grad
        for t in [
            out.count,
            out.watched["features"],
            out.logged["target_std"],
            out.logged["pred_std"],
            *out.terms.values(),
        ]
    )

    (out.loss_sum / out.count).backward()
    ours = oracle.to_d2v_state({k: v.grad for k, v in student.items() if v.grad is not None}, {})
    for key, parameter in model.named_parameters():
        if key.startswith("teacher."):
            assert parameter.grad is None
        elif key not in ours:
            # The last block's norm and the like may take no part; then ours has none either.
            assert parameter.grad is None or not parameter.grad.any(), key
        else:
            scale = float(ours[key].abs().max()) or 1.0
            torch.testing.assert_close(parameter.grad / scale, ours[key] / scale, rtol=0, atol=1e-4)


def equal_outputs(a: LossOutput, b: LossOutput) -> None:
    assert a.loss_sum.item() == pytest.approx(b.loss_sum.item(), rel=1e-6)
    assert a.count.item() == b.count.item()


def test_one_batch_of_eight_is_two_of_four(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(cls_loss_weight=0.5)
    whole = model(make_batch(list(range(8))))
    whole.loss_sum.backward()
    gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    halves = [model(make_batch(ids)) for ids in ([0, 1, 2, 3], [4, 5, 6, 7])]
    (halves[0].loss_sum + halves[1].loss_sum).backward()
    assert whole.loss_sum.item() == pytest.approx(sum(h.loss_sum.item() for h in halves), rel=1e-5)
    assert whole.count.item() == sum(h.count.item() for h in halves)
    for term, value in whole.terms.items():
        assert value.item() == pytest.approx(sum(h.terms[term].item() for h in halves), rel=1e-5)
    torch.testing.assert_close(
        whole.watched["features"], torch.cat([h.watched["features"] for h in halves]), rtol=1e-4, atol=1e-5
    )
    for key, parameter in model.named_parameters():
        if key in gradients:
            torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-3, atol=1e-3)


def test_the_cls_weight_does_not_depend_on_batch_or_masks(make_model: MakeModel, make_batch: MakeBatch) -> None:
    """The same sample and mask, twice or six times: the same loss, in all of its terms."""
    model = make_model(cls_loss_weight=0.5)
    one = make_batch([3], 1)
    assert one.mask is not None

    def repeated(samples: int, masks: int) -> LossOutput:
        mask = TokenMask.from_bool(one.mask.mask.repeat(samples * masks, 1), masks)  # type: ignore[union-attr]
        ids = torch.arange(samples)
        return model(Batch("image", one.inputs.repeat(samples, 1, 1, 1), ids, mask))

    outs = [repeated(1, 1), repeated(2, 1), repeated(2, 3)]
    for out in outs[1:]:
        for term, value in out.terms.items():
            ours = (value / out.count).item()
            assert ours == pytest.approx((outs[0].terms[term] / outs[0].count).item(), rel=1e-4)


def test_loss_is_the_sum_of_its_terms(make_model: MakeModel, make_batch: MakeBatch) -> None:
    out = make_model(cls_loss_weight=0.5)(make_batch())
    assert out.loss_sum.item() == pytest.approx(sum(v.item() for v in out.terms.values()), rel=1e-6)
    assert out.loss_sum.requires_grad
    assert out.loss_sum.dtype == torch.float32
    assert out.count.item() == 3 * 2 * (16 - 4)


def test_one_teacher_pass_and_one_patch_embedding_serve_all_masks(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model(), make_batch(3, 5)
    calls: list[tuple[str, int]] = []

    def count(name: str, module: torch.nn.Module) -> None:
        module.register_forward_pre_hook(lambda _, inputs: calls.append((name, len(inputs[0]))))

    for who in ("student", "teacher"):
        network = getattr(model, who)
        count(f"{who} patches", network.frontends["image"].proj)
        count(f"{who} prenet", network.prenets["image"].blocks[0])
        for i, block in enumerate(network.trunk.blocks):
            count(f"{who} block {i}", block)
    model(batch)
    assert sorted(calls) == sorted(
        [(f"teacher {part}", 3) for part in ("patches", "prenet", "block 0", "block 1")]
        + [("student patches", 3)]
        + [(f"student {part}", 15) for part in ("prenet", "block 0", "block 1")]
    )


@torch.no_grad()
def test_targets_of_a_sample_do_not_depend_on_the_others_or_on_masks(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model = make_model()
    together = model.targets(make_batch([1, 2, 3], 2))
    alone = model.targets(make_batch([2], 4))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_targets_come_from_the_shared_blocks_without_the_prenet(make_model: MakeModel, make_batch: MakeBatch) -> None:
    """With every shared MLP zeroed, the MLP targets are its bias whatever the prenet block does."""
    model = make_model(layer_norms=(), target_norms=(), average_top_k_layers=2)
    for i, block in enumerate(model.teacher.trunk.blocks):
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.fill_(float(i + 1))
    targets = model.targets(make_batch(2))
    assert torch.equal(targets, torch.full((2, 16, 16), 1.5))


@torch.no_grad()
def test_only_the_last_k_blocks_count(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(depth=4, layer_norms=(), target_norms=(), average_top_k_layers=2)
    for i, block in enumerate(model.teacher.trunk.blocks):
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.fill_(10.0**i)
    torch.testing.assert_close(model.targets(make_batch(1)), torch.full((1, 16, 16), (100 + 1000) / 2))


def test_no_gradient_reaches_pixels_that_every_mask_hides(make_model: MakeModel, make_batch: MakeBatch) -> None:
    """The student must not see what it predicts; the teacher does, without a gradient."""
    model, batch = make_model(cls_loss_weight=0.3), make_batch(3, 2)
    images = batch.inputs.clone().requires_grad_()
    model(Batch("image", images, batch.sample_ids, batch.mask)).loss_sum.backward()
    assert images.grad is not None
    assert batch.mask is not None
    patches = images.grad.unfold(2, 3, 3).unfold(3, 3, 3).abs().sum((1, 4, 5)).flatten(1)  # (B, T)
    always_hidden = batch.mask.mask.view(3, 2, 16).all(1)
    assert always_hidden.any()
    assert not patches[always_hidden].any()
    assert (patches[~always_hidden] > 0).all()


@torch.no_grad()
def test_hidden_pixels_change_targets_but_not_predictions(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model().eval(), make_batch(1, 1)
    assert batch.mask is not None
    preds: list[torch.Tensor] = []
    model.decoders["image"].register_forward_hook(lambda _m, _i, out: preds.append(out))
    token = int(batch.mask.ids_mask[0, 0])
    changed = batch.inputs.clone()
    changed[:, :, token // 4 * 3 : token // 4 * 3 + 3, token % 4 * 3 : token % 4 * 3 + 3] += 1
    other = Batch("image", changed, batch.sample_ids, batch.mask)
    first, second = model(batch), model(other)
    assert torch.equal(*preds)
    assert first.loss_sum.item() != pytest.approx(second.loss_sum.item(), rel=1e-4)


def test_mask_noise_makes_the_loss_random_only_through_the_global_generator(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model, batch = make_model(mask_noise_std=0.5), make_batch()
    torch.manual_seed(5)
    first = model(batch).loss_sum
    assert model(batch).loss_sum.item() != first.item()
    torch.manual_seed(5)
    assert torch.equal(model(batch).loss_sum, first)


def test_bfloat16_autocast_keeps_losses_and_targets_in_float32(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model(cls_loss_weight=0.1), make_batch()
    exact = model(batch)
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
            *out.terms.values(),
        )
    } == {torch.float32}
    assert out.loss_sum.item() == pytest.approx(exact.loss_sum.item(), rel=0.05)
    out.loss_sum.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.student.parameters())


def test_a_model_cast_to_bfloat16_still_updates_its_teacher(make_model: MakeModel) -> None:
    """The teacher's module says "always float32"."""
    model = make_model().bfloat16()
    model.update_teacher(0.5)
    assert {p.dtype for p in model.teacher.parameters()} == {torch.float32}


def test_losses_fall_when_trained_on_one_batch(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model(), make_batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(30):
        out = model(batch)
        optimizer.zero_grad()
        (out.loss_sum / out.count).backward()
        optimizer.step()
        losses.append(out.loss_sum.item() / out.count.item())
    assert losses[-1] < 0.7 * losses[0]


def test_compiles_without_graph_breaks(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(cls_loss_weight=0.1, drop_path_rate=0.0)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for batch in (make_batch(2), make_batch([5, 6])):
        out = compiled(batch)
        expected = model(batch)
        equal_outputs(out, expected)
        out.loss_sum.backward()
    assert all(p.grad is not None for p in model.student.parameters())
    assert not any(m.training for m in model.teacher.modules())
    torch._dynamo.reset()


def test_refusals_name_key_value_and_fix() -> None:
    def make(num_prefix: int = 1, modality: str = "image", **options: Any) -> Data2Vec2:
        encoder = transformer_encoder({"image": ImageFrontend(16, 12, 3, 3, num_prefix)}, 16, 2, 4)
        return Data2Vec2(encoder, {modality: ConvDecoder2d(16, 8, groups=2)}, **({"average_top_k_layers": 2} | options))

    with pytest.raises(ValueError, match=r"average_top_k_layers=3.*2 shared blocks.*choose 1 to 2"):
        make(average_top_k_layers=3)
    with pytest.raises(ValueError, match=r"average_top_k_layers=0.*choose 1 to 2"):
        make(average_top_k_layers=0)
    with pytest.raises(ValueError, match=r"decoders=\['sound'\], encoder\.frontends=\['image'\]"):
        make(modality="sound")
    with pytest.raises(ValueError, match=r"cls_loss_weight=0\.1 needs a CLS token.*num_prefix_tokens=1"):
        make(num_prefix=0, cls_loss_weight=0.1)
    with pytest.raises(ValueError, match=r"layer_norms\[0\]=group: choose one of instance, layer, batch"):
        make(layer_norms=["group"])
    with pytest.raises(ValueError, match=r"target_norms\[0\]=group: choose one of instance, layer"):
        make(target_norms=["group"])
