"""The image frontend, and what every frontend inherits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2v.nn.frontends.base import Frontend
from d2v.nn.frontends.image import ImageFrontend
from d2v.types import TokenMask


def test_patches_are_linear_maps_of_their_pixels_in_row_major_order() -> None:
    frontend = ImageFrontend(8, 12, 4, 3)
    nn.init.normal_(frontend.proj.bias)
    images = torch.randn(2, 3, 12, 12)
    tokens = frontend.embed(images)
    assert tokens.shape == (2, 9, 8)
    for row in range(3):
        for column in range(3):
            patch = images[:, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4].flatten(1)
            expected = patch @ frontend.proj.weight.flatten(1).T + frontend.proj.bias
            expected = expected + frontend.positions[row * 3 + column]
            torch.testing.assert_close(tokens[:, row * 3 + column], expected, rtol=1e-4, atol=1e-5)
    assert frontend.token_grid(images) == (3, 3)


def test_positions_are_a_constant_in_the_checkpoint() -> None:
    frontend = ImageFrontend(8, 12, 4)
    assert "positions" in dict(frontend.named_buffers())
    assert "positions" in frontend.state_dict()
    assert "positions" not in dict(frontend.named_parameters())


def test_initialisation() -> None:
    frontend = ImageFrontend(192, 32, 4, 3, 1)
    bound = (6 / (192 + 48)) ** 0.5
    weight = frontend.proj.weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)  # Xavier, fans of the flattened patch
    many = ImageFrontend(400, 8, 4, 3, 4).prefix_tokens
    assert many is not None
    assert many.std().item() == pytest.approx(1, rel=0.1)  # N(0, 1)
    assert isinstance(many, nn.Parameter)


@pytest.mark.parametrize(("num_prefix", "num_masks"), [(1, 1), (1, 3), (0, 2), (2, 2)])
def test_tokens_are_prefix_then_visible(num_prefix: int, num_masks: int) -> None:
    frontend = ImageFrontend(8, 12, 4, 3, num_prefix)
    features = torch.randn(2, 9, 8)
    bits = torch.zeros(2 * num_masks, 9, dtype=torch.bool)
    for row in bits:
        row[torch.randperm(9)[:5]] = True
    result = frontend.tokens(features, TokenMask.from_bool(bits, num_masks))
    assert result.shape == (2 * num_masks, num_prefix + 4, 8)
    for n, hidden in enumerate(bits):
        assert torch.equal(result[n, num_prefix:], features[n // num_masks][~hidden])
        if num_prefix:
            assert torch.equal(result[n, :num_prefix], frontend.prefix_tokens)
    whole = frontend.tokens(features, None)
    assert whole.shape == (2, num_prefix + 9, 8)
    assert torch.equal(whole[:, num_prefix:], features)


def test_prefix_tokens_get_the_sum_of_all_views_gradients() -> None:
    frontend = ImageFrontend(8, 12, 4)
    frontend.tokens(torch.randn(3, 9, 8), None).sum().backward()
    assert frontend.prefix_tokens is not None
    assert torch.equal(frontend.prefix_tokens.grad, torch.full((1, 8), 3.0))


@pytest.mark.parametrize(("img_size", "patch_size"), [(32, 5), (4, 8)])
def test_a_patch_that_does_not_divide_the_image_is_refused_with_a_fix(img_size: int, patch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"patch_size={patch_size} .*img_size={img_size}") as error:
        ImageFrontend(8, img_size, patch_size)
    recommended = int(str(error.value).partition("choose img_size=")[2].split()[0])
    ImageFrontend(8, recommended, patch_size)


@pytest.mark.parametrize("shape", [(2, 3, 16, 12), (2, 3, 8, 8), (2, 1, 12, 12), (2, 3, 24, 24)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images of shape") as error:
        ImageFrontend(8, 12, 4).embed(torch.randn(shape))
    assert str(shape[1:]) in str(error.value)
    assert "(3, 12, 12)" in str(error.value)


def test_a_width_without_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        ImageFrontend(10, 12, 4)


def test_the_base_class_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="embed"):
        Frontend(8).embed(torch.zeros(1))
    with pytest.raises(NotImplementedError, match="token_grid"):
        Frontend(8).token_grid(torch.zeros(1))
