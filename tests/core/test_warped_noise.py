"""Warped noise under known motion: it follows, it is white, and what is new is only what was uncovered."""

from itertools import pairwise

import pytest
import torch

from flux_atelier.core.frames.warped_noise import carry_noise, cells_of, fresh_noise, summed, warped_noise

SIZE = 16, 32, 48


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shift(x, y, height=SIZE[1], width=SIZE[2]):
    return torch.tensor([x, y])[:, None, None].expand(2, height, width)


def zoom(factor, height=SIZE[1], width=SIZE[2]):
    """Motion from a frame to the one before it, when things grow by a factor around the middle."""
    y = torch.arange(height).float()[:, None].expand(height, width) - height / 2
    x = torch.arange(width).float()[None].expand(height, width) - width / 2
    return torch.stack([x, y]) * (1 / factor - 1)


def carried(motion, steps, seed=0, known=None):
    rng = generator(seed)
    fields = [fresh_noise(*SIZE, rng)]
    known = torch.ones(SIZE[1:], dtype=torch.bool) if known is None else known
    for _ in range(steps):
        fields.append(carry_noise(fields[-1], motion, known, rng))
    return [f.values for f in fields]


def correlation(a, b):
    return ((a * b).mean() / (a.std() * b.std())).item()


def followed(now, before, motion):
    """The noise before, at the one of the four cells around a motion's end that is likest: a value cannot sit between."""
    height, width = now.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    found = []
    for right in (0, 1):
        for down in (0, 1):
            at_x = ((x + motion[0]).floor().long() + right).clamp(0, width - 1)
            at_y = ((y + motion[1]).floor().long() + down).clamp(0, height - 1)
            found.append(before[:, at_y, at_x])
    choice = torch.stack([(now * f).sum(0) for f in found]).argmax(0)
    return torch.stack(found).gather(0, choice.expand(1, *now.shape))[0]


def assert_white(noise):
    whole = torch.stack(list(noise)).double()
    assert abs(whole.std() - 1) <= 0.01
    assert abs(((whole - whole.mean()) / whole.std()).pow(4).mean() - 3) <= 0.1
    assert abs(correlation(whole[..., 1:], whole[..., :-1])) <= 0.02
    assert abs(correlation(whole[..., 1:, :], whole[..., :-1, :])) <= 0.02


def test_whole_steps_move_it_exactly_and_only_the_edge_is_new():
    first, second = carried(shift(2.0, -1.0), 1)
    assert torch.equal(second[:, 1:, :-2], first[:, :-1, 2:])
    assert abs(correlation(second[:, :, -2:], first[:, :, -2:])) < 0.1


def test_slow_motion_adds_up():
    noise = carried(shift(0.3, 0.0), 10)
    assert torch.equal(noise[10][:, :, :-3], noise[0][:, :, 3:])


def test_it_stays_white_and_follows_where_things_come_nearer_and_go_away():
    for factor in (1.03, 0.97):
        noise = carried(zoom(factor), 12)
        assert_white(noise)
        for before, now in pairwise(noise):
            assert correlation(now, followed(now, before, zoom(factor))) >= 0.7
        stranger = torch.randn(noise[0].shape, generator=generator(9))
        assert correlation(now, followed(now, stranger, zoom(factor))) < 0.4


def test_what_was_hidden_gets_new_noise_and_nothing_else_does():
    known = torch.ones(SIZE[1:], dtype=torch.bool)
    known[8:16, 8:16] = False
    first, second = carried(shift(0.0, 0.0), 1, known=known)
    assert torch.equal(second[:, known], first[:, known])
    assert abs(correlation(second[:, ~known], first[:, ~known])) < 0.1


def test_a_whole_clip_by_its_flow():
    frames = [torch.rand(3, 64, 96, generator=generator(1)).roll(2 * t, 2) for t in range(8)]
    motion = lambda a, b: torch.tensor([-2.0, 0.0])[:, None, None].expand(2, 64, 96)  # noqa: E731
    noise = list(warped_noise(frames, SIZE, 5, motion))
    assert_white(noise)
    for before, now in pairwise(noise):
        assert correlation(now[..., 1:], before[..., :-1]) >= 0.7
    again = list(warped_noise(frames, SIZE, 5, motion))
    assert all(torch.equal(a, b) for a, b in zip(noise, again, strict=True))
    other = next(warped_noise(frames, SIZE, 6, motion))
    assert abs(correlation(noise[0], other)) < 0.05


def test_a_cut_brings_new_noise():
    frames = [torch.full((3, 64, 96), 0.5)] * 3
    still = lambda a, b: torch.zeros(2, 64, 96)  # noqa: E731
    noise = list(warped_noise(frames, SIZE, 0, still, cuts=[2]))
    assert torch.equal(noise[0], noise[1])
    assert abs(correlation(noise[1], noise[2])) < 0.05


def test_a_finer_grid_glides():
    frames = [torch.full((3, 64, 96), 0.5)] * 2
    motion = lambda a, b: torch.tensor([1.0, 0.0])[:, None, None].expand(2, 64, 96)  # noqa: E731
    before, now = warped_noise(frames, SIZE, 0, motion, finer=2)
    assert_white([before, now])
    mixed = before[..., :-1] + before[..., 1:]
    assert 0.65 < correlation(now[..., :-1], mixed) < 0.75  # half of the cells of either, and new partners


def test_cells_and_sums_by_hand():
    motion = cells_of(torch.tensor([8.0, -16.0])[:, None, None].expand(2, 64, 96), (8, 12))
    assert torch.allclose(motion, torch.tensor([1.0, -2.0])[:, None, None].expand(2, 8, 12))
    assert summed(torch.ones(1, 4, 4), 2).eq(2).all()


def test_by_estimated_motion_it_is_white_and_follows_a_photograph():
    """A window that wanders over a photograph; the motion is found, not told."""
    data = pytest.importorskip("skimage.data")
    whole = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1).float()[:, ::2, ::2] / 255
    frames = [whole[:, 60 - 2 * t : 188 - 2 * t, 20 + 4 * t : 212 + 4 * t] for t in range(7)]
    noise = list(warped_noise(frames, (16, 16, 24), 3))
    assert abs(torch.stack(noise).std() - 1) <= 0.01
    assert abs(correlation(torch.stack(noise)[..., 1:], torch.stack(noise)[..., :-1])) <= 0.02
    motion = shift(0.5, -0.25, 16, 24)
    for before, now in pairwise(noise):
        assert correlation(now[:, 1:, :-1], followed(now, before, motion)[:, 1:, :-1]) >= 0.7
