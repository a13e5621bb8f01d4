"""ComfyUI's VIDEO as a file on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from .folders import temp_file


@contextmanager
def video_file(video) -> Iterator[Path]:
    """A VIDEO as a file on disk: its own where it has one, else a copy in the temp folder that is removed after."""
    source = video.get_stream_source()
    if isinstance(source, str) and not trimmed(video):
        yield Path(source)
        return
    copy = temp_file(f"flux_atelier_{uuid4().hex}.mp4")
    try:
        video.save_to(str(copy))
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def trimmed(video) -> bool:
    """Whether a VIDEO is only a part of its file."""
    window = getattr(video, "get_active_trim_window", None)
    return window is not None and any(window())
