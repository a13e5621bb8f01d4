"""Video file to video file: exact times, sound bit for bit, stopping, going on, and what a container cannot hold."""

import os
from contextlib import closing
from fractions import Fraction as F
from pathlib import Path

import numpy as np
import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.frames.interpolate import blend
from flux_atelier.core.frames.stream import (
    Report,
    StreamOptions,
    partial_of,
    retime_file,
    run_key,
    source_key,
)
from flux_atelier.core.frames.timing import frame_count
from flux_atelier.core.frames.video import on_grid, probe, read_frames

RATE, SOUND = F(24), 48000
SHORT = StreamOptions(segment=20)


SUBTITLES = "1\n00:00:00,100 --> 00:00:00,700\nHello\n\n2\n00:00:00,800 --> 00:00:01,100\nBye\n"


def film(path, rate=RATE, frames=30, first=0, codec="aac"):
    """A pattern that runs to the right, with a tone beside it; `first` frames late."""
    import av

    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("libx264", rate=rate), out.add_stream(codec, rate=SOUND, layout="mono")
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        out.metadata["title"], audio.metadata["language"] = "A film", "deu"
        down, across = np.mgrid[:32, :48]
        for i in range(frames):
            value = 128 + 100 * np.sin((across + 2 * i) / 9) * np.sin(down / 7)
            frame = av.VideoFrame.from_ndarray(np.stack([value.astype(np.uint8)] * 3, -1), format="rgb24")
            frame.pts, frame.time_base = i + first, 1 / rate
            out.mux(video.encode(frame))
        samples = int(frames / rate * SOUND)
        tone = (np.sin(np.arange(samples) * 0.05) * 9000).astype(np.int16)
        kind = audio.codec_context.format.name
        for start in range(0, samples, 1024):
            part = tone[None, start : start + 1024]
            values = (part / 32768).astype(np.float32) if kind == "fltp" else (part // 256 + 128).astype(np.uint8)
            frame = av.AudioFrame.from_ndarray(values, kind, "mono")
            frame.sample_rate, frame.pts, frame.time_base = SOUND, start, F(1, SOUND)
            out.mux(audio.encode(frame))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    return path


def decoded(path):
    """Times of decoding of the picture's packets, in the file's order."""
    import av

    with av.open(str(path)) as opened:
        return [packet.dts * packet.time_base for packet in opened.demux(video=0) if packet.dts is not None]


def with_subtitles(path, folder):
    """The film in Matroska with two lines of text and a chapter."""
    import av

    (folder / "words.srt").write_text(SUBTITLES)
    with (
        av.open(str(path)) as given,
        av.open(str(folder / "words.srt")) as words,
        av.open(str(folder / "t.mkv"), "w") as out,
    ):
        kept = {s: out.add_stream_from_template(s) for source in (given, words) for s in source.streams}
        out.set_chapters([{"id": 1, "start": 0, "end": 500, "time_base": F(1, 1000), "metadata": {"title": "One"}}])
        out.metadata["title"] = "A film"
        kept[given.streams.audio[0]].metadata["language"] = "deu"
        for packet in (p for source in (words, given) for p in source.demux()):
            if packet.dts is not None:
                packet.stream = kept[packet.stream]
                out.mux(packet)
    return folder / "t.mkv"


def shown(path):
    """Seconds at which each frame is shown."""
    import av

    with av.open(str(path)) as opened:
        return [frame.pts * frame.time_base for frame in opened.decode(video=0)]


def packets(path, kind="audio"):
    """Bytes, time and duration of every packet of the first stream of a kind."""
    import av

    with av.open(str(path)) as opened:
        stream = getattr(opened.streams, kind)[0]
        return [
            (bytes(p), p.pts * p.time_base, (p.duration or 0) * p.time_base) for p in opened.demux(stream) if p.size
        ]


def open_files(folder):
    """Names of the files in a folder that this process holds open, as far as the system tells."""
    names = []
    for handle in Path("/proc/self/fd").glob("*"):
        try:
            names.append(Path(os.readlink(handle)))
        except FileNotFoundError:  # the one that lists the folder
            continue
    return sorted({path.name for path in names if path.is_relative_to(folder)})


def run(source, out, target, options=SHORT, between=blend):
    return list(retime_file(source, out, target, between, options))


@pytest.mark.parametrize(
    ("source", "target", "first"),
    [
        (F(24), F(60), 0),
        (F(24000, 1001), F(60000, 1001), 0),
        (F(30), F(24), 0),
        (F(12), F(24), 0),
        (F(24), F(60), 3),
        (F(24000, 1001), F(25), 2),
    ],
)
def test_times_are_exact_and_sound_is_copied(tmp_path, source, target, first):
    a, b = film(tmp_path / "a.mp4", source, 30, first), tmp_path / "b.mp4"
    steps = run(a, b, target)
    count = frame_count(30, source, target)
    assert [s.done for s in steps] == [*range(1, count + 1), count]
    assert steps[-1].total == count
    assert steps[-1].report == Report(count, ())
    assert shown(b) == [shown(a)[0] + k / target for k in range(count)]  # fractions: no error at all
    assert abs(count / target - 30 / source) < 1 / target
    assert packets(a) == packets(b)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_what_is_beside_the_picture_goes_along(tmp_path):
    import av

    a, b = with_subtitles(film(tmp_path / "a.mp4"), tmp_path), tmp_path / "b.mkv"
    assert run(a, b, F(48))[-1].report.left_out == ()
    assert [p[0] for p in packets(b, "subtitles")] == [b"Hello", b"Bye"]
    assert packets(a, "subtitles") == packets(b, "subtitles")
    with av.open(str(b)) as opened:
        assert opened.metadata["title"] == "A film"
        assert opened.streams.audio[0].metadata["language"] == "deu"
        assert [c["metadata"]["title"] for c in opened.chapters()] == ["One"]


def test_a_container_that_holds_less_says_what_is_missing(tmp_path):
    a = with_subtitles(film(tmp_path / "a.mp4"), tmp_path)
    assert run(a, tmp_path / "b.mp4", F(48))[-1].report.left_out == ("subtitle (subrip)",)
    assert [p[0] for p in packets(tmp_path / "b.mp4")] == [p[0] for p in packets(a)]
    raw = film(tmp_path / "raw.mkv", codec="pcm_u8")
    with pytest.raises(AtelierError, match=r"cannot hold the sound's pcm_u8. Write to a \.mkv file"):
        run(raw, tmp_path / "c.mp4", F(48))


def test_frames_are_those_of_an_unbroken_run(tmp_path):
    a = film(tmp_path / "a.mp4")
    run(a, tmp_path / "one.mp4", F(60), StreamOptions(segment=1000))
    run(a, tmp_path / "many.mp4", F(60), StreamOptions(segment=7))
    one, many = (torch.stack(list(read_frames(tmp_path / f"{n}.mp4"))) for n in ("one", "many"))
    assert one.shape == many.shape == (75, 3, 32, 48)
    assert (one - many).abs().mean() < 0.01


def test_stopping_leaves_a_film_that_plays_and_the_next_run_goes_on(tmp_path):
    a, b, made = film(tmp_path / "a.mp4"), tmp_path / "b.mp4", []

    def counted(first, second, time):
        made.append(time)
        return blend(first, second, time)

    work = retime_file(a, b, F(60), counted, SHORT)
    while next(work).done < 33:
        pass
    work.close()
    assert not b.exists()
    partial = tmp_path / "b.partial.mp4"
    assert shown(partial) == [k / F(60) for k in range(33)]
    sound = packets(partial)
    assert sound == packets(a)[: len(sound)]
    assert abs(sound[-1][1] - F(33, 60)) < F(1, 20)
    before = len(made)
    steps = run(a, b, F(60), between=counted)
    assert steps[0].done == 33
    assert shown(b) == [k / F(60) for k in range(75)]
    whole = sum(1 for k in range(73) if k * 24 % 60)
    assert len(made) == whole  # no frame was made twice
    assert before < whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


class Cancel(Exception):
    """Raised from the middle of a frame, as ComfyUI's cancel and Ctrl-C are."""


def cancels(left, error=Cancel):
    """An interpolator that is stopped while it makes its frame number `left`, counted from one."""

    def between(first, second, time):
        nonlocal left
        left -= 1
        if not left:
            raise error("stopped")
        return blend(first, second, time)

    return between


@pytest.mark.parametrize("error", [Cancel, KeyboardInterrupt])
def test_a_cancel_within_a_frame_keeps_what_is_done(tmp_path, error):
    a, b = film(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    with pytest.raises(error):
        run(a, b, F(60), between=cancels(25, error))
    # Frames 0, 5, 10, ... stand on the source's: 25 that are made in between begin with frame 31.
    assert shown(partial_of(b)) == [k / F(60) for k in range(31)]
    assert run(a, b, F(60))[0].done == 31
    run(a, tmp_path / "c.mp4", F(60))
    assert shown(b) == shown(tmp_path / "c.mp4")
    assert packets(a) == packets(b)
    pairs = zip(read_frames(b), read_frames(tmp_path / "c.mp4"), strict=True)
    assert max((x - y).abs().mean().item() for x, y in pairs) < 0.01
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize("stop", [1, 2, 3, 20, 21, 22, 40])
def test_a_run_goes_on_from_wherever_it_stopped(tmp_path, stop):
    """A segment of a frame or two has no frames that wait for others; its neighbours do."""
    a, b = film(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    work = retime_file(a, b, F(60), blend, SHORT)
    while next(work).done < stop:
        pass
    work.close()
    assert shown(partial_of(b)) == [k / F(60) for k in range(stop)]
    assert run(a, b, F(60))[0].done == stop
    assert shown(b) == [k / F(60) for k in range(75)]
    assert decoded(b) == sorted(decoded(b))
    run(a, tmp_path / "c.mp4", F(60))
    pairs = zip(read_frames(b), read_frames(tmp_path / "c.mp4"), strict=True)
    assert max((x - y).abs().mean().item() for x, y in pairs) < 0.01


def test_a_told_error_keeps_the_segments_for_the_next_run(tmp_path):
    a, b = film(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    with pytest.raises(AtelierError, match="stopped"):
        run(a, b, F(60), between=cancels(25, AtelierError))
    assert not partial_of(b).exists()
    assert run(a, b, F(60))[0].done == 31


def test_a_run_that_was_killed_gives_the_same_film_in_the_end(tmp_path):
    """A killed process leaves whole segments and one without its end; the next run takes the first and drops the second."""
    a, b = film(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    with pytest.raises(Cancel):
        run(a, b, F(60), between=cancels(25))
    folder = tmp_path / ".b.mp4.segments"
    assert [p.name for p in sorted(folder.glob("*.mp4"))] == ["000000000-000000020.mp4", "000000020-000000031.mp4"]
    (folder / "000000020-000000031.mp4").unlink()
    partial_of(b).unlink()
    (folder / "000000020.part").write_bytes(b"half a segment")
    assert run(a, b, F(60))[0].done == 20
    run(a, tmp_path / "c.mp4", F(60))
    assert shown(b) == shown(tmp_path / "c.mp4")
    assert b.read_bytes() == (tmp_path / "c.mp4").read_bytes()  # segments begin where they would have begun


def test_a_copy_goes_on_by_the_name_it_is_known_by(tmp_path):
    a, b = film(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    work = retime_file(a, b, F(60), blend, SHORT, known_as="mine")
    for _ in range(30):
        next(work)
    work.close()
    again = a.rename(tmp_path / "other.mp4")
    assert next(retime_file(again, b, F(60), blend, SHORT, known_as="mine")).done == 30
    assert run_key("mine", F(60), SHORT) != run_key("mine", F(48), SHORT)
    assert run_key("mine", F(60), SHORT) == run_key("mine", F(60), SHORT.model_copy(update={"resume": False}))
    assert source_key(again) != source_key(b.with_name("b.partial.mp4"))


def test_steps_show_the_frame_and_tell_a_length_that_matroska_hides(tmp_path):
    a = film(tmp_path / "a.mkv", frames=24)
    assert probe(a).frames == 0
    steps = run(a, tmp_path / "b.mkv", F(48))
    assert steps[0].total in range(47, 50)
    assert steps[-1].report.frames == 48
    made = torch.stack([s.frame for s in steps[:-1]])
    assert made.shape == (48, 3, 32, 48)
    back = torch.stack(list(read_frames(tmp_path / "b.mkv")))
    assert (made - back).abs().mean() < 0.02
    assert steps[-1].frame is None


@pytest.mark.parametrize("other", [{"target": F(48)}, {"options": StreamOptions(segment=20, method="rife")}])
def test_another_task_does_not_go_on_from_what_is_there(tmp_path, other):
    a, b = film(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    work = retime_file(a, b, F(60), blend, SHORT)
    for _ in range(30):
        next(work)
    work.close()
    again = {"target": F(60), "options": SHORT} | other
    assert run(a, b, **again)[0].done == 1


def test_cuts_stand_where_they_stood(tmp_path):
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=10, options={"crf": "1"})
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        for i in range(10):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.full((32, 48, 3), 40 if i < 5 else 210, np.uint8))))
        out.mux(video.encode(None))
    run(path, tmp_path / "b.mp4", F(25))
    values = [f.mean().item() for f in read_frames(tmp_path / "b.mp4")]
    assert len(values) == 25
    assert all(abs(v - 40 / 255) < 0.03 for v in values[:13])  # frames before 0.5 s
    assert all(abs(v - 210 / 255) < 0.03 for v in values[13:])


@pytest.mark.parametrize(
    ("out", "words"), [("b.gif", "ending that is not known"), ("a.mp4", "one of the files that are read")]
)
def test_a_place_that_cannot_be_written_is_told(tmp_path, out, words):
    a = film(tmp_path / "a.mp4", frames=3)
    before = a.read_bytes()
    with pytest.raises(AtelierError, match=words):
        run(a, tmp_path / out, F(48))
    assert a.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_one_frame_is_a_film_too(tmp_path):
    a = film(tmp_path / "a.mp4", frames=1)
    assert run(a, tmp_path / "b.mp4", F(60))[-1].report.frames == 3
    assert probe(tmp_path / "b.mp4").rate == 60


def test_a_start_and_the_shape_of_pixels_are_read(tmp_path):
    a = film(tmp_path / "a.mp4", first=3)
    assert probe(a).start == F(1, 8)
    assert probe(a).aspect == 1


@pytest.mark.parametrize(
    ("seconds", "rate", "tick", "meant"),
    [
        (F(42, 1000), F(24000, 1001), F(1, 1000), F(1001, 24000)),
        (F(83, 1000), F(24), F(1, 1000), F(2, 24)),
        (F(60, 1000), F(24), F(1, 1000), F(60, 1000)),  # uneven on purpose
        (F(1, 2), F(24), F(1, 12288), F(1, 2)),
    ],
)
def test_rounded_times_mean_the_grid(seconds, rate, tick, meant):
    assert on_grid(seconds, rate, tick) == meant


def test_what_plays_after_a_stop_is_not_the_source(tmp_path):
    """The partial file is removed at the end."""
    a = film(tmp_path / "b.partial.mp4", frames=3)
    with pytest.raises(AtelierError, match="one of the files that are read"):
        run(a, tmp_path / "b.mp4", F(48))
    assert [p.name for p in tmp_path.iterdir()] == ["b.partial.mp4"]


def emptied(path):
    path.write_bytes(b"")


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shortened(path):
    """A film that plays, of fewer frames than its name says."""
    path.write_bytes(path.with_name("000000060-000000070.mp4").read_bytes())


@pytest.mark.parametrize("harm", [emptied, halved, shortened, Path.unlink])
def test_a_damaged_segment_is_made_again_with_all_behind_it(tmp_path, harm):
    a, b = film(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    with closing(retime_file(a, b, F(60), blend, SHORT)) as work:
        while next(work).done < 70:
            pass
    harm(tmp_path / ".b.mp4.segments" / "000000020-000000040.mp4")
    assert run(a, b, F(60))[0].done == 20
    assert shown(b) == [k / F(60) for k in range(75)]


def test_a_damaged_first_segment_begins_anew(tmp_path):
    a, b = film(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    with closing(retime_file(a, b, F(60), blend, SHORT)) as work:
        while next(work).done < 30:
            pass
    emptied(tmp_path / ".b.mp4.segments" / "000000000-000000020.mp4")
    assert run(a, b, F(60))[0].done == 1
    assert shown(b) == [k / F(60) for k in range(75)]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell what is open")
def test_a_segment_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    a, kept, fsync = film(tmp_path / "a.mp4"), [], os.fsync

    def told(handle):
        kept.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", told)
    run(a, tmp_path / "b.mp4", F(60))
    assert [name for name in kept if name.endswith("0.part") and name[0] == "0"] == [
        f"{n:09d}.part" for n in (0, 20, 40, 60)
    ]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell what is open")
@pytest.mark.parametrize("error", [Cancel, AtelierError])
def test_a_stopped_run_holds_no_file(tmp_path, error):
    a, held = film(tmp_path / "a.mp4"), None
    try:
        run(a, tmp_path / "b.mp4", F(60), between=cancels(25, error))
    except error:
        held = open_files(tmp_path)  # while the error is on its way, as where a copy of the source is removed
    assert held == []
