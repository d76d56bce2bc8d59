"""The masked autoencoder: pixels for targets, in loops by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2v.models.mae import MaskedAutoencoder
from d2v.nn.decoders import PixelDecoder
from d2v.nn.encoder import Encoder, transformer_encoder
from d2v.nn.frontends.image import BeitFrontend, ImageFrontend
from d2v.nn.frontends.text import TextFrontend
from d2v.types import Batch, TokenMask

SIZE, PATCH, CHANNELS, DIM = 12, 4, 3, 16
TOKENS = (SIZE // PATCH) ** 2


def encoder(num_prefix_tokens: int = 1) -> Encoder:
    frontend = ImageFrontend(DIM, SIZE, PATCH, CHANNELS, num_prefix_tokens)
    return transformer_encoder({"image": frontend}, embed_dim=DIM, depth=2, num_heads=2)


def autoencoder(norm_patches: bool = True, **options: int) -> MaskedAutoencoder:
    torch.manual_seed(0)
    decoder = PixelDecoder(DIM, SIZE, PATCH, CHANNELS, decoder_dim=8, depth=1, num_heads=2)
    return MaskedAutoencoder(encoder(**options), {"image": decoder}, norm_patches)


def batch(num_samples: int = 3, num_masks: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num_samples, CHANNELS, SIZE, SIZE, generator=generator)
    order = torch.rand(num_samples * num_masks, TOKENS, generator=generator).argsort(dim=1)
    mask = TokenMask.from_bool(order < 6, num_masks)
    return Batch("image", images, torch.arange(num_samples), mask=mask)


@pytest.mark.parametrize("norm_patches", [True, False])
def test_targets_are_the_pixels_of_each_patch(norm_patches: bool) -> None:
    data = batch()
    targets = autoencoder(norm_patches).targets(data)
    assert targets.shape == (3, TOKENS, CHANNELS * PATCH**2)
    for sample in range(3):
        for row in range(SIZE // PATCH):
            for column in range(SIZE // PATCH):
                rows, columns = (slice(at * PATCH, (at + 1) * PATCH) for at in (row, column))
                pixels = data.inputs[sample, :, rows, columns].flatten()
                if norm_patches:
                    pixels = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
                torch.testing.assert_close(targets[sample, row * (SIZE // PATCH) + column], pixels)


def test_loss_is_the_mean_square_over_masked_patches() -> None:
    model, data = autoencoder(), batch()
    mask, seen = data.mask, {}
    assert mask is not None
    model.decoders["image"].register_forward_hook(lambda module, args, output: seen.update(pred=output))
    out = model(data)
    targets, total, count = model.targets(data), 0.0, 0
    for view in range(6):
        for place, token in enumerate(mask.ids_mask[view].tolist()):
            total += float(((seen["pred"].detach()[view, place] - targets[view // 2, token]) ** 2).mean())
            count += 1
    assert int(out.count) == count == 36
    assert float(out.loss_sum.detach()) == pytest.approx(total, rel=1e-5)


def test_masked_pixels_reach_the_targets_alone() -> None:
    """Whatever stands at masked places, predictions are the same; and every parameter learns."""
    model, data = autoencoder(), batch(num_masks=1)
    mask, seen = data.mask, []
    assert mask is not None
    model.decoders["image"].register_forward_hook(lambda module, args, output: seen.append(output))
    model(data).loss_sum.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    hidden = mask.mask.view(3, 1, SIZE // PATCH, SIZE // PATCH)
    hidden = hidden.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    other = Batch("image", torch.where(hidden, torch.randn_like(data.inputs), data.inputs), data.sample_ids, mask=mask)
    model(other)
    torch.testing.assert_close(*(pred.detach() for pred in seen))


def test_predictions_know_where_they_are() -> None:
    model, data = autoencoder(), batch(1, 1)
    seen = []
    model.decoders["image"].register_forward_hook(lambda module, args, output: seen.append(output))
    model(data)
    assert float(seen[0].detach().std(dim=1).mean()) > 1e-2


def test_what_cannot_work_is_named() -> None:
    with pytest.raises(ValueError, match=r"decoders=\['speech'\]"):
        MaskedAutoencoder(encoder(), {"speech": nn.Identity()})
    text = transformer_encoder(
        {"text": TextFrontend(DIM, vocab_size=20, max_positions=8, pad_id=1)}, embed_dim=DIM, depth=1, num_heads=2
    )
    with pytest.raises(ValueError, match="its tokens are no patches of inputs"):
        MaskedAutoencoder(text, {"text": nn.Identity()})
    with pytest.raises(ValueError, match=r"decoders\.image\.patch_size=2: .* have .*patch_size=4"):
        MaskedAutoencoder(encoder(), {"image": PixelDecoder(DIM, SIZE, 2, CHANNELS, decoder_dim=8, num_heads=2)})
    beit = transformer_encoder(
        {"image": BeitFrontend(DIM, 2, SIZE, PATCH, CHANNELS)}, embed_dim=DIM, depth=1, num_heads=2
    )
    with pytest.raises(ValueError, match=r"frontends\.image\.mask_token=true"):
        MaskedAutoencoder(beit, {"image": PixelDecoder(DIM, SIZE, PATCH, CHANNELS, decoder_dim=8, num_heads=2)})
    with pytest.raises(ValueError, match=r"decoder_dim=6: positions need a multiple of 4"):
        PixelDecoder(DIM, SIZE, PATCH, CHANNELS, decoder_dim=6, num_heads=2)
    with pytest.raises(ValueError, match=r"num_heads=3 does not divide decoder_dim=8"):
        PixelDecoder(DIM, SIZE, PATCH, CHANNELS, decoder_dim=8, depth=1, num_heads=3)
    with pytest.raises(ValueError, match="network=teacher: a MaskedAutoencoder has none: set network=student"):
        autoencoder().network("teacher")
