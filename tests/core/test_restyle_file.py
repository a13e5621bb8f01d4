"""Restyling from file to file: stopped and gone on with, cut to a part, scaled, beside its sound."""

from contextlib import closing
from fractions import Fraction as F
from pathlib import Path

import pytest
import torch
from test_stream import emptied, film, halved, open_files, packets, shown, with_subtitles

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.frames.restyle import Canvas, RestyleOptions, restyle
from flux_atelier.core.frames.restyle_file import (
    Film,
    FilmOptions,
    canvas_size,
    film_key,
    fitted_frame,
    restyle_file,
)
from flux_atelier.core.frames.stream import Segment, partial_of
from flux_atelier.core.frames.video import open_video, probe, read_frames

RATE = F(24)


class Stop(BaseException):
    """A cancel, as ComfyUI raises it."""


class Painter:
    """Darkens the start and adds the noise's mean; stops before a number of frames is reached."""

    def __init__(self, stop_before=None, error=Stop):
        self.stop_before, self.error, self.numbers = stop_before, error, []

    def __call__(self, sketch):
        if sketch.number == self.stop_before:
            raise self.error
        self.numbers.append(sketch.number)
        return (sketch.start * 0.8 + 0.1 + 0.02 * sketch.noise[:3].mean((1, 2))[:, None, None]).clamp(0, 1)


def canvas(painter=None, source=None, side=0):
    height, width = canvas_size(probe(source), side) if source else (32, 48)
    return Canvas(painter or Painter(), (4, height // 8, width // 8), 3)


def run(source, out, part=None, painter=None, options=None, key="k"):
    part = part or FilmOptions()
    return list(restyle_file(Film(source, out, part, key), canvas(painter, source, part.longest_side), options))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return film(tmp_path_factory.mktemp("film") / "a.mp4", RATE, 30)


def test_it_is_the_loop_over_the_films_frames_with_its_sound(source, tmp_path):
    out = tmp_path / "b.mp4"
    steps = run(source, out)
    assert [s.done for s in steps] == [*range(1, 31), 30]
    assert steps[-1].report.frames == 30
    assert steps[0].total == 30 and steps[0].frame.shape == (3, 32, 48)
    wanted = list(restyle(read_frames(source), canvas(), RestyleOptions()))
    for step, frame, written in zip(steps, wanted, read_frames(out), strict=False):
        assert torch.equal(step.frame, frame)
        assert (written - frame).abs().mean() < 0.02
    assert shown(out) == [n / RATE for n in range(30)]
    assert packets(out) == packets(source)
    assert [p.name for p in tmp_path.iterdir()] == ["b.mp4"]


@pytest.mark.parametrize("anchor_every", [0, 4])
@pytest.mark.parametrize("stop", [5, 14])
def test_a_cancel_leaves_a_film_that_plays_and_the_next_run_goes_on(source, tmp_path, anchor_every, stop):
    options = RestyleOptions(anchor_every=anchor_every)
    out, whole = tmp_path / "b.mp4", tmp_path / "whole.mp4"
    with pytest.raises(Stop):
        run(source, out, painter=Painter(stop), options=options)
    assert not out.exists()
    partial = partial_of(out)
    kept = len(shown(partial))
    assert kept == (stop if not anchor_every else (stop - 1) // anchor_every * anchor_every + 1)
    sound = packets(partial)
    assert sound == packets(source)[: len(sound)]
    assert abs(sound[-1][1] - kept / RATE) < F(1, 15)
    painter = Painter()
    steps = run(source, out, painter=painter, options=options)
    assert steps[0].done == kept and min(painter.numbers) == kept
    unbroken = run(source, whole, options=options)
    by_number = {s.done: s.frame for s in unbroken if s.frame is not None}
    assert all(torch.equal(s.frame, by_number[s.done]) for s in steps if s.frame is not None)
    assert len(shown(out)) == 30 and packets(out) == packets(source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.mp4", "whole.mp4"]


def test_closing_stops_and_another_key_begins_anew(source, tmp_path):
    out = tmp_path / "b.mp4"
    with closing(restyle_file(Film(source, out, FilmOptions(), "one"), canvas())) as steps:
        for step in steps:
            if step.done == 6:
                break
    assert len(shown(partial_of(out))) == 6
    painter = Painter(2)
    with pytest.raises(Stop):
        run(source, out, painter=painter, key="two")
    assert painter.numbers == [0, 1]


def test_a_killed_run_goes_on_behind_its_last_segment(source, tmp_path):
    """What a process leaves that ends at once: whole segments, an unfinished one, a segment newer than the state."""
    out = tmp_path / "b.mp4"
    steps = restyle_file(Film(source, out, FilmOptions(), "k"), canvas())
    while next(steps).done < 20:
        pass
    folder = tmp_path / ".b.mp4.segments"
    saved = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert set(saved) == {"000000000-000000012.mp4", "state.safetensors", "source.txt"}
    steps.close()
    for path in folder.iterdir():
        path.unlink()
    for name, data in saved.items():
        (folder / name).write_bytes(data)
    for left in ("000000012-000000020.mp4", "000000012.part"):
        (folder / left).write_bytes(b"not known to the state")
    painter = Painter()
    run(source, out, painter=painter)
    assert painter.numbers == list(range(12, 30))
    assert len(shown(out)) == 30


def test_an_error_that_is_told_keeps_the_segments(source, tmp_path):
    out = tmp_path / "b.mp4"
    with pytest.raises(AtelierError, match="no memory"):
        run(source, out, painter=Painter(5, AtelierError("There is no memory. Take a smaller size.")))
    assert not partial_of(out).exists()
    painter = Painter()
    run(source, out, painter=painter)
    assert painter.numbers[0] == 5


def test_a_part_of_a_film_has_its_part_of_the_sound(source, tmp_path):
    out = tmp_path / "b.mp4"
    steps = run(source, out, FilmOptions(first_frame=6, frames=12))
    assert steps[0].total == 12
    assert shown(out) == [n / RATE for n in range(12)]
    first = next(iter(read_frames(out)))
    wanted = list(read_frames(source))[6] * 0.8 + 0.1
    assert (first - wanted).abs().mean() < 0.03
    theirs = [data for data, *_ in packets(source)]
    ours = packets(out)
    begin = theirs.index(ours[0][0])
    assert [data for data, *_ in ours] == theirs[begin : begin + len(ours)]
    assert 0 <= ours[0][1] < F(1, 20)
    moved = packets(source)[begin][1] - ours[0][1]
    assert abs(moved - 6 / RATE) < F(1, 1000)
    assert abs(ours[-1][1] - 12 / RATE) < F(1, 15)


def test_a_part_behind_the_end_is_told_and_leaves_nothing(source, tmp_path):
    with pytest.raises(AtelierError, match="no frame 40; it has 30"):
        run(source, tmp_path / "b.mp4", FilmOptions(first_frame=40))
    assert not list(tmp_path.iterdir())


def test_subtitles_and_what_is_said_of_the_film_go_along(source, tmp_path):
    both = with_subtitles(source, tmp_path)
    out = tmp_path / "b.mkv"
    run(both, out, FilmOptions(frames=18))
    assert packets(out, "subtitles") == packets(both, "subtitles")[:1]
    with open_video(out) as container:
        assert container.metadata["title"] == "A film"
        assert container.streams.audio[0].metadata["language"] == "deu"


def test_sizes_by_hand(source, tmp_path):
    clip = probe(source)
    assert canvas_size(clip, 0) == (32, 48)
    assert canvas_size(clip, 60) == (48, 64)
    assert fitted_frame(torch.rand(3, 32, 48), (40, 60)).shape == (3, 48, 64)
    frame = torch.rand(3, 32, 48)
    assert torch.equal(fitted_frame(frame, (32, 48)), frame)
    run(source, tmp_path / "b.mp4", FilmOptions(longest_side=60, frames=3))
    made = probe(tmp_path / "b.mp4")
    assert (made.width, made.height, made.frames) == (60, 40, 3)


def test_the_key_tells_what_differs():
    keys = {film_key("a", FilmOptions(), 1), film_key("b", FilmOptions(), 1), film_key("a", FilmOptions(frames=2), 1)}
    assert len(keys | {film_key("a", FilmOptions(), 2)}) == 4
    assert film_key("a", FilmOptions(), 1) in keys


def test_what_plays_after_a_stop_is_not_the_source(source, tmp_path):
    partial = tmp_path / "b.partial.mp4"
    partial.write_bytes(source.read_bytes())
    with pytest.raises(AtelierError, match="one of the files that are read"):
        run(partial, tmp_path / "b.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["b.partial.mp4"]


@pytest.mark.parametrize("harm", [emptied, halved, Path.unlink])
@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_segment_begins_anew(source, tmp_path, harm, which):
    """The memory lies behind what is left, and there is none for an earlier frame."""
    out = tmp_path / "b.mp4"
    with pytest.raises(Stop):
        run(source, out, painter=Painter(28))
    harm(sorted((tmp_path / ".b.mp4.segments").glob("*.mp4"))[which])
    painter = Painter()
    run(source, out, painter=painter)
    assert painter.numbers == list(range(30))
    assert shown(out) == [n / RATE for n in range(30)]


def test_a_damaged_memory_begins_anew(source, tmp_path):
    out = tmp_path / "b.mp4"
    with pytest.raises(Stop):
        run(source, out, painter=Painter(14))
    halved(tmp_path / ".b.mp4.segments" / "state.safetensors")
    painter = Painter()
    run(source, out, painter=painter)
    assert painter.numbers == list(range(30))
    assert shown(out) == [n / RATE for n in range(30)]


@pytest.mark.parametrize(("stop", "begins"), [(3, 0), (7, 0), (16, 0), (24, 16)])
def test_a_cancel_while_a_span_is_written_goes_on_from_a_frame_that_is_known(
    source, tmp_path, monkeypatch, stop, begins
):
    """Frames between anchors are written together, and only the last of them has a memory."""
    options, out, count = RestyleOptions(anchor_every=5), tmp_path / "b.mp4", 0
    add = Segment.add

    def stopped(segment, frame):
        nonlocal count
        count += 1
        if count == stop:
            raise KeyboardInterrupt
        add(segment, frame)

    monkeypatch.setattr(Segment, "add", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(source, out, options=options)
    monkeypatch.undo()
    painter = Painter()
    steps = run(source, out, painter=painter, options=options)
    assert shown(out) == [n / RATE for n in range(30)]
    assert min(painter.numbers) == begins
    whole = {s.done: s.frame for s in run(source, tmp_path / "c.mp4", options=options) if s.frame is not None}
    assert all(torch.equal(s.frame, whole[s.done]) for s in steps if s.frame is not None)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell what is open")
@pytest.mark.parametrize("error", [Stop, AtelierError])
def test_a_stopped_run_holds_no_file(source, tmp_path, error):
    copy, held = tmp_path / "a.mp4", None
    copy.write_bytes(source.read_bytes())
    try:
        run(copy, tmp_path / "b.mp4", painter=Painter(5, error))
    except error:
        held = open_files(tmp_path)
    assert held == []


def test_a_length_that_matroska_hides_is_told_by_its_seconds(tmp_path):
    a = film(tmp_path / "a.mkv", RATE, 30)
    assert probe(a).frames == 0
    assert run(a, tmp_path / "b.mkv")[0].total in range(29, 33)
    assert run(a, tmp_path / "c.mkv", FilmOptions(first_frame=10))[0].total in range(19, 23)
    assert run(a, tmp_path / "d.mkv", FilmOptions(frames=4))[0].total == 4
    with pytest.raises(AtelierError, match=r"no frame 100; it has about (29|3\d)\."):
        run(a, tmp_path / "e.mkv", FilmOptions(first_frame=100))
