"""Colour transfer and the style figure, worked by hand and by law."""

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.grid import curve_plot, picture_grid, running_mean
from flux_atelier.core.evaluation.style_figure import describe, style_position
from flux_atelier.core.images import to_picture
from flux_atelier.core.style.color import monge_kantorovitch, transfer_color


def pictures(seed, count=2):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.rand(3, 3, generator=rng)
    raw = torch.rand(count, 3, 24, 24, generator=rng)
    return (torch.einsum("ij,bjhw->bihw", mix, raw) / mix.sum(1).view(3, 1, 1) * 0.4 + 0.3).clamp(0, 1)


def test_result_has_the_references_mean_and_covariance():
    moved = transfer_color(pictures(0), pictures(1)[0])
    ours, wanted = moved.transpose(0, 1).flatten(1), pictures(1)[0].flatten(1)
    assert torch.allclose(ours.mean(1), wanted.mean(1), atol=1e-5)
    assert torch.allclose(torch.cov(ours), torch.cov(wanted), atol=1e-5)


def test_a_picture_to_itself_is_itself_and_zero_strength_changes_nothing():
    own = pictures(3, 1)
    assert torch.allclose(transfer_color(own, own[0]), own, atol=1e-5)
    assert transfer_color(own, pictures(4)[0], 0.0) is own


def test_the_map_by_hand():
    double = monge_kantorovitch(torch.eye(3, dtype=torch.float64), 4 * torch.eye(3, dtype=torch.float64))
    assert torch.allclose(double, 2 * torch.eye(3, dtype=torch.float64))


def test_a_flat_picture_gets_the_mean_and_stays_finite():
    moved = transfer_color(torch.full((1, 3, 8, 8), 0.5), pictures(2)[0])
    assert torch.allclose(moved[0, :, 0, 0], pictures(2)[0].flatten(1).mean(1), atol=1e-5)


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
