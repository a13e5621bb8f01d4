"""The deflicker, worked by hand and by law."""

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.metrics import flicker
from flux_atelier.core.frames.deflicker import (
    DeflickerOptions,
    aimed_levels,
    deflicker,
    measure_levels,
    smooth_course,
)  # fmt: skip


def clip(count=20, seed=0, noise=0.03):
    rng = torch.Generator().manual_seed(seed)
    base = torch.rand(3, 16, 16, generator=rng) * 0.5 + 0.2
    return [base + torch.randn(3, 1, 1, generator=rng) * noise for _ in range(count)]


def evened(frames, options=None, cuts=(), source=None):
    options = options or DeflickerOptions()
    found = measure_levels(frames)
    levels = None if source is None else measure_levels(source)
    return list(deflicker(frames, found, aimed_levels(found, options, cuts, levels), options))


def brightness(frames):
    return [f.mean().item() for f in frames]


def test_levels_by_hand():
    frame = torch.tensor([0.0, 1.0, 0.0, 1.0]).view(1, 2, 2).expand(3, 2, 2)
    found = measure_levels([frame])
    assert torch.equal(found.mean, torch.full((1, 3), 0.5))
    assert torch.equal(found.deviation, torch.full((1, 3), 0.5))


def test_flicker_falls_by_four_fifths():
    frames = clip(30)
    assert flicker(brightness(evened(frames))) <= 0.2 * flicker(brightness(frames))


def test_a_steady_fade_and_a_steady_clip_stay_as_they_are():
    values = torch.linspace(0.2, 0.7, 15)[:, None].expand(15, 3)
    assert torch.allclose(smooth_course(values, 5), values, atol=1e-6)
    still = clip(6, noise=0.0)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(evened(still), still, strict=True))


def test_shots_do_not_mix():
    dark, light = clip(8, 1), [f + 0.2 for f in clip(8, 2)]
    both = evened([*dark, *light], cuts=[8])
    apart = [*evened(dark), *evened(light)]
    assert all(torch.allclose(a, b) for a, b in zip(both, apart, strict=True))


def test_a_light_that_the_source_shows_stays():
    steps = [0.0] * 5 + [0.2] * 5
    source = [f + s for f, s in zip(clip(10, 3, 0.0), steps, strict=True)]
    drawn = [f + s for f, s in zip(clip(10, 3, 0.02), steps, strict=True)]
    with_source = torch.tensor(brightness(evened(drawn, source=source)))
    assert (with_source[5] - with_source[4]).item() == pytest.approx(0.2, abs=0.02)
    alone = torch.tensor(brightness(evened(drawn)))
    assert alone[5] - alone[4] < 0.1


def test_no_strength_and_single_frames_change_nothing():
    frames = clip(3)
    assert all(a is b for a, b in zip(evened(frames, DeflickerOptions(strength=0)), frames, strict=True))
    assert torch.allclose(evened(frames[:1])[0], frames[0], atol=1e-6)


def test_a_flat_frame_stays_finite():
    frames = [*clip(4), torch.ones(3, 16, 16)]
    assert all(f.isfinite().all() for f in evened(frames))


def test_no_frames_and_another_length_are_told():
    with pytest.raises(AtelierError, match="no frames"):
        measure_levels([])
    with pytest.raises(AtelierError, match="one length"):
        evened(clip(3), source=clip(2))
