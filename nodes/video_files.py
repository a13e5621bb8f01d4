"""Videos that nodes write, from file to file: where they lie, what they are called, how a run is followed and shown."""

import logging
from contextlib import closing
from pathlib import Path
from time import monotonic

from comfy_api.latest import InputImpl, io, ui
from PIL import Image
from torch import Tensor

from ..core.errors import AtelierError
from ..core.frames.stream import Report, others, partial_of
from ..core.images import to_picture, within
from . import host
from .written import remember

PREVIEW, PREVIEW_SECONDS = 384, 0.5  # pixels of the longer side; at most so often
LONGEST_STEM = 180  # bytes of a name that is taken from a file
THERE = "The file was there already, made of the same video in the same way"

log = logging.getLogger("flux_atelier")


def name_input(optional: bool = False) -> io.String.Input:
    """How the video's name begins."""
    return io.String.Input(
        "name",
        default="",
        optional=optional,
        tooltip="Begins the file's name in output/flux_atelier/video; empty: the video's own name.",
    )


def told_name(name: str | None) -> bool | str:
    """What validate_inputs answers to a name."""
    return host.told(lambda text: _place(text.strip() or "video", "0"), name)


def video_path(source: host.VideoSource, name: str, key: str) -> Path:
    """Where a video goes: output/flux_atelier/video/<name or the source's>-<8 digits of its key>.mp4.

    Raises AtelierError for a name that leads out or is too long.
    """
    return _place(name.strip() or within_bytes(source.stem), key[:8])


def within_bytes(name: str) -> str:
    """The beginning of a name that file systems can hold."""
    return name.encode()[:LONGEST_STEM].decode(errors="ignore")


def _place(stem: str, key: str) -> Path:
    return host.inside(host.output_folder("flux_atelier", "video"), f"{stem}-{key}.mp4")


def fitting(source: Path, out: Path) -> tuple[Path, tuple[str, ...]]:
    """The same place with an ending whose container can hold the source's sound, and the streams that it cannot hold."""
    try:
        return out, others(source, out)[1]
    except AtelierError:  # MP4 cannot hold the sound; Matroska holds nearly everything
        out = out.with_suffix(".mkv")
        return out, others(source, out)[1]


class Previews:
    """Small pictures of frames, at most about twice a second."""

    def __init__(self):
        self.next = 0.0

    def of(self, frame: Tensor | None) -> Image.Image | None:
        """A picture of a frame [C, H, W], or None if there was one a moment ago."""
        if frame is None or monotonic() < self.next:
            return None
        self.next = monotonic() + PREVIEW_SECONDS
        colours = frame[:3] if len(frame) > 2 else frame[:1].expand(3, -1, -1)
        return within(to_picture(colours), PREVIEW)


def followed(steps, out: Path, node_id: str | None) -> Report:
    """Run a film's steps to their end with the node's bar and previews; a cancel leaves a part that plays."""
    progress, previews = None, Previews()
    try:
        with closing(steps):
            for step in steps:
                progress = progress or host.Progress(max(1, step.total), node_id)
                progress.total = max(progress.total, step.total)
                progress.at(min(step.done, progress.total), previews.of(step.frame))
    except BaseException:
        if partial_of(out).is_file():
            log.info(
                "Stopped. What is done plays from %s; the same node with the same inputs goes on.", partial_of(out)
            )
        raise
    return step.report


def shown(out: Path, told: str, left_out: tuple[str, ...] = ()) -> io.NodeOutput:
    """The video, and a text that says what it is.

    left_out  streams that the container cannot hold
    """
    remember(out)
    lines = [told, str(out)]
    if left_out:
        lines.append(f"left out, since {out.suffix} cannot hold it: {', '.join(left_out)}")
    return io.NodeOutput(InputImpl.VideoFromFile(str(out)), ui=ui.PreviewText("\n".join(lines)))
