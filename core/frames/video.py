"""Video files in and out through PyAV, one frame at a time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import AtelierError
from ..files import write_whole
from .interpolate import Between, interpolate

BT709 = 1  # its number in the H.264 standard, for matrix, primaries and transfer alike


@dataclass(frozen=True)
class Clip:
    """What a video file says of itself; `frames` is 0 where the container does not tell."""

    width: int
    height: int
    rate: Fraction
    frames: int


def probe(path: Path) -> Clip:
    """Look into a video file; raises AtelierError if it has no readable video stream."""
    with _open(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.base_rate or Fraction(24)
        first = next(container.decode(video=0), None)
        if first is None:
            raise AtelierError(f"{Path(path).name} has no frame that can be decoded. Check the file.")
        height, width = upright(np.empty((first.height, first.width)), first.rotation).shape
        return Clip(width, height, Fraction(rate), stream.frames)


def upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """Turn a decoded frame as its file asks, in degrees: phones store films lying on their side."""
    return np.ascontiguousarray(np.rot90(pixels, round((rotation or 0) / 90) % 4))


def _open(path: Path):
    import av

    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise AtelierError(f"{Path(path).name} cannot be opened as a video ({error}). Check the file.") from None
    if not container.streams.video:
        container.close()
        raise AtelierError(f"{Path(path).name} has no video stream. Choose a video file.")
    return container


def read_frames(path: Path) -> Iterator[Tensor]:
    """Decode a video's frames one by one, [3, H, W] float32 in 0..1."""
    with _open(path) as container:
        for frame in container.decode(video=0):
            pixels = torch.from_numpy(upright(frame.to_ndarray(format="rgb24"), frame.rotation))
            yield pixels.permute(2, 0, 1).float() / 255


def write_video(path: Path, frames: Iterable[Tensor], rate: Fraction, sound: Path | None = None) -> int:
    """Encode frames as H.264 in MP4, one by one; returns how many.

    path    written whole or not at all; stopping in the middle leaves no file
    frames  [3, H, W] in 0..1; an odd last row or column is repeated, as H.264 wants even sides
    rate    frames per second
    sound   a file whose first audio stream is copied unchanged
    Raises AtelierError if there are no frames.
    """
    count = 0

    def encode(part: Path) -> None:
        nonlocal count
        count = _encode(part, frames, Fraction(rate), sound)

    write_whole(Path(path), encode)
    return count


def _encode(part: Path, frames: Iterable[Tensor], rate: Fraction, sound: Path | None) -> int:
    import av

    count, stream = 0, None
    with av.open(str(part), "w", format="mp4") as out:
        source = _open(sound) if sound and _has_sound(sound) else None
        audio = out.add_stream_from_template(source.streams.audio[0]) if source else None
        for pixels in frames:
            even = even_sides(pixels)
            if stream is None:
                stream = out.add_stream("libx264", rate=rate, options={"crf": "17"})
                stream.width, stream.height, stream.pix_fmt = even.shape[2], even.shape[1], "yuv420p"
                context = stream.codec_context
                context.colorspace = context.color_primaries = context.color_trc = BT709
                context.color_range = av.video.reformatter.ColorRange.MPEG
            array = (even.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            # Players take untagged HD for BT.709: convert to it and say so, or reds and greens shift.
            frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range="MPEG")
            frame.colorspace, frame.color_range = BT709, av.video.reformatter.ColorRange.MPEG
            frame.pts = count
            frame.time_base = 1 / rate
            out.mux(stream.encode(frame))
            count += 1
        if stream is None:
            raise AtelierError("There are no frames to write. Give a clip with at least one frame.")
        out.mux(stream.encode(None))
        if source and audio:
            with source:
                for packet in source.demux(source.streams.audio[0]):
                    if packet.dts is not None:
                        packet.stream = audio
                        out.mux(packet)
    return count


def _has_sound(path: Path) -> bool:
    with _open(path) as container:
        return bool(container.streams.audio)


def even_sides(pixels: Tensor) -> Tensor:
    """Repeat the last row or column where a side is odd."""
    height, width = pixels.shape[-2:]
    return torch.nn.functional.pad(pixels[None], (0, width % 2, 0, height % 2), mode="replicate")[0]


def interpolate_video(source: Path, out: Path, factor: int, between: Between) -> int:
    """Interpolate a video file into another, streaming; the sound is copied, the length stays.

    -> number of frames written
    """
    clip = probe(source)
    return write_video(out, interpolate(read_frames(source), factor, between), clip.rate * factor, sound=source)
