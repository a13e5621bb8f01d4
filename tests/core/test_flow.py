"""Motion and the frame between: by hand, on pictures under known motion, with true occlusion, and on what is no motion."""

import math

import pytest
import torch

from flux_atelier.core.frames.flow import best_flow, both_ways, dis_flow, lucas_kanade, luma, warp
from flux_atelier.core.frames.interpolate import RetimeOptions, blend, flow_between, flow_synthesis, interpolate, retime
from flux_atelier.core.frames.synthesis import fill, safe_frame, splat, synthesize
from flux_atelier.trainer.nano import photos

FLOWS = [dis_flow, lucas_kanade]
HIGH, WIDE = 128, 160


def photo(name):
    image = photos.photograph(name).resize((2 * WIDE, 2 * HIGH))
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .view(2 * HIGH, 2 * WIDE, 3)
        .permute(2, 0, 1)
        .float()
        / 255
    )


def moved(picture, motion, time):
    """A frame of 160 x 128 from a picture's middle; motion: pixels right and down, radians, zoom, per unit of time."""
    across, down, turn, zoom = motion
    c, s = math.cos(turn * time) * zoom**time, math.sin(turn * time) * zoom**time
    y, x = torch.meshgrid(torch.arange(HIGH) - HIGH / 2 + 0.5, torch.arange(WIDE) - WIDE / 2 + 0.5, indexing="ij")
    places = torch.stack([(c * x - s * y - across * time) / WIDE, (s * x + c * y - down * time) / HIGH], -1)
    grid = places * 1.2  # the picture is sampled a little below its own size
    return torch.nn.functional.grid_sample(picture[None], grid[None], align_corners=False, padding_mode="reflection")[0]


def triplet(picture, motion):
    return tuple(moved(picture, motion, t) for t in (-0.5, 0, 0.5))


def occlusion():
    """A disc with a picture of its own that runs over a ground running the other way."""
    ground, front = photo("coffee"), photo("astronaut")
    y, x = torch.meshgrid(torch.arange(HIGH).float(), torch.arange(WIDE).float(), indexing="ij")
    for t in (-0.5, 0, 0.5):
        inside = (30.5 - ((x - 80 - 12 * t) ** 2 + (y - 64 + 5 * t) ** 2).sqrt()).clamp(0, 1)
        yield torch.lerp(moved(ground, (-4, 2, 0, 1), t), moved(front, (12, -5, 0, 1), t), inside)


def psnr(a, b):
    return min(50.0, -10 * (a - b).square().mean().clamp(min=1e-9).log10().item())


AFFINE = [("astronaut", (5, 2, 0, 1)), ("chelsea", (0, 0, 0.06, 1)), ("coffee", (-6, 3, 0.02, 1.03))]


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("fallback", [False, True])
def test_known_motion(flow, fallback):
    gains, ours = [], []
    for name, motion in AFFINE:
        first, middle, second = triplet(photo(name), motion)
        ours.append(psnr(flow_between(flow, fallback)(first, second, 0.5), middle))
        gains.append(ours[-1] - psnr(blend(first, second, 0.5), middle))
    assert sum(ours) / 3 >= 33
    assert min(gains) >= 6, gains


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("fallback", [False, True])
def test_true_occlusion(flow, fallback):
    first, middle, second = occlusion()
    made = psnr(flow_between(flow, fallback)(first, second, 0.5), middle)
    assert made >= 29
    assert made >= psnr(blend(first, second, 0.5), middle) + 6


def hard():
    """Name, first, middle and second of what motion explains badly or not at all."""
    rng = torch.Generator().manual_seed(0)
    one, two = photo("astronaut"), photo("coffee")
    still, other = moved(one, (0, 0, 0, 1), 0), moved(two, (0, 0, 0, 1), 0)
    yield "dissolve", still, (still + other) / 2, other
    yield "far", *triplet(one, (60, -20, 0, 1))
    yield "turn", *triplet(two, (0, 0, 0.6, 1))
    yield "noise", *(f + 0.08 * torch.randn(f.shape, generator=rng) for f in triplet(one, (3, 1, 0, 1)))
    yield "flicker", *(f * (1 + g) for f, g in zip(triplet(two, (3, 1, 0, 1)), (-0.2, 0, 0.2), strict=True))
    lights = zip(triplet(one, (5, 0, 0, 1)), triplet(two, (-5, 2, 0, 1)), strict=True)
    yield "glass", *((a + b) / 2 for a, b in lights)
    yield "random", *torch.rand(3, 3, HIGH, WIDE, generator=rng)


@pytest.mark.parametrize("flow", FLOWS)
def test_the_fallback_is_never_worse_than_mixing(flow):
    lost = {
        name: psnr(flow_between(flow, True)(a, b, 0.5).clamp(0, 1), m.clamp(0, 1))
        - psnr(blend(a, b, 0.5), m.clamp(0, 1))
        for name, a, m, b in ((n, *(f.clamp(0, 1) for f in frames)) for n, *frames in hard())
    }
    assert min(lost.values()) >= -0.3, lost


def test_confidence_tells_motion_from_a_dissolve():
    make = flow_synthesis(lucas_kanade)
    first, _, second = triplet(photo("astronaut"), (5, 2, 0, 1))
    assert make(first, second, 0.5).confidence.mean() > 0.8
    made = make(first, photo("coffee")[:, :HIGH, :WIDE].contiguous(), 0.5)
    assert made.confidence.mean() < 0.1
    assert made.confidence.shape == (1, HIGH, WIDE)


def test_no_confidence_is_the_mix_and_full_confidence_the_frame():
    from flux_atelier.core.frames.synthesis import Synthesis

    first, second, frame = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for trust, wanted in ((0.0, torch.lerp(first, second, 0.3)), (1.0, frame)):
        made = safe_frame(Synthesis(frame, torch.full((1, 4, 5), trust)), first, second, 0.3)
        assert torch.allclose(made, wanted, atol=1e-6)


def test_splat_by_hand():
    values = torch.tensor([[[1.0, 2.0, 3.0]]])
    flow = torch.zeros(2, 1, 3)
    flow[0] = torch.tensor([1.0, 0.0, 5.0])  # onto the second; stays; leaves the frame
    mean, landed = splat(values, flow)
    assert landed.tolist() == [[[0.0, 2.0, 0.0]]]
    assert mean.tolist() == [[[0.0, 1.5, 0.0]]]
    flow[0] = 0.25
    mean, landed = splat(values, flow)
    assert torch.allclose(landed, torch.tensor([[[0.75, 1.0, 1.0]]]))
    assert torch.allclose(mean, torch.tensor([[[1.0, 1.75, 2.75]]]))


def test_fill_by_hand():
    motion = torch.tensor([[[1.0, 9.0], [9.0, 3.0]]]).expand(2, 2, 2)
    known = torch.tensor([[[True, False], [False, True]]])
    filled = fill(motion.repeat(1, 2, 2), known.repeat(1, 2, 2))
    assert filled[0, :2, :2].tolist() == [[1.0, 2.0], [2.0, 3.0]]


def test_synthesis_at_both_ends_is_the_given_frame():
    first, _, second = triplet(photo("astronaut"), (4, 1, 0, 1))
    flows = both_ways(lucas_kanade, first, second)
    assert psnr(synthesize(first, second, flows, 0.0).frame, first) > 45
    assert psnr(synthesize(first, second, flows, 1.0).frame, second) > 45


@pytest.mark.parametrize("flow", FLOWS)
def test_both_ways_are_both_directions(flow):
    first, _, second = triplet(photo("coffee"), (6, -3, 0, 1))
    forward, backward = both_ways(flow, first, second)
    assert torch.allclose(forward, flow(first, second), atol=1e-4)
    assert torch.allclose(backward, flow(second, first), atol=1e-4)
    assert (forward + backward).flatten(1).median(1).values.abs().max() < 0.2


def test_far_motion_is_found_by_the_search():
    picture = photo("astronaut")
    first, _, second = triplet(picture, (16, 0, 0, 1))
    found = lucas_kanade(first, second)[0, 30:-30, 30:-30].median()
    shift = min(range(5, 40), key=lambda s: (first[:, :, :-s] - second[:, :, s:]).abs().mean())
    assert abs(found - shift) < 1


def test_grey_is_grey_whatever_the_channels():
    frame = torch.rand(1, 6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(luma(frame), frame[0])
    assert torch.allclose(luma(frame.expand(3, -1, -1)), frame[0], atol=1e-6)
    assert torch.equal(luma(torch.cat([frame, frame * 0])), frame[0])


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(20, 100), (1, 1), (3, 5), (17, 33)])
def test_every_frame_is_valid(flow, channels, size):
    frames = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    frames[0, 0, 0, 0], frames[1, 0, -1, -1] = float("nan"), float("inf")
    for given in (frames, frames.bfloat16(), frames.half()):
        made = list(interpolate(given, 2, flow_between(flow, True)))
        assert [m.shape for m in made] == [(channels, *size)] * 3
        assert all(m.dtype == given.dtype and m.isfinite().all() for m in made)
        assert all(m.min() >= 0 and m.max() <= 1 for m in made)


def test_given_frames_are_not_written_into():
    frames = [torch.full((3, 8, 8), float("nan")), torch.rand(3, 8, 8)]
    list(retime(frames, (24, 60), flow_between(), RetimeOptions()))
    assert frames[0].isnan().all()


@pytest.mark.parametrize("flow", FLOWS)
def test_alpha_moves_and_clear_colours_do_not_shine_through(flow):
    """A red disc that runs over clear black: half way it is red to its edge, and half way."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")

    def disc(at):
        alpha = (12.5 - ((x - at) ** 2 + (y - 24) ** 2).sqrt()).clamp(0, 1)
        colour = torch.tensor([1.0, 0, 0])[:, None, None] * (alpha > 0)
        return torch.cat([colour, alpha[None]])

    made = flow_between(flow)(disc(28.0), disc(34.0), 0.5)
    assert psnr(made[3], disc(31.0)[3]) > 25
    seen = made[3] > 0.3
    assert made[0][seen].min() > 0.95
    assert made[1:3].max() < 0.01


def test_the_better_flow_is_the_one_that_is_there(monkeypatch):
    from flux_atelier.core.frames import flow

    monkeypatch.setattr(flow, "find_spec", lambda name: None)
    assert best_flow() is lucas_kanade
    monkeypatch.setattr(flow, "find_spec", lambda name: object())
    assert best_flow() is dis_flow


def test_warp_takes_a_batch():
    frames = torch.arange(24.0).view(2, 1, 3, 4)
    flow = torch.zeros(2, 2, 3, 4)
    flow[1, 1] = 1
    assert torch.allclose(warp(frames, flow)[0], frames[0])
    assert torch.allclose(warp(frames, flow)[1, 0], frames[1, 0, [1, 2, 2]])
