"""The frontend for spectrograms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from d2v.nn.frontends.spectrogram import SpectrogramFrontend


def test_patches_are_linear_maps_in_the_order_of_time_then_mels() -> None:
    frontend = SpectrogramFrontend(8, num_frames=24, num_mels=12, patch_size=4, max_frames=40)
    inputs = torch.randn(2, 1, 24, 12)
    tokens = frontend.embed(inputs)
    assert frontend.token_grid(inputs) == (6, 3)
    for time in range(6):
        for mel in range(3):
            patch = inputs[:, 0, time * 4 : time * 4 + 4, mel * 4 : mel * 4 + 4].flatten(1)
            expected = patch @ frontend.proj.weight.flatten(1).T + frontend.proj.bias
            expected = expected + frontend.positions[time * 3 + mel]
            torch.testing.assert_close(tokens[:, time * 3 + mel], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(frontend.patches(inputs)[:, time * 3 + mel], patch)


def test_a_shorter_spectrogram_gives_the_first_tokens_of_a_longer_one() -> None:
    frontend = SpectrogramFrontend(16, max_frames=2048)
    inputs = torch.randn(1, 1, 2048, 128)
    whole = frontend.embed(inputs)
    for num_frames, tokens in ((16, 8), (31, 8), (1000, 62 * 8)):  # frames after the last whole patch are left out
        short = inputs[:, :, :num_frames]
        grid = frontend.token_grid(short)
        assert grid[0] * grid[1] == tokens
        torch.testing.assert_close(frontend.embed(short), whole[:, :tokens])
    assert frontend.example(3).shape == (3, 1, 1024, 128)


@pytest.mark.parametrize(("dim", "tolerance"), [(16, 1e-6), (768, 4e-5), (1024, 8e-5)])
def test_positions_are_those_of_the_released_table(golden_dir: Path, dim: int, tolerance: float) -> None:
    """The authors compute them in float32: the later a row, the further off it is."""
    theirs = load_file(golden_dir / "eat_front.safetensors")[f"positions/{dim}"]
    ours = SpectrogramFrontend(dim).positions
    assert ours.shape == (768 * 8, dim)
    rows = torch.arange(512) if dim == 16 else torch.tensor([0, 1, 7, 8, 15, 511, 1023, 4095, 6143])
    difference = (ours[rows] - theirs).abs().amax(1)
    assert difference.max() < tolerance
    assert difference[rows < 512].max() < 6e-6  # up to 1,024 frames


def test_initialisation() -> None:
    frontend = SpectrogramFrontend(192)
    bound = (6 / (192 + 256)) ** 0.5
    assert bound * 0.99 < frontend.proj.weight.abs().max() <= bound  # Xavier, fans of the flattened patch
    assert [name for name, _ in frontend.named_parameters()] == ["prefix_tokens", "proj.weight", "proj.bias"]


def test_values_are_normalised_patches() -> None:
    frontend = SpectrogramFrontend(16)
    values = frontend.values(torch.randn(2, 1, 32, 128) * 3 + 1)
    assert values.shape == (2, 16, frontend.num_values) == (2, 16, 256)
    torch.testing.assert_close(values.mean(-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(-1), torch.ones(2, 16), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 15, 128), (1, 1, 2064, 128), (1, 1, 64, 64), (1, 2, 64, 128)])
def test_spectrograms_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="num_mels and num_frames"):
        SpectrogramFrontend(16, max_frames=2048).embed(torch.zeros(shape))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_size=24 does not divide num_mels=128"):
        SpectrogramFrontend(16, patch_size=24)
    with pytest.raises(ValueError, match=r"num_frames=1024: choose 16 \(patch_size\) to 512 \(max_frames\)"):
        SpectrogramFrontend(16, max_frames=512)
