"""ComfyUI's VIDEO as a file on disk."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from uuid import uuid4

from ...core.files import digest_of, digest_tensors
from ...core.frames.stream import source_key
from .folders import temp_file

FINE = 10.0  # x264's constant rate factor of a copy that is only read


@dataclass(frozen=True)
class VideoSource:
    """A VIDEO as a file.

    path  the file, its own or a copy
    stem  what to call a file made of it
    key   tells the same film again, also where the file is a copy of another name
    """

    path: Path
    stem: str
    key: str


@contextmanager
def video_source(video) -> Iterator[VideoSource]:
    """A VIDEO as a file on disk: its own where it has one, else a copy in the temp folder that is removed after."""
    own = None if made_of_frames(video) else video.get_stream_source()
    if isinstance(own, str) and not trimmed(video):
        path = Path(own)
        yield VideoSource(path, path.stem, source_key(path))
        return
    copy = temp_file(f"flux_atelier_{uuid4().hex}.mp4")
    try:
        if isinstance(own, BytesIO) and not trimmed(video):
            copy.write_bytes(own.getbuffer())
        else:
            video.save_to(str(copy), crf=FINE)
        stem = Path(own).stem if isinstance(own, str) else "video"
        yield VideoSource(copy, stem, _key(video, own))
    finally:
        copy.unlink(missing_ok=True)


def _key(video, own: str | BytesIO | None) -> str:
    """What a VIDEO is by what it is made of, since a copy may be encoded a little otherwise each time."""
    window = [float(t) for t in video.get_active_trim_window()]
    if isinstance(own, str):
        return digest_of(source_key(Path(own)), window)
    if own is not None:
        return digest_of(hashlib.blake2b(own.getbuffer()).hexdigest(), window)
    parts = video.get_components()
    frames = [digest_tensors({"frame": frame}) for frame in parts.images]
    sound = parts.audio and [digest_tensors({"sound": parts.audio["waveform"]}), parts.audio["sample_rate"]]
    return digest_of(frames, sound, str(parts.frame_rate), window)


@contextmanager
def video_file(video) -> Iterator[Path]:
    """The file of a video_source alone."""
    with video_source(video) as source:
        yield source.path


def made_of_frames(video) -> bool:
    """Whether a VIDEO is frames and sound in memory, which its stream would only encode."""
    from comfy_api.latest import InputImpl

    return isinstance(video, InputImpl.VideoFromComponents)


def trimmed(video) -> bool:
    """Whether a VIDEO is only a part of its file."""
    window = getattr(video, "get_active_trim_window", None)
    return window is not None and any(window())
