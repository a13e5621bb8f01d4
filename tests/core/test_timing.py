"""Which source frames make which output frames: by hand, as laws, and on frames that were drawn on twos."""

from fractions import Fraction as F

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.frames.cuts import Change
from flux_atelier.core.frames.interpolate import RetimeOptions, blend, flow_between, retime
from flux_atelier.core.frames.timing import (
    even_stamps,
    frame_count,
    instants,
    loop_rate,
    parse_rate,
    schedule,
)
from flux_atelier.trainer.demo.pictures import moving_clip

NTSC = F(1000, 1001)


def plan(frames, source, target, cuts=(), repeats=(), longest=0):
    """(first, second, time) of every output frame, where frames are their numbers."""

    def change(first, second):
        return Change.CUT if second in cuts else Change.REPEAT if second in repeats else Change.MOTION

    stamped = even_stamps(range(frames), F(source))
    found = list(schedule(stamped, F(target), 1 / F(source), change, longest))
    assert [w.number for w in found] == list(range(len(found)))
    return [(w.first, w.second, w.time) for w in found]


def test_two_and_a_half_times_by_hand():
    assert plan(3, 24, 60) == [
        (0, 1, 0),
        (0, 1, F(2, 5)),
        (0, 1, F(4, 5)),
        (1, 2, F(1, 5)),
        (1, 2, F(3, 5)),
        (2, 2, 0),
        (2, 2, 0),
        (2, 2, 0),
    ]


def test_fewer_frames_by_hand():
    assert plan(5, 30, 24) == [(0, 1, 0), (1, 2, F(1, 4)), (2, 3, F(1, 2)), (3, 4, F(3, 4))]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (F(24), F(60)),
        (24 * NTSC, 60 * NTSC),
        (F(30), F(24)),
        (F(12), F(24)),
        (F(25), F(24) * NTSC),
        (F(16), F(16)),
        (F(24), F(1)),
    ],
)
@pytest.mark.parametrize("frames", [1, 2, 7, 48, 101])
def test_times_are_exact_and_the_length_stays(frames, source, target):
    found = plan(frames, source, target)
    assert len(found) == frame_count(frames, source, target)
    assert 0 <= len(found) / target - frames / source < 1 / target
    for k, (first, second, time) in enumerate(found):
        meant = (first + time * (second - first)) / source
        if k / target <= (frames - 1) / source:
            assert meant == k / target  # no rounding anywhere
        else:
            assert (first, second) == (frames - 1, frames - 1)


def test_a_cut_is_held_until_it_comes():
    found = plan(4, 10, 40, cuts=(2,))
    assert found[4:8] == [(1, 1, 0)] * 4
    assert found[8:10] == [(2, 3, 0), (2, 3, F(1, 4))]
    assert len(found) == 16


def test_frames_on_twos_move_evenly():
    found = plan(6, 24, 24, repeats=(1, 3, 5), longest=3)
    assert found == [(0, 2, 0), (0, 2, F(1, 2)), (2, 4, 0), (2, 4, F(1, 2)), (4, 4, 0), (4, 4, 0)]
    assert plan(6, 24, 24, repeats=(1, 3, 5)) == [(i, min(i + 1, 5), 0) for i in range(6)]


def test_a_pause_stays_a_pause():
    found = plan(7, 24, 48, repeats=(1, 2, 3, 4, 5), longest=3)
    assert found[:10] == [(0, 0, 0)] * 10
    assert found[10:12] == [(5, 6, 0), (5, 6, F(1, 2))]


def test_a_repeat_before_a_cut_is_held():
    assert plan(4, 24, 24, cuts=(2,), repeats=(1,), longest=3)[:3] == [(0, 0, 0), (0, 0, 0), (2, 3, 0)]


def test_uneven_times_are_kept():
    stamped = [(F(5), "a"), (F(5) + F(1, 10), "b"), (F(5) + F(1, 2), "c")]
    found = list(schedule(stamped, F(20), F(1, 10), lambda *_: Change.MOTION))
    assert [(w.first, w.time) for w in found[:4]] == [("a", 0), ("a", F(1, 2)), ("b", 0), ("b", F(1, 8))]
    assert len(found) == 12


def test_time_that_does_not_go_on_is_told():
    with pytest.raises(AtelierError, match="not after the one before"):
        list(schedule([(F(0), 0), (F(1), 1), (F(1), 2)], F(2), F(1), lambda *_: Change.MOTION))


def test_instants_stay_below_the_stop():
    assert list(instants(F(0), F(1), F(2))) == [(0, 0), (1, F(1, 2))]
    assert list(instants(F(1, 3), F(2, 3), F(2))) == [(1, F(1, 2))]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("60", F(60)),
        ("59.94", F(60000, 1001)),
        ("23.976", F(24000, 1001)),
        ("23.98", F(24000, 1001)),
        ("12.5", F(25, 2)),
        ("60000/1001", F(60000, 1001)),
        ("2x", F(48)),
        ("2.5X", F(60)),
        ("23.976023976023978", F(24000, 1001)),
        ("29.97003", F(30000, 1001)),
        ("59.940001", F(60000, 1001)),
        ("12.3456", F("12.3456")),
        ("60.0", F(60)),
    ],
)
def test_rates_as_people_write_them(text, rate):
    assert parse_rate(text, F(24)) == rate


@pytest.mark.parametrize(
    "text",
    ["", "fast", "0", "-3", "1/0", "x", "5000", "1e2", "1e9999999999", "2e9999999999x", "1/" + "3" * 40, "inf", "nan"],
)
def test_what_is_no_rate_is_told(text):
    with pytest.raises(AtelierError, match=r"is no frame rate up to 1000.* or 2x\."):
        parse_rate(text, F(24))


def test_twice_of_nothing_is_no_rate():
    with pytest.raises(AtelierError, match=r"'2x' is no frame rate.* 60000/1001\."):
        parse_rate("2x")


@pytest.mark.parametrize(("frames", "target", "count"), [(4, 60, 10), (5, 60, 12), (3, 24, 3), (1, 12, 1)])
def test_a_loop_has_no_seam(frames, target, count):
    """On a value that runs around, every step of the result is as long as every other, over the seam too."""
    assert frame_count(frames, F(24), F(target), loop=True) == count
    phase = torch.arange(frames) / frames
    given = [torch.full((1, 8, 8), float(p)) for p in phase]

    def around(first, second, time):
        a, b = first[0, 0, 0].item(), second[0, 0, 0].item()
        return torch.full_like(first, (a + time * ((b - a) % 1)) % 1)

    made = list(retime(given, (F(24), F(target)), around, RetimeOptions(hold_cuts=False), loop=True))
    assert len(made) == count
    values = [m[0, 0, 0].item() for m in made]
    steps = [(b - a) % 1 for a, b in zip(values, values[1:] + values[:1], strict=True)]
    assert all(abs(s % 1 - 1 / count % 1) < 1e-5 for s in steps)
    assert loop_rate(frames, F(24), F(target)) * frames / F(24) == count


@pytest.mark.parametrize(("source", "target"), [(F(24), F(60)), (F(30), F(24))])
def test_retimed_frames_are_those_of_the_plan(source, target):
    ramp = [torch.full((3, 8, 8), i / 20) for i in range(9)]
    made = list(retime(ramp, (source, target), blend, RetimeOptions(longest_repeat=0)))
    assert len(made) == frame_count(9, source, target)
    for k, frame in enumerate(made):
        assert abs(frame[0, 0, 0].item() - min(k / target * source / 20, F(8, 20))) < 1e-6


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("channels", [2, 4])
def test_an_edge_that_moves_is_no_repeat(value, channels):
    """Colours that stay the same everywhere, and a hole in them that moves."""
    frames = torch.full((2, channels, 32, 32), value)
    frames[:, -1] = 0
    frames[0, -1, 8:24, 4:16] = frames[1, -1, 8:24, 6:18] = 1
    made = list(retime(frames, (F(24), F(48)), blend))
    assert made[1][-1, 16, 5] == 0.5
    assert torch.allclose(made[1][:-1], frames[0, :-1])


def test_a_clip_on_twos_comes_nearer_to_the_true_one():
    """Repeats taken as motion beat repeats taken as they are by far more than the 3 dB that are asked."""
    true = moving_clip(9, side=96)
    twos = [true[i - i % 2] for i in range(9)]

    def worth(longest):
        made = list(retime(twos, (F(24), F(24)), flow_between(), RetimeOptions(longest_repeat=longest)))
        assert len(made) == 9
        return -10 * (torch.stack(made) - true).square().mean().log10()

    assert worth(3) > worth(0) + 3
