import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from d2v.eval.figures import canvas, curves
from d2v.eval.figures import images as figures
from d2v.eval.figures.curves import plot_curves
from d2v.eval.figures.images import plot_masks, plot_pca
from d2v.runs.metrics import read_metrics

matplotlib = pytest.importorskip("matplotlib")

CSV = """epoch,probe/knn,step,train/effective_rank,train/loss,train/pred_std,train/target_std
0,,0,,1.5,0.1,0.5
0,,10,,1.2,0.2,0.5
0,0.71,10,12.5,,,
1,,20,,1.1,0.3,0.6
1,,30,,nan,0.3,0.6
1,,20,,1.0,0.4,0.7
1,0.75,20,17.5,,,
1,,25,,0.9,0.4,0.7
"""


@pytest.fixture
def metrics_csv(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.csv"
    path.write_text(CSV)
    return path


def read_png(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count_pixels(picture: np.ndarray, colour: tuple[float, float, float]) -> int:
    return int((np.abs(picture - 255 * np.asarray(colour)) < 1.5).all(-1).sum())


def random_images(num_images: int, channels: int = 1, size: int = 28) -> Tensor:
    return torch.rand(num_images, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_series_skip_empty_cells_and_a_resumed_run_overrules_what_it_repeats(metrics_csv: Path) -> None:
    columns = read_metrics(metrics_csv)
    steps, values = curves._series(columns, "train/loss")
    assert steps.tolist() == [0, 10, 20, 25]
    assert values.tolist() == [1.5, 1.2, 1.0, 0.9]
    steps, values = curves._series(columns, "probe/knn")
    assert steps.tolist() == [10, 20]
    assert values.tolist() == [0.71, 0.75]


def test_curves_from_a_csv_and_from_its_columns_are_the_same_picture(metrics_csv: Path, tmp_path: Path) -> None:
    path = plot_curves(metrics_csv, tmp_path / "figures" / "csv.png")
    assert path == tmp_path / "figures" / "csv.png"
    same = plot_curves(read_metrics(metrics_csv), tmp_path / "columns.png")
    np.testing.assert_array_equal(read_png(path), read_png(same))


def test_curves_leave_out_panels_without_values(metrics_csv: Path, tmp_path: Path) -> None:
    four = read_png(plot_curves(metrics_csv, tmp_path / "4.png")).shape
    columns = read_metrics(metrics_csv)
    del columns["probe/knn"]
    three = read_png(plot_curves(columns, tmp_path / "3.png")).shape
    columns["train/effective_rank"] = [None] * len(columns["step"])
    two = read_png(plot_curves(columns, tmp_path / "2.png")).shape
    assert four == (2 * two[0], two[1], 3)
    assert three == (two[0], 3 * two[1] // 2, 3)


def test_curves_of_a_long_run_with_a_gap(tmp_path: Path) -> None:
    loss = [math.nan if 40 < i < 50 else 1 / (1 + i) for i in range(200)]
    path = plot_curves({"step": list(range(200)), "train/loss": loss}, tmp_path / "long.png")
    assert count_pixels(read_png(path), (0, 0x72 / 255, 0xB2 / 255)) > 100


def test_smoothing_is_a_mean_over_what_is_there() -> None:
    values = np.arange(120.0)
    values[60] = np.nan
    smooth = curves._smooth(values)
    width = 2 * (120 // 60) + 1
    for i in range(120):
        window = values[max(0, i - width // 2) : i + width // 2 + 1]
        expected = np.nan if i == 60 else np.nanmean(window)
        np.testing.assert_allclose(smooth[i], expected)


def test_a_truncated_last_line_is_read_and_a_bad_cell_named(metrics_csv: Path, tmp_path: Path) -> None:
    with metrics_csv.open("a") as file:
        file.write("1,,35")
    assert read_metrics(metrics_csv)["train/loss"][-1] is None
    with metrics_csv.open("a") as file:
        file.write("\n1,,40,,oops,,\n")
    with pytest.raises(ValueError, match="line 11: train/loss='oops' is no number"):
        plot_curves(metrics_csv, tmp_path / "x.png")


def test_curve_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to plot: .*train/loss.*; there are step, loss"):
        plot_curves({"step": [1], "loss": [1]}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="no step column"):
        plot_curves({"train/loss": [1]}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="columns step and train/loss have 2 and 1 rows"):
        plot_curves({"step": [1, 2], "train/loss": [1]}, tmp_path / "x.png")


@pytest.mark.parametrize("size", [28, 30])
def test_greyed_out_pixels_are_exactly_the_masked_patches(size: int) -> None:
    image = random_images(1, 3, size)[0].permute(1, 2, 0).numpy()
    mask = torch.rand(7, 7, generator=torch.Generator().manual_seed(1)).numpy() < 0.6
    greyed = figures._grey_out(image, mask)
    for row in range(size):
        for column in range(size):
            masked = mask[row * 7 // size, column * 7 // size]
            expected = canvas.MASKED_COLOUR if masked else image[row, column]
            np.testing.assert_allclose(greyed[row, column], expected)


@pytest.mark.parametrize(("num_masks", "channels"), [(1, 1), (6, 3)])
def test_masks_picture_shows_the_masked_share(tmp_path: Path, num_masks: int, channels: int) -> None:
    mask = torch.zeros(2 * num_masks, 49, dtype=torch.bool)
    empty = read_png(plot_masks(random_images(2, channels), mask, (7, 7), num_masks, tmp_path / "0.png"))
    half = mask.clone()
    half[:, :28] = True
    full = read_png(plot_masks(random_images(2, channels), ~mask, (7, 7), num_masks, tmp_path / "2.png"))
    part = read_png(plot_masks(random_images(2, channels), half, (7, 7), num_masks, tmp_path / "1.png"))
    masked = [count_pixels(picture, canvas.MASKED_COLOUR) for picture in (empty, part, full)]
    assert masked[0] < 100
    assert masked[1] / masked[2] == pytest.approx(28 / 49, abs=0.02)
    assert masked[2] > 2 * min(num_masks, 4) * 100**2


def test_mask_errors(tmp_path: Path) -> None:
    mask = torch.zeros(4, 49, dtype=torch.bool)
    with pytest.raises(ValueError, match="undo the normalisation"):
        plot_masks(random_images(2) * 4 - 2, mask, (7, 7), 2, tmp_path / "x.png")
    with pytest.raises(ValueError, match="1 or 3 channels"):
        plot_masks(random_images(2, 2), mask, (7, 7), 2, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"bool mask of shape \(6, 49\)"):
        plot_masks(random_images(2), mask, (7, 7), 3, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        plot_masks(random_images(2), mask.float(), (7, 7), 2, tmp_path / "x.png")


@pytest.mark.parametrize("num_features", [1, 2, 3, 20])
def test_principal_components_match_svd(num_features: int) -> None:
    x = torch.randn(60, num_features, generator=torch.Generator().manual_seed(0)) + 3
    components, explained = canvas.principal_components(x)
    u, sigma, _ = np.linalg.svd((x - x.mean(0)).double().numpy(), full_matrices=False)
    expected = np.zeros((60, 3))
    expected[:, :num_features] = (u * sigma)[:, :3]
    np.testing.assert_allclose(np.abs(components), np.abs(expected), atol=1e-5)
    assert explained == pytest.approx((sigma[:3] ** 2).sum() / (sigma**2).sum())
    # The sign does not depend on the order of the patches, so neither do the colours.
    np.testing.assert_allclose(canvas.principal_components(x.flip(0))[0], components[::-1], atol=1e-5)


def test_scaling_is_robust_to_outliers_and_constants() -> None:
    components = np.stack([np.arange(100.0), np.zeros(100), np.r_[1e6, np.arange(99.0)]], axis=1)
    scaled = canvas.scale_robustly(components)
    assert scaled.min() == 0
    assert scaled.max() == 1
    assert (scaled[:, 1] == 0.5).all()
    assert np.median(scaled[:, 2]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("num_images", [1, 5, 8])
def test_pca_picture_of_two_kinds_of_patches_has_two_colours(tmp_path: Path, num_images: int) -> None:
    features = torch.zeros(num_images, 49, 6)
    features[:, ::2] = torch.tensor([3.0, 1, 0, 0, 0, 0])
    path = plot_pca(random_images(num_images), features, (7, 7), tmp_path / "pca.png")
    picture = read_png(path)
    for red in (0, 1):  # the other two components are constant
        assert count_pixels(picture, (red, 0.5, 0.5)) > num_images * 40**2


def test_pca_of_collapsed_features_and_errors(tmp_path: Path) -> None:
    images = random_images(2)
    picture = read_png(plot_pca(images, torch.ones(2, 49, 6), (7, 7), tmp_path / "flat.png"))
    assert count_pixels(picture, (0.5, 0.5, 0.5)) > 2 * 100**2
    with pytest.raises(ValueError, match=r"\(2, 49, D\), got \(2, 50, 6\); leave out prefix tokens"):
        plot_pca(images, torch.ones(2, 50, 6), (7, 7), tmp_path / "x.png")
    with pytest.raises(ValueError, match="NaN or infinite"):
        plot_pca(images, torch.full((2, 49, 6), torch.nan), (7, 7), tmp_path / "x.png")


def test_drawing_touches_no_global_state(metrics_csv: Path, tmp_path: Path) -> None:
    settings, pyplot = dict(matplotlib.rcParams), sys.modules.get("matplotlib.pyplot")
    plot_curves(metrics_csv, tmp_path / "x.png")
    assert dict(matplotlib.rcParams) == settings
    assert sys.modules.get("matplotlib.pyplot") is pyplot


def test_matplotlib_is_optional(metrics_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = "import sys, d2v.eval.figures.images; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib"):
        plot_curves(metrics_csv, tmp_path / "x.png")
