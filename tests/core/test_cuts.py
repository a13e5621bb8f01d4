"""Cuts and repeats: by hand, and on fifty edits between and within photographs that move, flicker and are noisy."""

import math
import random

import pytest
import torch

from flux_atelier.core.frames.cuts import (
    Change,
    change_between,
    colour_change,
    is_cut,
    is_repeat,
    pattern_change,
    thumbnail,
)
from flux_atelier.trainer.nano import photos

NAMES = (
    "astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "hubble_deep_field", "retina", "ihc", "camera",
    "moon", "coins", "brick", "grass", "gravel",
)  # fmt: skip


def photo(name):
    image = photos.photograph(name).resize((256, 160))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(160, 256, 3).permute(2, 0, 1) / 255


def seen(picture, across, down, turn):
    """A frame of 128 x 72 from the picture's middle, moved by pixels and turned by radians."""
    c, s = math.cos(turn) * 0.5, math.sin(turn) * 0.5
    matrix = torch.tensor([[[c, -s * 72 / 128, across / 128], [s * 128 / 72, c * 0.9, down / 80]]])
    grid = torch.nn.functional.affine_grid(matrix, (1, 3, 72, 128), align_corners=False)
    return torch.nn.functional.grid_sample(picture[None], grid, padding_mode="reflection", align_corners=False)[0]


def edits(count, seed):
    """(thumbnails, place of the cut): two shots of three frames each; every fifth cut stays within one photograph."""
    rng, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    pictures = {name: photo(name) for name in NAMES}
    for number in range(count):
        names = rng.sample(NAMES, 2) if number % 5 else [rng.choice(NAMES[:6])] * 2
        frames = []
        for shot, name in enumerate(names):
            speed, turn = rng.choice((0, 2, 5, 10)), rng.uniform(-0.03, 0.03)
            jump = 60 if shot and names[0] == names[1] else 0
            for t in range(3):
                frame = seen(pictures[name].roll((jump, jump), (1, 2)), speed * t, speed * t / 3, turn * t)
                frame = frame * rng.uniform(0.93, 1.07) + 0.02 * torch.randn(frame.shape, generator=noise)
                frames.append(thumbnail(frame.clamp(0, 1)))
        yield frames


@pytest.mark.parametrize("seed", [1, 2])
def test_cuts_are_found_and_nothing_else(seed):
    right = found = there = 0
    for frames in edits(50, seed):
        for i in range(5):
            cut = change_between(frames[i], frames[i + 1]) is Change.CUT
            there += i == 2
            found += cut
            right += cut and i == 2
    assert there == 50
    assert right / there >= 0.98, (right, there)
    assert right / found >= 0.98, (right, found)


def test_measures_by_hand():
    black, white = torch.zeros(3, 36, 64), torch.ones(3, 36, 64)
    assert colour_change(black, white) == pytest.approx(1)
    assert colour_change(black, black) == pytest.approx(0, abs=1e-6)
    assert pattern_change(black, white) == 0  # neither has a pattern
    stripes = torch.zeros(3, 36, 64)
    stripes[..., ::8] = 1
    assert pattern_change(stripes, stripes.roll(3, 2)) < 0.05  # moved, not changed
    assert pattern_change(stripes, stripes.mT.reshape(3, 64, 36)[:, :36, :].repeat(1, 1, 2)[..., :64]) > 0.2


def test_patterns_by_hand():
    """Squares of light: in another place or light they are the same; another order is another picture."""
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).float().view(1, 6, 10) / 60
    one = thumbnail(order.repeat_interleave(12, 1).repeat_interleave(12, 2))
    other = thumbnail(order.flip(1).flip(2).repeat_interleave(12, 1).repeat_interleave(12, 2))
    assert pattern_change(one, one) == pytest.approx(0, abs=1e-4)
    assert pattern_change(one, one * 0.5 + 0.3) < 0.01
    assert pattern_change(one, one.roll(6, 2)) < 0.1
    assert pattern_change(one, other) > 0.4
    assert pattern_change(one, torch.full_like(one, 0.5)) == pytest.approx(0.5, abs=0.05)  # one of both is explained
    assert is_cut(one, torch.full_like(one, 0.5))


LIGHTS = {
    "a flash": lambda f: f + 0.35,
    "a weaker one": lambda f: f + 0.15,
    "a lamp goes out": lambda f: f * 0.55,
    "a lamp goes on": lambda f: f * 1.5,
    "a fade": lambda f: f * 0.88,
    "another white balance": lambda f: f * torch.tensor([1.08, 1.0, 0.92])[:, None, None],
}


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("name", NAMES[:8])
def test_another_light_is_no_cut(name, light):
    picture = photo(name)
    assert not is_cut(seen(picture, 0, 0, 0), LIGHTS[light](seen(picture, 2, 1, 0.01)).clamp(0, 1))


MOTIONS = {"fast": (16, 6, 0), "turning": (2, 1, 0.12), "both": (8, 3, 0.06)}


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_motion_is_no_cut(name, motion):
    picture = photo(name)
    assert not is_cut(seen(picture, 0, 0, 0), seen(picture, *MOTIONS[motion]))


@pytest.mark.parametrize("step", range(5))
def test_a_fade_and_a_dissolve_are_no_cuts(step):
    """Ten frames from one picture into black, and into another."""
    one, other = seen(photo("astronaut"), 0, 0, 0), seen(photo("coffee"), 0, 0, 0)
    now, then = step / 5, (step + 0.5) / 5
    assert not is_cut(one * (1 - now), one * (1 - then))
    assert not is_cut(torch.lerp(one, other, now), torch.lerp(one, other, then))


@pytest.mark.parametrize(
    "names", [("astronaut", "coffee"), ("chelsea", "rocket"), ("brick", "grass"), ("ihc", "coins")]
)
def test_another_picture_in_the_same_colours_is_a_cut(names):
    one, other = (seen(photo(name), 0, 0, 0) for name in names)
    (deviation, mean), (wanted, middle) = (torch.std_mean(f, (1, 2), keepdim=True) for f in (other, one))
    assert is_cut(one, ((other - mean) / deviation * wanted + middle).clamp(0, 1))


def test_even_frames_are_told_by_their_colours():
    red, blue = (torch.tensor(c)[:, None, None].expand(3, 72, 128) for c in ((0.8, 0.1, 0.1), (0.1, 0.1, 0.8)))
    assert is_cut(red, blue)
    assert not is_cut(red, red * 0.8)
    assert not is_cut(red, red + 0.1)


def test_a_flash_is_no_cut_and_a_step_in_time_is_none():
    picture = photo("coffee")
    assert not is_cut(seen(picture, 0, 0, 0), (seen(picture, 0, 0, 0) + 0.08).clamp(0, 1))
    assert not is_cut(seen(picture, 0, 0, 0), seen(picture, 8, 3, 0.02))
    assert is_cut(seen(picture, 0, 0, 0), seen(photo("grass"), 0, 0, 0))


@pytest.mark.parametrize("shift", [0.0, 0.0019])
def test_repeats_by_hand(shift):
    frame = torch.full((3, 72, 128), 0.5)
    assert is_repeat(frame, frame + shift)
    assert not is_repeat(frame, frame + 0.0021)


def test_a_small_thing_that_moves_is_no_repeat():
    frame = torch.full((3, 72, 128), 0.5)
    moved = frame.clone()
    moved[:, 10:14, 10:14] = 1
    assert (frame - moved).abs().mean() < 0.002
    assert not is_repeat(frame, moved)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 20, 100), (2, 9, 9), (3, 3, 5), (4, 70, 30)])
def test_any_frame_has_a_thumbnail(size):
    frame = torch.rand(size, generator=torch.Generator().manual_seed(0))
    assert thumbnail(frame).shape == (3, 36, 64)
    assert is_repeat(frame, frame)
