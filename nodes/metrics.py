"""Restyled clips beside their sources: in figures, and before the eyes, as pictures and as videos."""

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from comfy_api.latest import InputImpl, io, ui

from ..core.errors import AtelierError
from ..core.evaluation.metric_plot import LONGEST, MOST_CLIPS, check_names, write_measured
from ..core.evaluation.metrics import judge_clips, score_list, score_table
from ..core.files import write_whole
from ..core.frames.playable import evenly, played_as, sound_frames, wave_frames, write_film
from ..core.frames.video import frame_rate, open_video, probe, stamped_frames
from ..core.images import to_image
from . import host
from .analysis import shown
from .frames import CATEGORY
from .written import remember, removals

CHUNK = 2**24  # bytes copied between two looks for a cancel


def metrics_folder(name: str) -> Path:
    """Where figures go: output/flux_atelier/metrics/<name>; raises AtelierError for a name that leads out or is none."""
    if not name.strip().isprintable():
        raise AtelierError(f"The name is {name!r}, which is no name of a folder. Use letters, digits and spaces.")
    if any(len(part.encode()) > LONGEST for part in Path(name.strip()).parts):
        raise AtelierError(f"A folder's name has more than {LONGEST} bytes. Give one of at most {LONGEST} bytes.")
    return host.named(host.output_folder("flux_atelier", "metrics"), name)


def called(labels: str, sockets: Iterable[str]) -> list[str]:
    """A name for each clip: those written, then the sockets'; raises AtelierError for names that are none."""
    sockets = list(sockets)
    written = [word.strip() for word in labels.split(",")] if labels.strip() else []
    names = [*written, *sockets[len(written) :]][: len(sockets)]
    check_names(names)
    return names


class MeasureClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        clip = io.Autogrow.TemplatePrefix(
            io.Image.Input("clip", tooltip="The frames of a restyled clip."), prefix="clip", min=1, max=MOST_CLIPS
        )
        return io.Schema(
            node_id="FluxAtelierMeasureClip",
            display_name="Measure Clip",
            category=CATEGORY,
            description="How restyled clips are beside their source, without weights: likeness, steadiness, flicker, "
            "structure and colour, frame by frame.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("source", tooltip="The frames before they were restyled; cuts are found on them."),
                io.Autogrow.Input("clips", template=clip, tooltip="Restyled clips, as many frames and as large."),
                io.String.Input(
                    "labels", default="drawn", tooltip="Names of the clips in the table, separated by commas."
                ),
                io.String.Input(
                    "name", default="clip", tooltip="Name of the folder in output/flux_atelier/metrics for the files."
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="The picture whose palette is wanted, the first of a batch; the source's own without it.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table"),
                io.Image.Output(display_name="plot"),
                io.String.Output(display_name="folder"),
            ],
        )

    @classmethod
    def validate_inputs(cls, name=None, labels="drawn", clips=None):
        sockets = list(clips or [f"clip{i}" for i in range(MOST_CLIPS)])
        found = (host.told(metrics_folder, name), host.told(called, labels, sockets))
        return next((told for told in found if told is not True), True)

    @classmethod
    def fingerprint_inputs(cls, **_):
        """A file that was removed is made again."""
        return removals()

    @classmethod
    def execute(cls, source, clips: dict, labels: str, name: str, reference=None) -> io.NodeOutput:
        folder, given = metrics_folder(name), dict(zip(called(labels, clips), clips.values(), strict=True))
        for label, clip in given.items():
            if len(clip) != len(source):
                raise AtelierError(
                    f"The clip {label!r} has {len(clip)} frames, the source {len(source)}. Give clips of one length."
                )
        progress = host.Progress(len(source) * len(given), cls.hidden.unique_id)
        scores = judge_clips(
            frames_of(source),
            {label: frames_of(clip) for label, clip in given.items()},
            next(frames_of(reference)) if reference is not None else None,
            watch=progress.at,
        )
        plot = to_image(write_measured(folder, scores))
        for file in folder.iterdir():
            remember(file)
        told = f"{score_list(scores)}\n{folder}"
        return io.NodeOutput(score_table(scores), plot, str(folder), ui=shown([plot], told, cls))


def frames_of(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """The frames of an IMAGE, [C, H, W] each."""
    return (image.permute(2, 0, 1) for image in images)


class ComparePictures(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierComparePictures",
            display_name="Compare Pictures",
            category=CATEGORY,
            description="Pictures before and after over each other, with a slider between them.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("before", tooltip="The pictures on the left of the slider."),
                io.Image.Input("after", tooltip="The pictures on the right; as many as before, or one side has one."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, before, after) -> io.NodeOutput:
        counts = len(before), len(after)
        if 0 in counts or (1 not in counts and counts[0] != counts[1]):
            raise AtelierError(
                f"There are {counts[0]} pictures before and {counts[1]} after. Give as many of both, or one of one."
            )
        progress, saved = host.Progress(sum(counts), cls.hidden.unique_id), []
        for image in (*before, *after):
            colours = image if image.shape[-1] > 2 else image[..., :1].expand(-1, -1, 3)
            picture = torch.nan_to_num(colours, nan=0.0)[None]
            saved += ui.PreviewImage(picture, cls=cls).as_dict()["images"]
            progress.at(len(saved))
        return io.NodeOutput(ui={"atelier_before": saved[: counts[0]], "atelier_after": saved[counts[0] :]})


class CompareVideos(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierCompareVideos",
            display_name="Compare Videos",
            category=CATEGORY,
            description="Videos before and after, played in step: beside each other, or over each other with a slider.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Video.Input("before", tooltip="The video on the left."),
                io.Video.Input("after", tooltip="The video on the right; its sound is the one that is heard."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, before, after) -> io.NodeOutput:
        node = cls.hidden.unique_id
        return io.NodeOutput(ui={"atelier_before": [to_show(before, node)], "atelier_after": [to_show(after, node)]})


def to_show(video, node_id: str | None) -> dict[str, Any]:
    """Put a VIDEO into the temp folder as a file that browsers play, and tell what the panel asks for.

    Its own file is linked where browsers play it; else it is made anew as H.264 and AAC, with its times kept.
    """
    stem = f"flux_atelier_{uuid4().hex}"
    out = host.temp_file(f"{stem}.mp4")
    if isinstance(video, InputImpl.VideoFromComponents):
        parts = video.get_components()
        count, rate = len(parts.images), Fraction(parts.frame_rate).limit_denominator(100_000)
        progress = host.Progress(count, node_id)
        write_film(out, watched(frames_of(parts.images), progress), rate, host.noticed(wave_frames(parts.audio)))
    else:
        with host.video_file(video) as source:
            container = played_as(source)
            if container:
                out = link(source, host.temp_file(f"{stem}.{container}"))
            else:
                clip = probe(source)
                progress = host.Progress(max(1, clip.frames), node_id)
                frames = watched(evenly(stamped_frames(source), clip.rate), progress)
                write_film(out, frames, clip.rate, host.noticed(sound_frames(source, clip.start)), clip.aspect)
    with open_video(out) as container:
        rate, heard = float(frame_rate(container.streams.video[0])), bool(container.streams.audio)
    return {"filename": out.name, "subfolder": "", "type": "temp", "rate": rate, "sound": heard}


def link(source: Path, out: Path) -> Path:
    """A second name for a file, or a copy where the file system has no such names; it goes with the temp folder."""
    try:
        os.link(source.resolve(), out)
    except OSError:
        write_whole(out, lambda part: copy(source, part))
    return out


def copy(source: Path, part: Path) -> None:
    with open(source, "rb") as given, open(part, "wb") as taken:
        while chunk := given.read(CHUNK):
            taken.write(chunk)
            host.check_cancel()


def watched(frames: Iterable[torch.Tensor], progress: host.Progress) -> Iterator[torch.Tensor]:
    """The same frames, with the node's bar moved and a cancel noticed at each."""
    for number, frame in enumerate(frames, 1):
        progress.at(min(number, progress.total))
        yield frame


NODES = [MeasureClip, ComparePictures, CompareVideos]
