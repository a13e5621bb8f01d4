"""Videos as browsers play them: which do as they are, and others made anew as H.264 and AAC."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import AtelierError
from ..files import write_whole
from .video import add_h264, open_video, to_video_frame

# What browsers play without help: in each container the codecs of picture and sound.
PLAYED = {
    "mp4": ({"h264", "av1", "vp9"}, {"aac", "mp3", "opus", "flac"}),
    "webm": ({"vp8", "vp9", "av1"}, {"opus", "vorbis"}),
}
PLAIN = ("yuv420p", "yuvj420p")
SOUND = 48000  # Hz


def played_as(path: Path) -> str | None:
    """The ending under which browsers play a file as it is, or None."""
    with open_video(path) as container:
        kind = next((k for k in PLAYED if k in container.format.name.split(",")), None)
        if kind is None:
            return None
        picture, sounds = container.streams.video[0], container.streams.audio
        pictures_played, sounds_played = PLAYED[kind]
        plain = picture.codec.canonical_name in pictures_played and picture.pix_fmt in PLAIN
        heard = all(s.codec_context and s.codec.canonical_name in sounds_played for s in sounds)
        return kind if plain and heard else None


def evenly(stamped: Iterable[tuple[Fraction, Tensor]], rate: Fraction) -> Iterator[Tensor]:
    """Frames at one rate from frames with their times: each stays until the next one's turn, which may be never."""
    last, number = None, 0
    for shown_at, frame in stamped:
        while last is not None and (number + Fraction(1, 2)) / rate < shown_at:
            yield last
            number += 1
        last = frame
    if last is not None:
        yield last


def wave_frames(audio: dict | None) -> Iterator[Any]:
    """ComfyUI's AUDIO as frames of PyAV, a second each; one or two channels of the first of a batch."""
    import av

    if audio is None:
        return
    rate = int(audio["sample_rate"])
    wave = audio["waveform"][0, :2].float().cpu()
    for second in wave.split(rate, 1) if wave.shape[1] else ():
        frame = av.AudioFrame.from_ndarray(second.contiguous().numpy(), "fltp", ("mono", "stereo")[len(wave) - 1])
        frame.sample_rate = rate
        yield frame


def sound_frames(path: Path, start: Fraction) -> Iterator[Any]:
    """The decoded sound of a file from a time in seconds on, which becomes zero; none where it has none."""
    with open_video(path) as container:
        for frame in container.decode(audio=0) if container.streams.audio else ():
            if frame.pts is not None:
                frame.pts -= round(start / frame.time_base)
            if frame.pts is None or frame.pts >= 0:
                yield frame


def write_film(
    out: Path,
    frames: Iterable[Tensor],
    rate: Fraction,
    sound: Iterator[Any],
    aspect: Fraction = Fraction(1),
) -> Path:
    """Write frames [C, H, W] and a sound as an MP4 that browsers play, whole or not at all.

    rate    frames per second
    sound   frames of PyAV
    aspect  width of a pixel by its height
    """
    return write_whole(out, lambda part: _film(part, frames, rate, sound, aspect))


def _film(part: Path, frames: Iterable[Tensor], rate: Fraction, sound: Iterator[Any], aspect: Fraction) -> None:
    import av

    first = next(sound, None)
    # One channel stays one: made into two, it would sound softer than the same sound of a file that is linked.
    layout = "mono" if first is not None and first.layout.nb_channels == 1 else "stereo"
    with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as out:
        picture, heard = None, None
        for number, pixels in enumerate(frames):
            if picture is None:
                picture = add_h264(out, pixels, rate, aspect=aspect, prompt=True)
                heard = out.add_stream("aac", rate=SOUND, layout=layout) if first is not None else None
            out.mux(picture.encode(to_video_frame(pixels, number, rate)))
        if picture is None:
            raise AtelierError("There are no frames to show. Give a video with at least one frame.")
        out.mux(picture.encode(None))
        if heard is not None:
            resampler = av.AudioResampler("fltp", layout, SOUND)
            for frame in chain((first,), sound, (None,)):
                for even in resampler.resample(frame):
                    out.mux(heard.encode(even))
            out.mux(heard.encode(None))
