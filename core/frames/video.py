"""Video files in and out through PyAV, one frame at a time."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import AtelierError
from ..files import write_whole
from .pixels import rgb_of

BT709 = 1  # its number in the H.264 standard, for matrix, primaries and transfer alike
MICROSECONDS = 1_000_000  # in which FFmpeg tells how long a file is
FINEST = 2**31 - 1  # ticks a second that MP4 can count
QUALITY = 17  # x264's constant rate factor: what is lost does not show


@dataclass(frozen=True)
class Clip:
    """What a video file says of itself; `frames` is 0 where the container does not tell.

    width, height  pixels as shown, upright
    rate           frames per second, the mean where they are uneven
    start          seconds at which the first frame is shown
    aspect         width of a pixel by its height
    seconds        length of the whole file, 0 where the container does not tell
    tick           seconds, the finest time of a frame; 0 where none is known
    """

    width: int
    height: int
    rate: Fraction
    frames: int
    start: Fraction = Fraction(0)
    aspect: Fraction = Fraction(1)
    seconds: Fraction = Fraction(0)
    tick: Fraction = Fraction(0)


def probe(path: Path) -> Clip:
    """Look into a video file; raises AtelierError if it has no readable video stream."""
    with open_video(path) as container:
        stream = container.streams.video[0]
        first = next(_decoded(container, path), None)
        if first is None:
            raise AtelierError(f"{Path(path).name} has no frame that can be decoded. Check the file.")
        height, width = upright(np.empty((first.height, first.width)), first.rotation).shape
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        if (first.width, first.height) != (width, height):
            aspect = 1 / aspect
        start = Fraction(0) if first.pts is None else first.pts * first.time_base
        seconds = Fraction(container.duration or 0, MICROSECONDS)
        tick = Fraction(stream.time_base or 0)
        return Clip(width, height, frame_rate(stream), stream.frames, start, aspect, seconds, tick)


def frame_rate(stream: Any) -> Fraction:
    """Frames per second of a video stream of PyAV; 24 where nothing tells."""
    mean, base = (Fraction(r or 24) for r in (stream.average_rate or stream.base_rate, stream.base_rate))
    # Matroska rounds times to milliseconds, so the mean is a little off the rate that was meant.
    return base if abs(mean - base) < mean / 2000 else mean


def upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """Turn a decoded frame as its file asks, in degrees: phones store films lying on their side."""
    return np.ascontiguousarray(np.rot90(pixels, round((rotation or 0) / 90) % 4))


def open_video(path: Path) -> Any:
    """Open a file with PyAV; raises AtelierError if it has no video stream."""
    import av

    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise AtelierError(f"{Path(path).name} cannot be opened as a video ({error}). Check the file.") from None
    if not container.streams.video:
        container.close()
        raise AtelierError(f"{Path(path).name} has no video stream. Choose a video file.")
    return container


def _decoded(container: Any, path: Path) -> Iterator[Any]:
    import av

    try:
        yield from container.decode(video=0)
    except av.FFmpegError as error:
        raise AtelierError(f"{Path(path).name} is damaged ({error}). Make it anew, or cut the damage out.") from None


def read_frames(path: Path) -> Generator[Tensor, None, None]:
    """Decode a video's frames one by one, [3, H, W] float32 in 0..1."""
    with closing(stamped_frames(path)) as stamped:
        for _, frame in stamped:
            yield frame


def stamped_frames(path: Path) -> Generator[tuple[Fraction, Tensor], None, None]:
    """Decode a video's frames with the seconds at which they are shown, counted from the first.

    Times that a container has rounded to its ticks are put back on the grid of the frame rate.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        rate, origin = frame_rate(stream), None
        for number, frame in enumerate(_decoded(container, path)):
            shown = number / rate if frame.pts is None else frame.pts * frame.time_base
            origin = shown if origin is None else origin
            pixels = torch.from_numpy(upright(rgb_of(frame), frame.rotation))
            yield on_grid(shown - origin, rate, stream.time_base), pixels.permute(2, 0, 1)


def on_grid(shown: Fraction, rate: Fraction, tick: Fraction) -> Fraction:
    """The time of the frame that a time rounded to ticks means; uneven times stay.

    shown  seconds
    rate   frames per second
    tick   seconds, the finest time that the container can write
    """
    nearest = round(shown * rate) / rate
    return nearest if abs(shown - nearest) <= tick and 4 * tick * rate < 1 else shown


def write_video(
    path: Path,
    frames: Iterable[Tensor],
    rate: Fraction,
    sound: Path | None = None,
    like: Clip | None = None,
    stamps: Sequence[Fraction] | None = None,
) -> int:
    """Encode frames as H.264 in MP4, one by one; returns how many.

    path    written whole or not at all; stopping in the middle leaves no file
    frames  [3, H, W] in 0..1; an odd last row or column is repeated, as H.264 wants even sides
    rate    frames per second
    sound   a file whose first audio stream is copied unchanged
    like    a clip whose start, shape of pixels and finest time are taken on
    stamps  seconds at which each frame is shown, behind the first; may grow while frames are read; even when left out
    Raises AtelierError if there are no frames.
    """
    count = 0

    def encode(part: Path) -> None:
        nonlocal count
        count = _encode(part, _timed(frames, Fraction(rate), stamps), _Track(Fraction(rate), like), sound)

    write_whole(Path(path), encode)
    return count


def _timed(
    frames: Iterable[Tensor], rate: Fraction, stamps: Sequence[Fraction] | None
) -> Iterator[tuple[Fraction, Tensor]]:
    for number, pixels in enumerate(frames):
        yield number / rate if stamps is None else stamps[number], pixels


@dataclass(frozen=True)
class _Track:
    """How the picture of a file stands in time, and the shape of its pixels."""

    rate: Fraction
    like: Clip | None

    @property
    def start(self) -> Fraction:
        return self.like.start if self.like else Fraction(0)

    @property
    def ticks(self) -> Fraction:
        """Ticks a second on which frames stand exactly, or as nearly as MP4 can count."""
        if self.like is None:
            return self.rate
        told = lcm(self.start.denominator, self.like.tick.denominator)
        return Fraction(next(t for t in (lcm(told, self.rate.numerator), told, FINEST) if t <= FINEST))

    def added_to(self, out: Any, pixels: Tensor) -> Any:
        """Add the stream, as large as a frame [C, H, W]."""
        stream = add_h264(out, pixels, self.rate, aspect=self.like.aspect if self.like else Fraction(1))
        stream.codec_context.time_base = 1 / self.ticks
        return stream


def _encode(part: Path, timed: Iterable[tuple[Fraction, Tensor]], track: _Track, sound: Path | None) -> int:
    import av

    count, stream, place = 0, None, None
    scales = dict.fromkeys(("video_track_timescale", "movie_timescale"), str(track.ticks)) if track.like else {}
    with ExitStack() as opened:
        out = opened.enter_context(av.open(str(part), "w", format="mp4", options=scales))
        source = opened.enter_context(open_video(sound)) if sound and _has_sound(sound) else None
        audio = out.add_stream_from_template(source.streams.audio[0]) if source else None
        for shown, pixels in timed:
            stream = stream or track.added_to(out, pixels)
            # A damaged file's time may stand still or go back, which MP4 cannot hold.
            wanted = round((track.start + shown) * track.ticks)
            place = wanted if place is None else max(wanted, place + 1)
            frame = to_video_frame(pixels, place, track.ticks)
            frame.duration = round(track.ticks / track.rate)
            out.mux(stream.encode(frame))
            count += 1
        if stream is None:
            raise AtelierError("There are no frames to write. Give a clip with at least one frame.")
        out.mux(stream.encode(None))
        if source and audio:
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = audio
                    out.mux(packet)
    return count


# Few frames wait in the encoder, so that a stopped run ends at once.
PROMPT = {"preset": "veryfast", "rc-lookahead": "8"}


def add_h264(
    out: Any,
    pixels: Tensor,
    rate: Fraction,
    quality: int = QUALITY,
    aspect: Fraction = Fraction(1),
    prompt: bool = False,
) -> Any:
    """Add an H.264 stream to an opened file of PyAV.

    pixels   [C, H, W], a frame as large as all others
    rate     frames per second
    quality  constant rate factor, 0 (lossless) .. 51
    aspect   width of a pixel by its height
    prompt   encode fast and hold few frames back, for a somewhat larger file
    """
    import av

    stream = out.add_stream("libx264", rate=rate, options={"crf": str(quality)} | (PROMPT if prompt else {}))
    height, width = pixels.shape[-2:]
    stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / rate
    context.sample_aspect_ratio = aspect
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = av.video.reformatter.ColorRange.MPEG
    return stream


def to_video_frame(pixels: Tensor, number: int, rate: Fraction) -> Any:
    """Make a frame of PyAV, yuv420p in BT.709.

    pixels  [C, H, W] in 0..1: grey, or colours first; what else there is stays out
    number  its place in the stream
    rate    frames per second
    """
    import av

    colours = pixels[:3] if pixels.shape[0] > 2 else pixels[:1].expand(3, -1, -1)
    even = even_sides(colours.float())
    array = (even.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
    frame = av.VideoFrame.from_ndarray(array, format="rgb24")
    # Players take untagged HD for BT.709: convert to it and say so, or reds and greens shift.
    frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range="MPEG")
    frame.colorspace, frame.color_range = BT709, av.video.reformatter.ColorRange.MPEG
    frame.pts, frame.time_base = number, 1 / rate
    return frame


def _has_sound(path: Path) -> bool:
    with open_video(path) as container:
        return bool(container.streams.audio)


def even_sides(pixels: Tensor) -> Tensor:
    """Repeat the last row or column where a side is odd."""
    height, width = pixels.shape[-2:]
    return torch.nn.functional.pad(pixels[None], (0, width % 2, 0, height % 2), mode="replicate")[0]
