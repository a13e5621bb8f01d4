"""The deflicker, worked by hand and by law."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from test_stream import film, open_files, packets, shown

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.metrics import flicker
from flux_atelier.core.frames.deflicker import (
    DeflickerOptions,
    aimed_levels,
    deflicker,
    deflicker_file,
    measure_levels,
    smooth_course,
)  # fmt: skip
from flux_atelier.core.frames.video import Clip, probe, read_frames, write_video

RATE = Fraction(24)


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


def test_a_film_is_evened_in_two_passes_with_its_sound(tmp_path):
    sounding, source, out = film(tmp_path / "s.mp4", RATE, 16), tmp_path / "a.mp4", tmp_path / "b.mp4"
    dark, light = ([f.repeat_interleave(2, 2) for f in clip(8, seed)] for seed in (1, 2))
    write_video(source, [*dark, *(1 - f for f in light)], RATE, sound=sounding)
    seen = []
    counts = deflicker_file(source, out, DeflickerOptions(window=6), lambda *told: seen.append(told[:2]))
    assert counts == (16, 2)
    assert seen == [(n, 32) for n in range(1, 33)]
    even, rough = ([brightness(read_frames(p))[part] for part in (slice(8), slice(8, 16))] for p in (out, source))
    assert all(flicker(a) <= 0.25 * flicker(b) for a, b in zip(even, rough, strict=True))
    assert packets(out) == packets(source)


@pytest.mark.parametrize("stop_at", [3, 25])
def test_stopping_a_film_leaves_nothing(tmp_path, stop_at):
    source = film(tmp_path / "s.mp4", RATE, 16)

    def stop(done, *_):
        if done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deflicker_file(source, tmp_path / "b.mp4", DeflickerOptions(), stop)
    assert [p.name for p in tmp_path.iterdir()] == ["s.mp4"]


def test_a_film_that_cannot_be_written_is_told(tmp_path):
    source, odd = film(tmp_path / "s.mp4", RATE, 4), film(tmp_path / "s.mkv", RATE, 4, codec="pcm_u8")
    for given, out, words in (
        (source, source, "one of the files"),
        (source, tmp_path / "b.mkv", "another ending"),
        (odd, tmp_path / "b.mp4", "sound of s.mkv. Convert"),
        (tmp_path / "none.mp4", tmp_path / "b.mp4", "none.mp4 cannot be opened as a video"),
        (Path(__file__), tmp_path / "b.mp4", "test_deflicker.py cannot be opened as a video"),
    ):
        with pytest.raises(AtelierError, match=words):
            deflicker_file(given, out, DeflickerOptions(), print)


UNEVEN = [Fraction(n, 1000) for n in (0, 40, 75, 90, 130, 200, 233, 300)]


def evened_file(source, out):
    deflicker_file(source, out, DeflickerOptions(), lambda *_: None)
    return out


def test_a_film_keeps_its_times_and_its_shape(tmp_path):
    """The shape is that of a PAL film in 16:9."""
    like = Clip(16, 16, RATE, 8, start=Fraction(1, 8), aspect=Fraction(64, 45), tick=Fraction(1, 1000))
    source = tmp_path / "a.mp4"
    write_video(source, clip(8), RATE, like=like, stamps=UNEVEN)
    assert shown(source) == [Fraction(1, 8) + t for t in UNEVEN]
    assert probe(source).aspect == Fraction(64, 45)
    out = evened_file(source, tmp_path / "b.mp4")
    assert shown(out) == shown(source)
    assert (probe(out).start, probe(out).aspect) == (Fraction(1, 8), Fraction(64, 45))
    assert shown(evened_file(out, tmp_path / "c.mp4")) == shown(source)


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4"])
def test_sound_stays_with_the_picture(tmp_path, name):
    """The picture begins more than a second behind the sound."""
    source = film(tmp_path / name, RATE, 16, first=30)
    assert probe(source).start > 1
    out = evened_file(source, tmp_path / "b.mp4")
    start = probe(source).start
    assert all(abs(a - start - n / RATE) < Fraction(1, 5000) for n, a in enumerate(shown(out)))
    pairs = zip(packets(source), packets(out), strict=True)
    assert all(abs(a[1] - b[1]) < Fraction(1, 500) for a, b in pairs)


def test_times_that_stand_still_go_on_by_the_finest_step(tmp_path):
    like = Clip(16, 16, RATE, 3, tick=Fraction(1, 1000))
    write_video(tmp_path / "a.mp4", clip(3), RATE, like=like, stamps=[Fraction(0), Fraction(0), Fraction(1, 10)])
    times = shown(tmp_path / "a.mp4")
    assert 0 == times[0] < times[1] < Fraction(1, 1000) and times[2] == Fraction(1, 10)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell what is open")
@pytest.mark.parametrize("stop_at", [3, 25])
def test_a_stopped_film_holds_no_file(tmp_path, stop_at):
    source, held = film(tmp_path / "s.mp4", RATE, 16), None

    def stop(done, *_):
        if done == stop_at:
            raise KeyboardInterrupt

    try:
        deflicker_file(source, tmp_path / "b.mp4", DeflickerOptions(), stop)
    except KeyboardInterrupt:
        held = open_files(tmp_path)  # while the error is on its way, as where a copy of the source is removed
    assert held == []
