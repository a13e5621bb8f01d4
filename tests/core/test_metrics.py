"""The figures of restyled clips: by hand, beside scikit-image, by law, on disk and drawn."""

import csv
import math

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.metric_plot import metric_plot
from flux_atelier.core.evaluation.metrics import (
    color_distance,
    flicker,
    judge,
    psnr,
    score_table,
    sharpness,
    ssim,
    structure_distance,
    warping_error,
    write_scores,
)  # fmt: skip


def picture(seed, height=48, width=40):
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 7, 6, generator=rng)
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic")[0].clamp(0, 1)


def still(a, b):
    return torch.zeros(2, *a.shape[-2:])


def test_psnr_and_ssim_beside_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    first = picture(0)
    second = (first + torch.randn(first.shape) * 0.05).clamp(0, 1)
    a, b = first.double().numpy(), second.double().numpy()
    assert psnr(first, second) == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=1), abs=1e-4)
    options = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1,
        "channel_axis": 0,
    }
    assert ssim(first, second) == pytest.approx(metrics.structural_similarity(a, b, **options), abs=1e-6)


def test_a_picture_beside_itself():
    own = picture(1)
    assert psnr(own, own) == math.inf
    assert ssim(own, own) == pytest.approx(1)
    assert structure_distance(own, own) == pytest.approx(0, abs=1e-4)
    assert color_distance(own, own) == 0


def test_psnr_by_hand():
    assert psnr(torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.1)) == pytest.approx(20, abs=1e-4)


def test_structure_knows_shapes_and_not_colours():
    own = picture(2)
    assert structure_distance(own, own * 0.5 + 0.2) < 0.02
    assert structure_distance(own, 1 - own) > 1.9
    assert 0.5 < structure_distance(own, picture(3)) < 1.5
    assert structure_distance(torch.full((3, 20, 20), 0.5), torch.rand(3, 20, 20)) == 0


def test_colour_knows_palettes_and_not_shapes():
    own = picture(4)
    mixed = own.flatten(1)[:, torch.randperm(own[0].numel())].view_as(own)
    assert color_distance(own, mixed) == pytest.approx(0, abs=1e-6)
    black, white = torch.zeros(3, 12, 12), torch.ones(3, 12, 12)
    assert color_distance(black, white) == pytest.approx(50, rel=0.15)
    assert color_distance(own, own * 0.9) < color_distance(own, own * 0.6)


def test_sharpness_by_hand():
    board = ((torch.arange(6)[:, None] + torch.arange(6)) % 2).float().expand(3, 6, 6)
    assert sharpness(board) == pytest.approx(16e3, rel=1e-4)
    assert sharpness(torch.full((3, 6, 6), 0.3)) == pytest.approx(0, abs=1e-9)


def test_warping_error_by_hand():
    before, trust = torch.full((3, 8, 8), 0.5), torch.ones(1, 8, 8)
    assert warping_error(before + 0.1, before, torch.zeros(2, 8, 8), trust) == pytest.approx(10, rel=1e-4)
    trust[:, :4] = 0
    changed = before.clone()
    changed[:, :4] = 1
    assert warping_error(changed, before, torch.zeros(2, 8, 8), trust) == pytest.approx(0, abs=1e-9)
    assert warping_error(changed, before, torch.zeros(2, 8, 8), trust * 0) == 0


def test_warping_error_of_a_clip_that_moves_as_told_is_nothing():
    whole = picture(5, 48, 60)
    step = torch.tensor([3.0, 0.0])[:, None, None].expand(2, 48, 40)
    inside = torch.ones(1, 48, 40)
    inside[..., -6:] = 0
    assert warping_error(whole[..., :40], whole[..., 3:43], step * -1, inside.flip(2)) < 1e-6


def test_flicker_by_hand_and_over_a_cut():
    assert flicker([0.1, 0.2, 0.1]) == pytest.approx(200)
    assert flicker([0.1, 0.2, 0.3, 0.4]) == pytest.approx(0)
    assert flicker([0.1, 0.1, 0.1, 0.8, 0.8, 0.8], cuts=[3]) == pytest.approx(0)
    assert flicker([0.1, 0.9]) == 0


def clip(noise, seed=0, count=5):
    rng = torch.Generator().manual_seed(seed)
    return [(picture(6) + torch.randn(3, 1, 1, generator=rng) * noise).clamp(0, 1) for _ in range(count)]


def test_a_clip_is_judged_frame_by_frame_and_a_cut_is_left_out():
    scores = judge(clip(0), clip(0.05), flow=still, cuts=[3])
    assert [f.warping is None for f in scores.frames] == [True, False, False, True, False]
    assert scores.mean("warping") > 10 * judge(clip(0), clip(0.005), flow=still).mean("warping")
    assert scores.flicker > 0
    assert math.isnan(judge(clip(0, count=1), clip(0, count=1), flow=still).mean("warping"))


def test_csv_and_table_say_the_same(tmp_path):
    scores = judge(clip(0), clip(0.05), flow=still)
    rows = list(csv.DictReader(write_scores(tmp_path / "scores.csv", scores).open()))
    assert len(rows) == 6
    assert rows[0]["warping"] == ""
    assert float(rows[-1]["warping"]) == pytest.approx(scores.mean("warping"), rel=1e-5)
    assert float(rows[2]["psnr"]) == pytest.approx(scores.frames[2].psnr, rel=1e-5)
    lines = score_table({"a|b": scores, "same": judge(clip(0), clip(0), flow=still)}).splitlines()
    assert len(lines) == 4
    assert all(line.count("|") == 9 for line in lines)
    assert f"{scores.mean('ssim'):.3f}" in lines[2]
    assert "inf" in lines[3]


def test_the_plot_shows_what_differs():
    steady, noisy = judge(clip(0), clip(0.001), flow=still), judge(clip(0), clip(0.05), flow=still)
    sheet = metric_plot({"held": steady, "per frame": noisy})
    assert sheet.size[0] > 600
    assert sheet.tobytes() != metric_plot({"held": steady}).tobytes()
    assert metric_plot({"one": judge(clip(0, count=1), clip(0, count=1), flow=still)}).size[0] > 600


def test_wrong_clips_are_told():
    for source, drawn in ((3, 2), (2, 3), (0, 0)):
        with pytest.raises(AtelierError, match="one length"):
            judge(clip(0, count=source), clip(0, count=drawn), flow=still)
    with pytest.raises(AtelierError, match="at least 11 x 11"):
        ssim(torch.rand(3, 10, 20), torch.rand(3, 10, 20))
