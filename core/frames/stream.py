"""From video file to video file at another frame rate: nothing grows with the length, sound is copied untouched.

The picture is written in short segments in a folder beside the result. What is done is never lost: a stopped run
leaves a file that plays, and the next run with the same source and options goes on behind the last segment.
"""

import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import merge
from io import BytesIO
from math import lcm
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from ..errors import AtelierError
from ..files import digest_of, refuse_overwriting, told_if_full, write_text, write_whole
from .interpolate import Between, RetimeOptions, made, wanted_frames
from .timing import frame_count
from .video import FINEST, QUALITY, Clip, add_h264, open_video, probe, stamped_frames, to_video_frame

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
# What a container writes about itself, and not about the film.
CONTAINERS_OWN = ("major_brand", "minor_version", "compatible_brands", "encoder")
KEY = "source.txt"
DELAY = 2  # frames by which H.264 decodes ahead of what it shows, with x264's pyramid of B-frames


class StreamOptions(RetimeOptions):
    """How a video file is brought to another frame rate."""

    quality: int = Field(
        default=QUALITY, ge=0, le=51, description="Constant rate factor of H.264: less is better and larger."
    )
    segment: int = Field(
        default=120, ge=1, le=10_000, description="Frames in a segment, the most that a killed run loses."
    )
    resume: bool = Field(default=True, description="Go on behind the segments that an earlier run has left.")
    method: str = Field(
        default="", max_length=200, description="Name of the interpolator; a run goes on only with the same."
    )


@dataclass(frozen=True)
class Report:
    """What a finished run has written.

    frames    in the file
    left_out  streams of the source that the container cannot hold, as "subtitle (hdmv_pgs_subtitle)"
    """

    frames: int
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """How far a run is.

    done    frames made
    total   frames in all: 0 where the source tells nothing, by its length where it does not tell its frames
    report  at the end
    frame   [C, H, W] the last one that was made
    """

    done: int
    total: int
    report: Report | None = None
    frame: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Job:
    """One run, resolved: files, rates, what is kept, and the key under which another run goes on."""

    source: Path
    out: Path
    clip: Clip
    target: Fraction
    options: StreamOptions
    key: str

    @property
    def folder(self) -> Path:
        return self.out.with_name(f".{self.out.name}.segments")

    @property
    def partial(self) -> Path:
        return partial_of(self.out)

    @property
    def ticks(self) -> int:
        """Ticks a second on which every output frame stands exactly, behind the source's own start too."""
        exact = lcm(self.target.numerator, self.clip.start.denominator)
        return exact if exact <= FINEST else self.target.numerator


def partial_of(out: Path) -> Path:
    """Where what is done plays from after a run was stopped."""
    return out.with_name(f"{out.stem}.partial{out.suffix}")


def refuse_source(source: Path, out: Path) -> None:
    """Raise AtelierError if the result, or what plays from after a stop, is the file that is read."""
    refuse_overwriting(out, [source])
    refuse_overwriting(partial_of(out), [source])


def source_key(source: Path) -> str:
    """A file by its place, size and time, as a run knows it."""
    told = source.stat()
    return digest_of(str(source.resolve()), told.st_size, told.st_mtime_ns)


def run_key(source: str, target: Fraction, options: StreamOptions) -> str:
    """What a run makes, as hex: the same source, rate and options give the same; source as from source_key."""
    return digest_of(source, str(Fraction(target)), options.model_dump_json(exclude={"resume"}))


def retime_file(
    source: Path,
    out: Path,
    target: Fraction,
    between: Between,
    options: StreamOptions | None = None,
    known_as: str = "",
) -> Iterator[Step]:
    """Bring a video file to another frame rate, one step for each frame made.

    Closing the generator stops, as does what `between` raises: what is done then plays from partial_of(out), except
    after an AtelierError, and the next call goes on from it.

    source    a video file
    out       .mp4, .mov or .mkv, written whole at the end; sound, subtitles, chapters and titles are copied
    target    frames per second
    between   makes one frame
    known_as  what the source is called by runs that go on from each other, where it is a copy; else its source_key
    Raises AtelierError if a file is none, is the other one, or the container cannot hold the sound.
    """
    source, out, options = Path(source), Path(out), options or StreamOptions()
    left_out = others(source, out)[1]
    refuse_source(source, out)
    key = run_key(known_as or source_key(source), target, options)
    job = Job(source, out, probe(source), Fraction(target), options, key)
    total = expected_frames(job)
    done = 0
    with closing(_make_segments(job, between)) as frames:
        for done, frame in frames:
            yield Step(done, max(done, total) if total else 0, frame=frame)
    write_whole(out, lambda part: _join(job, part))
    shutil.rmtree(job.folder)
    job.partial.unlink(missing_ok=True)
    yield Step(done, done, Report(done, left_out))


def expected_frames(job: Job) -> int:
    """Frames that the whole source becomes, as far as its container tells; 0 where it tells nothing."""
    if job.clip.frames:
        return frame_count(job.clip.frames, job.clip.rate, job.target)
    return round(job.clip.seconds * job.target)


def _make_segments(job: Job, between: Between) -> Generator[tuple[int, Tensor | None], None, None]:
    """Write the segments that are not there yet; gives the number of frames done after each frame, and the frame."""
    if not job.options.resume and job.folder.exists():
        shutil.rmtree(job.folder)
    segments = kept_segments(job)
    done = segments[-1][1] if segments else 0
    if done:
        yield done, None
    segment: Segment | None = None
    try:
        with closing(stamped_frames(job.source)) as stamped:
            for wanted in wanted_frames(stamped, job.target, 1 / job.clip.rate, job.options):
                if wanted.number < done:
                    continue
                frame = made(wanted, between)
                segment = segment or Segment(job, frame, done)
                segment.add(frame)
                done += 1
                if segment.count == job.options.segment:
                    segment = segment.finish()
                yield done, frame
        segment = segment and segment.finish()
    except BaseException as stop:  # closed from outside, or a cancel while a frame was made
        segment = segment and segment.keep()
        if not isinstance(stop, AtelierError):
            _write_partial(job)
        raise
    finally:
        if segment:
            segment.drop()


class Segment:
    """A part of the picture that is being written: a file of its own, which gets its name when it is whole."""

    def __init__(self, job: Job, pixels: Tensor, start: int):
        """Open the file.

        pixels  [C, H, W], the first frame
        start   its number in the result
        """
        import av

        self.job, self.start, self.count, self.whole = job, start, 0, True
        self.part = job.folder / f"{start:09d}.part"
        ticks = {"video_track_timescale": str(job.ticks)}
        self.out = av.open(str(self.part), "w", format="mp4", options=ticks)
        self.stream = add_h264(self.out, pixels, job.target, job.options.quality, job.clip.aspect, prompt=True)

    def add(self, pixels: Tensor) -> None:
        """Encode a frame [C, H, W]."""
        self.whole = False
        with told_if_full(self.job.out):
            self.out.mux(self.stream.encode(to_video_frame(pixels, self.count, self.job.target)))
        self.count += 1
        self.whole = True

    def finish(self) -> None:
        """Write what the encoder still holds and give the file its name, which tells where it begins and ends."""
        self.whole = False
        with told_if_full(self.job.out):
            self.out.mux(self.stream.encode(None))
            self.out.close()
            with open(self.part, "rb+") as opened:
                os.fsync(opened.fileno())
            os.replace(self.part, self.job.folder / f"{self.start:09d}-{self.start + self.count:09d}.mp4")

    def keep(self) -> None:
        """Finish what there is, or drop it where it was stopped in the middle of a frame."""
        if self.whole and self.count:
            self.finish()
        else:
            self.drop()

    def drop(self) -> None:
        """Close and remove the file."""
        self.out.close()
        self.part.unlink(missing_ok=True)


Part = tuple[int, int, Path]  # first frame of a segment, frame behind its last one, and its file


def kept_segments(job: Job) -> list[Part]:
    """What an earlier run with the same key has left, one segment behind the other from the first frame on.

    What does not belong to it is removed: an unfinished or damaged segment, one behind a gap, or all of another run.
    """
    note = job.folder / KEY
    if not (note.is_file() and note.read_bytes() == job.key.encode()):
        shutil.rmtree(job.folder, ignore_errors=True)
        job.folder.mkdir(parents=True)
        write_text(note, job.key)
    for unfinished in job.folder.glob("*.part"):
        unfinished.unlink()
    kept: list[Part] = []
    for start, stop, path in segments_of(job):
        if start == (kept[-1][1] if kept else 0) and _holds(path, stop - start):
            kept.append((start, stop, path))
        else:
            path.unlink()
    return kept


def _holds(path: Path, count: int) -> bool:
    """Whether a segment opens and says that it has so many frames: a crash of the machine may leave less."""
    try:
        with open_video(path) as container:
            return container.streams.video[0].frames == count > 0
    except AtelierError:
        return False


def segments_of(job: Job) -> list[Part]:
    """Every segment that is there, in order."""
    found = [(*map(int, path.stem.split("-")), path) for path in sorted(job.folder.glob("*-*.mp4"))]
    return [(start, stop, path) for start, stop, path in found]


def others(source: Path, out: Path) -> tuple[list[int], tuple[str, ...]]:
    """Numbers of a film's streams that a file can hold beside the picture, and names of those that it cannot.

    out  the ending tells the container
    Raises AtelierError if the ending is not known, or a sound is among the second.
    """
    import av

    if out.suffix.lower() not in CONTAINERS:
        raise AtelierError(f"{out.name} has an ending that is not known. Write to .mp4, .mov or .mkv.")
    with av.open(BytesIO(), "w", format=CONTAINERS[out.suffix.lower()]) as trial:
        held = trial.supported_codecs
    kept, left = [], []
    with open_video(source) as container:
        for stream in container.streams:
            if stream == container.streams.video[0]:
                continue
            codec = stream.codec_context.codec.canonical_name if stream.type in ("audio", "subtitle") else ""
            if codec in held:
                kept.append(stream.index)
                continue
            if stream.type == "audio":
                raise AtelierError(f"{out.suffix} cannot hold the sound's {codec}. Write to a .mkv file.")
            left.append(f"{stream.type} ({codec})" if codec else stream.type)
    return kept, tuple(left)


def _write_partial(job: Job) -> None:
    """Let what is done play, with the sound up to there."""
    segments = segments_of(job)
    if segments:
        write_whole(job.partial, lambda part: _join(job, part, Fraction(segments[-1][1]) / job.target))


def _join(job: Job, part: Path, stop: Fraction | None = None) -> None:
    """Put the segments one behind the other and the source's other streams beside them, packet by packet.

    stop  seconds behind the first frame at which the other streams end; their own end when left out
    """
    import av

    kept = others(job.source, job.out)[0]
    name = CONTAINERS[job.out.suffix.lower()]
    ticks = {} if name == "matroska" else dict.fromkeys(("video_track_timescale", "movie_timescale"), str(job.ticks))
    with open_video(job.source) as source, av.open(str(part), "w", format=name, options=ticks) as out:
        segments = segments_of(job)
        with av.open(str(segments[0][2])) as first:
            picture = out.add_stream_from_template(first.streams.video[0])
        streams = {i: out.add_stream_from_template(source.streams[i]) for i in kept}
        out.metadata.update({k: v for k, v in source.metadata.items() if k not in CONTAINERS_OWN})
        for index, stream in streams.items():
            stream.metadata.update(source.streams[index].metadata)
        if stop is None:
            out.set_chapters(source.chapters())
        beside = _packets(source, streams, stop and job.clip.start + stop)
        for _, packet, stream in merge(pictures_of(job, job.clip.start, picture), beside, key=lambda item: item[0]):
            packet.stream = stream
            out.mux(packet)


Timed = tuple[Fraction, Any, Any]  # seconds of decoding, packet, stream of the result


def pictures_of(job: Job, begin: Fraction, stream: Any) -> Iterator[Timed]:
    """The packets of all segments, each where its frames belong; begin as in _placed."""
    for number, _, path in segments_of(job):
        yield from _placed(path, begin, number, job.target, stream)


def _placed(path: Path, begin: Fraction, number: int, rate: Fraction, stream: Any) -> Iterator[Timed]:
    """The packets of a segment where its frames belong, with times of decoding that go on from segment to segment.

    begin   seconds at which the film's first frame is shown
    number  of the segment's first frame in the film
    """
    import av

    with av.open(str(path)) as segment:
        packets = (packet for packet in segment.demux(video=0) if packet.dts is not None)
        for count, packet in enumerate(packets, number):
            ticks = packet.time_base
            packet.pts += round((begin + number / rate) / ticks)
            # A segment of a frame or two is decoded without delay, its neighbours with: times would go back.
            packet.dts = round((begin + (count - DELAY) / rate) / ticks)
            yield packet.dts * ticks, packet, stream


def _packets(source: Any, streams: dict[int, Any], stop: Fraction | None) -> Iterator[Timed]:
    """The packets of the other streams as they are, up to a time in seconds."""
    if not streams:
        return
    for packet in source.demux(*(source.streams[i] for i in streams)):
        if packet.dts is None:
            continue
        time = packet.dts * packet.time_base
        if stop is None or time < stop:
            yield time, packet, streams[packet.stream.index]
