"""From video file to video file drawn again: resumable, since a frame may take a minute.

Finished frames lie in short segments in a folder beside the result, with the memory that the next frame is drawn from.
A stopped run leaves a file that plays; the next one with the same key goes on, to the same pictures.
"""

import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..errors import AtelierError
from ..files import digest_of, read_tensors, write_tensors, write_whole
from ..options import Options
from ..style.color import LinearMap
from ..style.structure import TOKEN, continued
from .flow import Flow
from .restyle import Canvas, Memory, Restyled, RestyleOptions, restyle_from
from .stream import (
    CONTAINERS,
    CONTAINERS_OWN,
    Job,
    Report,
    Segment,
    Step,
    StreamOptions,
    Timed,
    expected_frames,
    kept_segments,
    others,
    pictures_of,
    refuse_source,
    segments_of,
)
from .video import Clip, open_video, probe, read_frames
from .warped_noise import NoiseField

SEGMENT = 12  # frames, the most that a killed run draws again
APART = 10  # seconds that streams of a file may lie apart
STATE = "state.safetensors"
LEAST = 16  # pixels of a side


class FilmOptions(Options):
    """Which part of a film is drawn, and how large."""

    longest_side: int = Field(
        default=0, ge=0, le=8192, description="Pixels of the longer side of what is drawn; 0 is the video's own size."
    )
    first_frame: int = Field(
        default=0, ge=0, le=10_000_000, description="Number of the first frame that is drawn, from 0."
    )
    frames: int = Field(default=0, ge=0, le=10_000_000, description="How many frames are drawn; 0 goes on to the end.")


@dataclass(frozen=True)
class Film:
    """One run.

    source, out  video files; out ends in .mp4, .mov or .mkv
    part         which part, and how large
    key          tells a run that may be gone on with: all that the pictures depend on
    """

    source: Path
    out: Path
    part: FilmOptions
    key: str


def drawn_size(clip: Clip, longest_side: int) -> tuple[int, int]:
    """Height and width of what is drawn, before the edges are continued to multiples of TOKEN."""
    scale = longest_side / max(clip.width, clip.height) if longest_side else 1.0
    return max(LEAST, round(clip.height * scale)), max(LEAST, round(clip.width * scale))


def canvas_size(clip: Clip, longest_side: int) -> tuple[int, int]:
    """Height and width of the frames that are given to the canvas: multiples of TOKEN."""
    height, width = drawn_size(clip, longest_side)
    return height + -height % TOKEN, width + -width % TOKEN


def fitted_frame(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale a frame and continue its lower and right edges to multiples of TOKEN; [3, H, W] in 0..1."""
    if frame.shape[-2:] != torch.Size(size):
        frame = F.interpolate(frame[None], size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)
    return continued(frame[None])[0]


def restyle_file(
    film: Film, canvas: Canvas, options: RestyleOptions | None = None, flow: Flow | None = None
) -> Iterator[Step]:
    """Draw a video file again, one step for each frame.

    Closing the generator stops, as does what the canvas raises: what is done then plays from `NAME.partial.mp4`, and
    the next call with the same key goes on. The sound of the same time is copied.

    canvas  draws frames of canvas_size
    Raises AtelierError if a file is no film, the part is empty, or the container cannot hold the sound.
    """
    left_out = others(film.source, film.out)[1]
    refuse_source(film.source, film.out)
    clip = probe(film.source)
    job = Job(film.source, film.out, clip, clip.rate, StreamOptions(), film.key)
    done = 0
    with closing(
        _draw(job, film.part, lambda memory, frames: restyle_from(memory, frames, canvas, options, flow))
    ) as run:
        for step in run:
            done = step.done
            yield step
    write_whole(film.out, lambda part: _join(job, film.part, part, bool(film.part.frames)))
    shutil.rmtree(job.folder)
    job.partial.unlink(missing_ok=True)
    yield Step(done, done, Report(done, left_out))


Restyle = Callable[[Memory | None, Iterator[Tensor]], Iterator[Restyled]]


def _draw(job: Job, part: FilmOptions, restyled: Restyle) -> Generator[Step, None, None]:
    """Write the segments that are not there yet."""
    memory = _resumable(job)
    done = memory.number + 1 if memory else 0
    total = _drawn_frames(job, part)
    if done:
        yield Step(done, max(done, total) if total else 0)
    size = drawn_size(job.clip, part.longest_side)
    stop = part.first_frame + part.frames if part.frames else None
    tail = Tail(job, done)
    try:
        with closing(read_frames(job.source)) as read:
            frames = islice(read, part.first_frame + done, stop)
            for step in restyled(memory, (fitted_frame(frame, size) for frame in frames)):
                picture = step.picture[:, : size[0], : size[1]]
                tail.add(picture, step.memory)
                done += 1
                yield Step(done, max(done, total) if total else 0, frame=picture)
        tail.finish()
    except BaseException as stopped:  # closed from outside, or a cancel while a frame was drawn
        tail.finish()
        if not isinstance(stopped, AtelierError) and segments_of(job):
            write_whole(job.partial, lambda file: _join(job, part, file, True))
        raise
    finally:
        tail.drop()
    if not done:
        shutil.rmtree(job.folder)
        told = job.clip.frames or f"about {expected_frames(job)}"
        raise AtelierError(
            f"{job.source.name} has no frame {part.first_frame}; it has {told}. Begin at an earlier frame."
        )


def _drawn_frames(job: Job, part: FilmOptions) -> int:
    """Frames that will be drawn; 0 where nothing tells."""
    there = expected_frames(job)
    left = max(0, there - part.first_frame)
    return min(left, part.frames or left) if there else part.frames


class Tail:
    """The end of what is done: a segment that is open, and frames that wait for one that can be gone on from."""

    def __init__(self, job: Job, start: int):
        """Nothing is opened before the first frame.

        start  number of the next frame
        """
        self.job, self.start = job, start
        self.waiting: list[Tensor] = []
        self.memory: Memory | None = None
        self.segment: Segment | None = None

    def add(self, picture: Tensor, memory: Memory | None) -> None:
        """Take the next frame, with the memory behind it where there is one."""
        self.waiting.append(picture)
        if memory is None:
            return
        self.segment = self.segment or Segment(self.job, picture, self.start)
        self.memory = None  # a cancel between these frames would leave a segment that ends at a frame without a memory
        for frame in self.waiting:
            self.segment.add(frame)
        self.waiting, self.memory = [], memory
        if self.segment.count >= SEGMENT:
            self.finish()

    def finish(self) -> None:
        """Give the segment its name, then write down what goes on from there; frames that wait are left out."""
        if self.segment is None or self.memory is None or not self.segment.whole:
            return
        segment, self.segment = self.segment, None
        segment.finish()
        self.start += segment.count
        _write_memory(self.job.folder / STATE, self.memory)

    def drop(self) -> None:
        """Remove a segment that is not finished."""
        if self.segment:
            self.segment.drop()
            self.segment = None


def _resumable(job: Job) -> Memory | None:
    """What an earlier run with the same key has left; what does not belong to it is removed."""
    segments, state = kept_segments(job), job.folder / STATE
    memory = _read_memory(state) if state.is_file() else None
    done = memory.number + 1 if memory else 0
    if done not in {stop for _, stop, _ in segments}:  # frames are lost that the memory stands behind
        memory, done = None, 0
        state.unlink(missing_ok=True)
    for start, _, path in segments:
        if start >= done:
            path.unlink()
    return memory


def _write_memory(path: Path, memory: Memory) -> None:
    tensors = {
        "source": memory.source, "drawn": memory.drawn, "noise": memory.noise.values, "offset": memory.noise.offset,
        "rng": memory.rng,
    }  # fmt: skip
    if memory.palette:
        tensors |= {"matrix": memory.palette.matrix, "shift": memory.palette.offset}
    write_tensors(path, tensors, {"number": str(memory.number), "shot": str(memory.shot)})


def _read_memory(path: Path) -> Memory | None:
    """The memory in a file, None where the file is damaged: it can be made again."""
    try:
        tensors, told = read_tensors(path)
    except AtelierError:
        return None
    palette = LinearMap(tensors["matrix"], tensors["shift"]) if "matrix" in tensors else None
    noise = NoiseField(tensors["noise"], tensors["offset"])
    number, shot = int(told["number"]), int(told["shot"])
    return Memory(number, shot, tensors["source"], tensors["drawn"], noise, tensors["rng"], palette)


def _join(job: Job, part: FilmOptions, file: Path, ends: bool) -> None:
    """Put the segments one behind the other and the sounds and subtitles of their time beside them, packet by packet.

    ends  they end with the picture, not with the source
    """
    import av

    name = CONTAINERS[job.out.suffix.lower()]
    ticks = {} if name == "matroska" else {"video_track_timescale": str(job.ticks)}
    segments = segments_of(job)
    count = segments[-1][1]
    begins = part.first_frame / job.target
    with open_video(job.source) as source, av.open(str(file), "w", format=name, options=ticks) as out:
        with av.open(str(segments[0][2])) as first:
            picture = out.add_stream_from_template(first.streams.video[0])
        streams = {i: out.add_stream_from_template(source.streams[i]) for i in others(job.source, job.out)[0]}
        out.metadata.update({k: v for k, v in source.metadata.items() if k not in CONTAINERS_OWN})
        for index, stream in streams.items():
            stream.metadata.update(source.streams[index].metadata)
        start = job.clip.start if not part.first_frame else Fraction(0)
        window = Window(job.clip.start + begins, count / job.target if ends else None, start)
        pictures = pictures_of(job, start, picture)
        for _, packet, stream in merge(pictures, _beside(source, streams, window), key=lambda item: item[0]):
            packet.stream = stream
            out.mux(packet)


@dataclass(frozen=True)
class Window:
    """A part of the source's other streams, in seconds: where it begins, how long it is, and where it comes to stand."""

    begins: Fraction
    length: Fraction | None
    stands: Fraction


def _beside(source: Any, streams: dict[int, Any], window: Window) -> Iterator[Timed]:
    """The packets of sounds and subtitles in a window."""
    if not streams:
        return
    whole = window.begins == window.stands  # nothing was cut off at the front: what comes before the picture stays
    for packet in source.demux(*(source.streams[i] for i in streams)):
        if packet.dts is None:
            continue
        time = packet.dts * packet.time_base - window.begins
        if time < 0 and not whole:
            continue
        if window.length is not None and time >= window.length:
            if time >= window.length + APART:
                return
            continue
        offset = round((window.stands - window.begins) / packet.time_base)
        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
        yield packet.dts * packet.time_base, packet, streams[packet.stream.index]


def film_key(source: str, part: FilmOptions, *more: object) -> str:
    """What a run draws, as hex.

    source  the film, as from stream.source_key
    more    plain values: all else that the pictures depend on
    """
    return digest_of(source, part.model_dump(), *more)
