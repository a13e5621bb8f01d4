"""The stabiliser under motion that is known to the pixel."""

import pytest
import torch
import torch.nn.functional as F

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.metrics import judge
from flux_atelier.core.frames.stabilise import (
    StabiliseOptions,
    blurred,
    carry_between,
    hold,
    sample,
    stabilise,
    stabilise_between,
)

SIZE, STEP = (96, 128), (2.0, -1.0)


def photograph():
    data = pytest.importorskip("skimage.data")
    return torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1).float() / 255


def moving(count=10):
    """A window that wanders over a photograph, as soft as video is."""
    whole = blurred(F.avg_pool2d(photograph()[None], 2)[0], 0.8)
    return [whole[:, 60 - t : 60 - t + SIZE[0], 40 + 2 * t : 40 + 2 * t + SIZE[1]] for t in range(count)]


def known(first, second):
    """What `moving` does, seen from a frame to the one before it."""
    return torch.tensor(STEP)[:, None, None].expand(2, *first.shape[-2:])


def restyled(frames, seed=0):
    """What image to image does frame by frame: posterised, with a field of colour, strokes and brightness of its own."""
    rng, out = torch.Generator().manual_seed(seed), []
    for frame in frames:
        flat = (blurred(frame, 1.5) * 6).round() / 6
        field = F.interpolate(torch.randn(1, 3, 5, 8, generator=rng), SIZE, mode="bicubic")[0] * 0.05
        strokes = F.avg_pool2d(torch.randn(1, 1, *SIZE, generator=rng), (1, 9), 1, (0, 4))[0] * 0.12
        bright = torch.randn(1, 1, 1, generator=rng) * 0.03
        out.append((flat * 0.8 + frame * 0.2 + field + strokes + bright).clamp(0, 1))
    return out


def test_steadier_by_the_promised_shares_and_as_sharp_as_the_source():
    source = moving(14)
    drawn = restyled(source)
    held = list(stabilise(source, drawn, StabiliseOptions(), known))
    plain, before, after = (judge(source, clip, flow=known) for clip in (source, drawn, held))
    assert after.mean("warping") <= 0.1 * before.mean("warping")
    assert after.flicker <= 0.2 * before.flicker
    assert after.mean("sharpness") >= plain.mean("sharpness")
    assert after.mean("sharpness") >= 0.45 * before.mean("sharpness")


def test_no_strength_is_the_clip_itself():
    source = moving(3)
    drawn = restyled(source)
    assert all(
        a is b for a, b in zip(stabilise(source, drawn, StabiliseOptions(strength=0), known), drawn, strict=True)
    )


def test_a_steady_style_stays_as_it_is():
    source = moving(4)
    held = list(stabilise(source, source, StabiliseOptions(detail=0), known))
    assert (held[3] - source[3])[:, 4:-4, 4:-8].abs().max() < 1e-4


def test_a_reset_takes_the_frame_as_it_comes_and_forgets_the_past():
    source = moving(6)
    drawn = restyled(source)
    held = list(stabilise(source, drawn, flow=known, resets=[3]))
    assert torch.equal(held[3], drawn[3])
    alone = list(stabilise(source[3:], drawn[3:], flow=known))
    assert all(torch.equal(a, b) for a, b in zip(held[3:], alone, strict=True))


def test_wrong_motion_is_not_trusted():
    source = [moving(1)[0], photograph()[:, 300 : 300 + SIZE[0], 300 : 300 + SIZE[1]]]
    drawn = [torch.zeros_like(source[0]), torch.ones_like(source[0])]
    held = list(stabilise(source, drawn, StabiliseOptions(detail=0), known))
    assert held[1].mean() > 0.8


def test_sampling_by_hand():
    frame = torch.arange(20.0).view(1, 4, 5)
    right = torch.tensor([1.0, 0.0])[:, None, None].expand(2, 4, 5)
    assert torch.allclose(sample(frame, right)[0, 0], torch.tensor([1.0, 2, 3, 4, 4]), atol=1e-5)


def test_anchors_stand_and_the_frames_between_come_from_both():
    source = moving(5)
    anchors = {0: source[0] * 0.5, 4: source[4] * 0.5}
    drawn = stabilise_between(source, anchors, lambda a, b: known(a, b) * (1 if _later(source, a, b) else -1))
    assert drawn[0] is anchors[0]
    assert drawn[4] is anchors[4]
    assert (drawn[2] - source[2] * 0.5)[:, 6:-6, 8:-8].abs().max() < 1e-3


def _later(source, a, b):
    places = [next(i for i, s in enumerate(source) if s is f) for f in (a, b)]
    return places[0] > places[1]


def test_nothing_is_carried_over_a_cut():
    source = [torch.full((3, 16, 16), 0.5)] * 4
    still = lambda a, b: torch.zeros(2, 16, 16)  # noqa: E731
    drawn = stabilise_between(source, {0: torch.ones(3, 16, 16)}, still, resets=[2])
    assert torch.allclose(drawn[1], torch.ones(3, 16, 16))
    assert torch.equal(drawn[2], source[2])
    assert torch.equal(drawn[3], source[3])


@pytest.mark.parametrize("lengths", [(3, 2), (2, 3)])
def test_clips_of_two_lengths_are_told(lengths):
    frames = moving(3)
    with pytest.raises(AtelierError, match="one length"):
        list(stabilise(frames[: lengths[0]], frames[: lengths[1]], flow=known))


def test_frames_of_two_sizes_and_strange_anchors_are_told():
    frame = moving(1)[0]
    with pytest.raises(AtelierError, match="one size"):
        list(stabilise([frame], [frame[:, :-1]], flow=known))
    for anchors in ({}, {2: frame}):
        with pytest.raises(AtelierError, match="from 0 to 0"):
            stabilise_between([frame], anchors, known)


def test_the_promised_shares_hold_by_estimated_motion_too():
    source = moving(10)
    drawn = restyled(source, seed=1)
    held = list(stabilise(source, drawn))
    before, after = (judge(source, clip) for clip in (drawn, held))
    assert after.mean("warping") <= 0.1 * before.mean("warping")
    assert after.flicker <= 0.2 * before.flicker
    assert after.mean("sharpness") >= 0.45 * before.mean("sharpness")


def test_a_thing_that_is_drawn_elsewhere_leaves_no_ghost():
    """The drawn square moves, the source's ground does not: what was carried shows something else there."""
    ground = torch.full((3, 32, 48), 0.3)
    drawn = []
    for n in range(6):
        frame = ground.clone()
        frame[:, 8:24, 4 + 5 * n : 20 + 5 * n] = 0.9
        drawn.append(frame)
    held = list(stabilise([ground] * 6, drawn, StabiliseOptions(detail=0), still))
    left = (held[5] - drawn[5])[:, 10:22, :20].abs()
    assert left.max() <= 0.2 * 0.6  # of the contrast; unguarded, nine tenths stay behind
    small = [ground + 0.04 * (n % 2) for n in range(6)]
    even = list(stabilise([ground] * 6, small, StabiliseOptions(detail=0), still))
    assert (even[5] - even[4]).abs().max() < 0.01


def still(first, second):
    return torch.zeros(2, *first.shape[-2:])


def test_a_share_of_what_was_carried_by_hand():
    drawn, carried = torch.full((3, 9, 9), 0.5), torch.full((3, 9, 9), 0.75)
    half = torch.full((1, 9, 9), 0.5)
    # They are OTHER apart: half of the share is left.
    assert torch.allclose(hold(drawn, carried, half), torch.full((3, 9, 9), 0.5 + 0.25 * 0.25), atol=1e-5)
    assert torch.equal(hold(drawn, drawn, half), drawn)


def test_carried_between_is_trusted_as_its_better_side():
    source = [torch.full((3, 16, 16), 0.5)] * 4
    first, last = torch.zeros(3, 16, 16), torch.ones(3, 16, 16)
    between = carry_between(source, {0: first, 3: last}, still)
    assert torch.allclose(between[1][0], torch.full((3, 16, 16), 1 / 3), atol=1e-5)
    assert torch.allclose(between[2][0], torch.full((3, 16, 16), 2 / 3), atol=1e-5)
    assert all(trust.eq(1).all() for _, trust in between)
    alone = carry_between(source, {0: first}, still, resets=[2])
    assert alone[1][1].eq(1).all() and alone[2][1].eq(0).all()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_on_in_single(kind):
    source = moving(3)
    drawn = [frame.to(kind) for frame in restyled(source)]
    known_to_be = list(stabilise(source, [frame.float() for frame in drawn], flow=known))
    for given in (source, [frame.to(kind) for frame in source]):
        held = list(stabilise(given, drawn, flow=known))
        assert all(frame.dtype == torch.float32 and frame.isfinite().all() for frame in held)
        assert all(
            (a - b).abs().max() < 0.15 and (a - b).abs().mean() < 2e-3 for a, b in zip(held, known_to_be, strict=True)
        )


def test_a_value_that_is_no_number_does_not_spread():
    source = moving(4)
    drawn = restyled(source)
    fine = list(stabilise(source, drawn, flow=known))
    for clip in (source, drawn):
        hurt = [frame.clone() for frame in clip]
        hurt[1][0, 40, 60] = float("nan")
        pair = (hurt, drawn) if clip is source else (source, hurt)
        held = list(stabilise(*pair, flow=known))
        assert all(frame.isfinite().all() for frame in held)
        assert (held[3] - fine[3]).abs().mean() < 2e-3


def test_a_source_elsewhere_comes_to_where_the_drawn_clip_is():
    source = moving(2)
    drawn = [torch.empty_like(frame, device="meta") for frame in source]
    held = list(stabilise(source, drawn, flow=lambda a, b: known(a, b).to(a)))
    assert [frame.device.type for frame in held] == ["meta"] * 2
