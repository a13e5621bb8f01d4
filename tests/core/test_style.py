"""Colour transfer and the style figure, worked by hand and by law."""

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.grid import curve_plot, picture_grid, running_mean
from flux_atelier.core.evaluation.style_figure import describe, style_position
from flux_atelier.core.images import to_picture
from flux_atelier.core.style.color import (
    ColorOptions,
    apply_map,
    fit_map,
    monge_kantorovitch,
    transfer_color,
    transfer_shots,
)
from flux_atelier.core.style.statistics import lab_to_rgb, rgb_to_lab


def pictures(seed, count=2):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.rand(3, 3, generator=rng)
    raw = torch.rand(count, 3, 24, 24, generator=rng)
    return (torch.einsum("ij,bjhw->bihw", mix, raw) / mix.sum(1).view(3, 1, 1) * 0.4 + 0.3).clamp(0, 1)


def test_result_has_the_references_mean_and_covariance():
    moved = transfer_color(pictures(2), pictures(1)[0])
    ours, wanted = moved.transpose(0, 1).flatten(1), pictures(1)[0].flatten(1)
    assert torch.allclose(ours.mean(1), wanted.mean(1), atol=1e-5)
    assert torch.allclose(torch.cov(ours), torch.cov(wanted), atol=3e-5)


def test_a_picture_to_itself_is_itself_and_zero_strength_changes_nothing():
    own = pictures(3, 1)
    assert torch.allclose(transfer_color(own, own[0]), own, atol=1e-5)
    assert transfer_color(own, pictures(4)[0], 0.0) is own


def test_the_map_by_hand():
    double = monge_kantorovitch(torch.eye(3, dtype=torch.float64), 4 * torch.eye(3, dtype=torch.float64))
    assert torch.allclose(double, 2 * torch.eye(3, dtype=torch.float64))


def test_colours_that_are_hardly_there_are_not_blown_up():
    grey = torch.rand(1, 1, 24, 24).expand(1, 3, 24, 24) * 0.5 + 0.2
    specked = grey + torch.randn(1, 3, 24, 24) / 255
    moved = transfer_color(specked, pictures(1)[0] * torch.tensor([1.0, 0.5, 0.1])[:, None, None])
    tint = transfer_color(grey, pictures(1)[0] * torch.tensor([1.0, 0.5, 0.1])[:, None, None])
    assert (moved - tint).abs().mean() < 8 / 255


METHODS = pytest.mark.parametrize("method", ["mkl", "reinhard", "histogram"])


@METHODS
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_flat_frame_is_left_alone_and_does_not_change_the_others(method, level):
    own, reference = pictures(0), pictures(1)[0]
    flat = torch.full_like(own[:1], level)
    moved = transfer_color(torch.cat([own, flat]), reference, 1.0, method)
    assert torch.equal(moved[2], flat[0])
    assert torch.allclose(moved[:2], transfer_color(own, reference, 1.0, method), atol=1e-5)
    assert torch.equal(transfer_color(own, flat[0], 1.0, method), own)


@METHODS
def test_each_method_brings_the_mean_close_and_strength_is_half_way(method):
    own, reference = pictures(0), pictures(1)[0]
    full, half = (transfer_color(own, reference, s, method) for s in (1.0, 0.5))
    wanted, was = reference.mean((1, 2)), own.mean((0, 2, 3))
    assert (full.mean((0, 2, 3)) - wanted).abs().max() < 0.2 * (was - wanted).abs().max()
    assert torch.allclose(half, (own + full) / 2, atol=2e-3)


def test_histogram_comes_as_close_as_scikit_image_does():
    exposure = pytest.importorskip("skimage.exposure")
    own, reference = pictures(5, 1) ** 2, pictures(6)[0]
    moved = transfer_color(own, reference, 1.0, "histogram")[0]
    exact = exposure.match_histograms(own[0].numpy(), reference.numpy(), channel_axis=0)
    assert (moved - torch.from_numpy(exact)).abs().mean() < 2 / 255


@METHODS
def test_only_what_the_mask_shows_changes_and_counts(method):
    own, reference, mask = pictures(0), pictures(1)[0], torch.zeros(1, 1, 24, 24)
    mask[..., :12] = 1
    moved = transfer_color(own, reference, 1.0, method, mask)
    alone = transfer_color(own[..., :12].contiguous(), reference, 1.0, method)
    assert torch.equal(moved[..., 12:], own[..., 12:])
    assert torch.allclose(moved[..., :12], alone, atol=1e-4)


def test_each_shot_has_one_map_of_its_own():
    first, second, reference = pictures(0, 3), pictures(7, 2) ** 2, pictures(1)[0]
    moved = transfer_shots(torch.cat([first, second]), reference, ColorOptions(), cuts=[3])
    assert torch.equal(moved[:3], transfer_color(first, reference))
    assert torch.equal(moved[3:], transfer_color(second, reference))


@METHODS
def test_one_map_is_fitted_to_pictures_of_any_sizes(method):
    """Halves of pictures one by one are the pictures."""
    own, reference = pictures(0), pictures(1)[0]
    halves = [part for p in own for part in (p[:, :, :9], p[:, :, 9:])]
    seen = []
    fitted = fit_map(halves, reference, method, seen=lambda: seen.append(1))
    assert len(seen) == 4
    assert torch.allclose(fitted(own), fit_map(own, reference, method)(own), atol=1e-4)


@METHODS
def test_only_what_the_references_mask_shows_is_taken(method):
    own, reference, mask = pictures(0), pictures(1, 1), torch.zeros(1, 1, 24, 24)
    mask[..., :12] = 1
    spoiled = torch.where(mask > 0, reference, 1 - reference**3)
    taken = transfer_color(own, spoiled, 1.0, method, reference_mask=mask)
    assert torch.allclose(taken, transfer_color(own, reference[..., :12].contiguous(), 1.0, method), atol=1e-4)
    assert not torch.allclose(taken, transfer_color(own, spoiled, 1.0, method), atol=0.02)


def test_a_map_that_is_applied_changes_flat_pictures_too():
    flat = torch.full((2, 3, 8, 8), 0.5)
    fitted = fit_map(pictures(0), pictures(1)[0])
    seen = []
    made = apply_map(fitted, flat, 0.5, seen=lambda: seen.append(1))
    assert len(seen) == 2 and torch.allclose(made, ((flat + fitted(flat)) / 2).clamp(0, 1), atol=1e-5)
    assert torch.equal(apply_map(fitted, flat, 1.0, torch.zeros(1, 1, 8, 8)), flat)


def test_every_picture_of_a_clip_is_seen_twice():
    seen = []
    transfer_shots(pictures(0, 4), pictures(1)[0], ColorOptions(), [2], seen=lambda: seen.append(1))
    assert len(seen) == 8


def test_lab_beside_scikit_image_and_back():
    color = pytest.importorskip("skimage.color")
    rgb = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.from_numpy(color.rgb2lab(rgb.numpy(), channel_axis=0))
    assert torch.allclose(rgb_to_lab(rgb), wanted, atol=0.02)
    wide = rgb * 1.4 - 0.2
    assert torch.allclose(lab_to_rgb(rgb_to_lab(wide)), wide, atol=1e-4)


def test_what_is_not_finite_stays_where_it_is():
    own = pictures(0)
    own[0, 0, 0, 0] = float("nan")
    moved = transfer_color(own, pictures(1)[0])
    assert moved.isnan().sum() <= 3


@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_a_wrong_strength_is_told(strength):
    with pytest.raises(AtelierError, match="from 0 to 1"):
        transfer_color(pictures(0), pictures(1)[0], strength)


def test_style_position_is_zero_at_the_base_and_one_at_the_target():
    base, target = describe(pictures(0, 12)), describe(pictures(1, 12) ** 2)
    assert style_position(base, base, target).mean() == pytest.approx(0, abs=1e-5)
    assert style_position(target, base, target).mean() == pytest.approx(1, abs=1e-5)
    assert style_position((base + target) / 2, base, target).mean() == pytest.approx(0.5, abs=1e-5)


def test_describe_sees_the_direction_of_stripes():
    x = torch.arange(64).view(1, 1, 1, 64).expand(1, 3, 64, 64)
    stripes = (x // 8 % 2).float()
    across, along = describe(stripes)[0], describe(stripes.transpose(2, 3))[0]
    assert torch.equal(across[:6], along[:6])
    assert not torch.allclose(across[6:], along[6:], atol=0.1)


def test_grid_and_curves_have_their_sizes():
    tile = to_picture(torch.rand(3, 16, 16))
    sheet = picture_grid([[tile, tile], [tile, tile]], ["a", "b"], ["one", "two"], 64)
    assert sheet.size[0] > 2 * 64
    assert sheet.size[1] == 26 + 2 * 70 + 6
    assert curve_plot({"loss": [(1, 2.0), (2, 1.0)]}, "run").size == (640, 300)
    assert curve_plot({}, "empty").size == (640, 300)


def test_running_mean_of_a_constant_is_that_constant():
    assert running_mean([2.0] * 5) == pytest.approx([2.0] * 5)
