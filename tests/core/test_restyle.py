"""The restyling loop over a painter that is a formula, so that every law can be checked to the bit."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from flux_atelier.core.evaluation.metrics import judge
from flux_atelier.core.frames.restyle import Canvas, RestyleOptions, restyle, restyle_from
from flux_atelier.core.frames.stabilise import blurred
from flux_atelier.core.frames.warped_noise import warped_noise

SIZE, LATENT, STEP = (48, 64), (4, 6, 8), (2.0, -1.0)
ALONE = RestyleOptions(coherence=0, noise="fixed", steadiness=0, palette=0)


def changed(options, **changes):
    return RestyleOptions(**options.model_dump() | changes)


def moving(count=8, seed=0):
    """A window that wanders over a soft random picture."""
    rng = torch.Generator().manual_seed(seed)
    whole = blurred(torch.rand(3, 90, 120, generator=rng), 2.0)
    whole = ((whole - 0.5) * 4 + 0.5).clamp(0, 1)
    return [whole[:, 20 - t : 20 - t + SIZE[0], 10 + 2 * t : 10 + 2 * t + SIZE[1]] for t in range(count)]


def known(first, second):
    """What `moving` does, seen from a frame to the one before it."""
    return torch.tensor(STEP)[:, None, None].expand(2, *first.shape[-2:])


def still(first, second):
    return torch.zeros(2, *first.shape[-2:])


def strokes(noise):
    """A latent's noise as it would show in the picture."""
    return F.interpolate(noise[None, :3], SIZE, mode="bicubic")[0]


def painted(sketch):
    """Darker and posterised, with strokes that the noise leads."""
    return ((sketch.start * 5).round() / 5 * 0.8 + 0.06 * strokes(sketch.noise)).clamp(0, 1)


class Painter:
    """Paints, and keeps what it was given."""

    def __init__(self, paint=painted):
        self.paint, self.seen = paint, []

    def __call__(self, sketch):
        self.seen.append(sketch)
        return self.paint(sketch)


def run(frames, options, painter=None, flow=known, seed=5):
    painter = painter or Painter()
    return list(restyle(frames, Canvas(painter, LATENT, seed), options, flow)), painter.seen


@pytest.mark.parametrize("noise", ["fixed", "fresh"])
def test_with_nothing_on_it_is_frame_by_frame(noise):
    frames = moving(4)
    drawn, seen = run(frames, changed(ALONE, noise=noise))
    for number, (frame, picture, sketch) in enumerate(zip(frames, drawn, seen, strict=True)):
        seed = 5 + number * (noise == "fresh")
        alone = torch.randn(1, *LATENT, generator=torch.Generator().manual_seed(seed))[0]
        assert torch.equal(sketch.start, frame) and sketch.start is sketch.source
        assert sketch.number == number
        assert torch.equal(sketch.noise, alone)
        assert torch.equal(picture, painted(sketch))


def test_noise_moves_as_the_clips_noise_does():
    frames = moving(5)
    _, seen = run(frames, changed(ALONE, noise="warped"))
    expected = warped_noise(frames, LATENT, 5, known)
    assert all(torch.equal(s.noise, e) for s, e in zip(seen, expected, strict=True))


def test_a_still_clip_starts_from_what_was_drawn_by_its_share():
    frame = moving(1)[0]
    drawn, seen = run([frame, frame], changed(ALONE, coherence=0.75), flow=still)
    assert torch.equal(seen[0].start, frame)
    assert torch.allclose(seen[1].start, 0.25 * frame + 0.75 * drawn[0], atol=1e-5)


def test_it_is_much_steadier_than_frame_by_frame_and_keeps_its_strokes():
    frames = moving(10)
    alone, _ = run(frames, changed(ALONE, noise="fresh"))
    held, _ = run(frames, RestyleOptions())
    before, after = (judge(frames, clip, flow=known) for clip in (alone, held))
    assert after.mean("warping") <= 0.2 * before.mean("warping")
    assert after.mean("sharpness") >= 0.5 * before.mean("sharpness")


def test_a_cut_begins_anew():
    first, second = moving(3), [1 - f.flip(1) * 0.9 for f in moving(3, seed=4)]
    options = RestyleOptions(noise="fixed")
    both, seen = run([*first, *second], options)
    alone, _ = run(second, options)
    assert [s.shot for s in seen] == [0, 0, 0, 1, 1, 1]
    assert torch.equal(seen[3].start, second[0])
    assert all(torch.equal(a, b) for a, b in zip(both[3:], alone, strict=True))
    _, warped = run([*first, *second], RestyleOptions())
    assert abs((warped[2].noise * warped[3].noise).mean()) < 0.25


def test_a_shot_keeps_the_palette_of_its_first_frame():
    frames = moving(6)

    def drifting(sketch):
        return (sketch.source * (0.9 - 0.08 * sketch.number) + 0.03 * sketch.number).clamp(0, 1)

    kept, _ = run(frames, changed(ALONE, palette=1), Painter(drifting))
    wanted = frames[5] * 0.9
    assert (kept[5] - wanted).abs().mean() < 0.02
    lost, _ = run(frames, ALONE, Painter(drifting))
    assert (lost[5] - wanted).abs().mean() > 0.06


def test_a_shot_that_fades_in_takes_its_palette_from_the_first_frame_with_colours():
    frame = moving(1)[0]
    frames = [torch.zeros_like(frame), frame * 0.02, frame * 0.1, frame * 0.2]
    drawn, _ = run(frames, changed(ALONE, palette=1), Painter(lambda s: s.source * 0.5), flow=still)
    assert (drawn[3] - frame * 0.1).abs().max() < 0.02


def test_anchors_are_drawn_from_their_source_and_the_others_from_both_sides():
    frames = [moving(1)[0]] * 6
    drawn, seen = run(frames, changed(ALONE, coherence=1, anchor_every=3), flow=still)
    order = [s.number for s in seen]
    assert order == [0, 3, 1, 2, 5, 4]
    assert len(drawn) == 6
    for sketch in seen:
        if sketch.number in (0, 3, 5):
            assert torch.equal(sketch.start, frames[0])
    first, last = drawn[0], drawn[3]
    assert torch.allclose(seen[2].start, (2 * first + last) / 3, atol=1e-4)
    assert torch.allclose(seen[3].start, (first + 2 * last) / 3, atol=1e-4)


def test_anchors_hold_as_well_and_stop_at_cuts():
    frames = moving(9)
    alone, _ = run(frames, changed(ALONE, noise="fresh"))
    held, _ = run(frames, RestyleOptions(anchor_every=4))
    before, after = (judge(frames, clip, flow=_either_way).mean("warping") for clip in (alone, held))
    assert after <= 0.25 * before
    second = [1 - f.flip(1) * 0.9 for f in moving(3, seed=4)]
    both, seen = run([*frames[:4], *second], RestyleOptions(anchor_every=8, noise="fixed"))
    again, _ = run(second, RestyleOptions(anchor_every=8, noise="fixed"))
    assert all(torch.equal(a, b) for a, b in zip(both[4:], again, strict=True))
    assert {s.shot for s in seen if s.number >= 4} == {1}


def _either_way(first, second):
    return known(first, second)


@pytest.mark.parametrize("anchor_every", [0, 3])
def test_going_on_from_a_memory_is_as_if_never_left(anchor_every):
    frames = [*moving(5), *[1 - f.flip(1) * 0.9 for f in moving(4, seed=4)]]
    options = RestyleOptions(anchor_every=anchor_every)
    canvas = Canvas(painted, LATENT, 5)
    whole = list(restyle_from(None, frames, canvas, options, known))
    assert len(whole) == len(frames)
    places = [n for n, step in enumerate(whole) if step.memory]
    assert places[0] == 0 and places[-1] == len(frames) - 1
    assert (len(places) == len(frames)) is (anchor_every == 0)
    for place in places:
        assert whole[place].memory.number == place
        rest = list(restyle_from(whole[place].memory, frames[place + 1 :], canvas, options, known))
        for a, b in zip(rest, whole[place + 1 :], strict=True):
            assert torch.equal(a.picture, b.picture)


def test_it_holds_no_more_frames_than_it_says():
    """Frames are asked for one at a time, and given before the next is asked for."""
    asked = []

    def source():
        for number, frame in enumerate(moving(4)):
            asked.append(number)
            yield frame

    given = []
    for number, _ in enumerate(restyle(source(), Canvas(painted, LATENT), RestyleOptions(), known)):
        given.append((number, len(asked)))
    assert all(count == number + 1 for number, count in given)
    assert all(b[1] - a[1] == 1 for a, b in pairwise(given))


def test_no_frames_give_no_frames():
    assert run([], RestyleOptions())[0] == []
    assert run([], RestyleOptions(anchor_every=3))[0] == []


@pytest.mark.parametrize("anchor_every", [0, 2])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_on_in_single(kind, anchor_every):
    frames = [frame.to(kind) for frame in moving(4)]
    options = RestyleOptions(anchor_every=anchor_every)
    drawn, _ = run(frames, options, Painter(lambda sketch: painted(sketch).to(kind)))
    single, _ = run([frame.float() for frame in frames], options, Painter(lambda s: painted(s).to(kind).float()))
    assert all(frame.dtype == torch.float32 for frame in drawn)
    assert all(torch.equal(a, b) for a, b in zip(drawn, single, strict=True))


@pytest.mark.parametrize("anchor_every", [0, 2])
def test_a_value_that_is_no_number_does_not_spread(anchor_every):
    frames = moving(5)
    options = RestyleOptions(anchor_every=anchor_every)
    hurt = [frame.clone() for frame in frames]
    hurt[1][0, 20, 30] = float("nan")
    drawn, _ = run(hurt, options)
    assert all(frame.isfinite().all() for frame in drawn)

    def failing(sketch):
        picture = painted(sketch)
        if sketch.number == 2:
            picture[1, 10, 10] = float("inf")
            picture[1, 20, 20] = float("nan")
        return picture

    drawn, _ = run(frames, options, Painter(failing))
    assert all(frame.isfinite().all() for frame in drawn)


def test_what_is_drawn_elsewhere_comes_to_where_the_frames_are(monkeypatch):
    monkeypatch.setattr("flux_atelier.core.frames.restyle.is_cut", lambda first, second: False)
    frames = [torch.empty_like(frame, device="meta") for frame in moving(3)]
    options = RestyleOptions(noise="fixed", palette=0)
    drawn, _ = run(frames, options, Painter(lambda s: torch.zeros(3, *SIZE)), lambda a, b: known(a, b).to(a))
    assert [frame.device.type for frame in drawn] == ["meta"] * 3
