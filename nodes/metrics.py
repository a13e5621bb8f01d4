"""Restyled clips beside their sources: in figures, and before the eyes, as pictures and as videos."""

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from comfy_api.latest import InputImpl, io, ui

from ..core.errors import AtelierError
from ..core.evaluation.metric_plot import MOST_CLIPS, check_names, write_measured
from ..core.evaluation.metrics import judge_clips, score_list, score_table
from ..core.files import write_whole
from ..core.frames.video import add_h264, frame_rate, open_video, probe, stamped_frames, to_video_frame
from ..core.images import to_image
from . import host
from .analysis import shown
from .frames import CATEGORY

# What browsers play without help: in each container the codecs of picture and sound.
PLAYED = {
    "mp4": ({"h264", "av1", "vp9"}, {"aac", "mp3", "opus", "flac"}),
    "webm": ({"vp8", "vp9", "av1"}, {"opus", "vorbis"}),
}
PLAIN = ("yuv420p", "yuvj420p")
SOUND = 48000  # Hz
CHUNK = 2**24  # bytes copied between two looks for a cancel


def metrics_folder(name: str) -> Path:
    """Where figures go: output/flux_atelier/metrics/<name>; raises AtelierError for a name that leads out of it."""
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
        write_film(out, watched(frames_of(parts.images), progress), rate, wave_frames(parts.audio))
    else:
        with host.video_file(video) as source:
            container = played_as(source)
            if container:
                out = link(source, host.temp_file(f"{stem}.{container}"))
            else:
                clip = probe(source)
                progress = host.Progress(max(1, clip.frames), node_id)
                frames = watched(evenly(stamped_frames(source), clip.rate), progress)
                write_film(out, frames, clip.rate, sound_frames(source, clip.start), clip.aspect)
    with open_video(out) as container:
        rate, heard = float(frame_rate(container.streams.video[0])), bool(container.streams.audio)
    return {"filename": out.name, "subfolder": "", "type": "temp", "rate": rate, "sound": heard}


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


def evenly(stamped: Iterable[tuple[Fraction, torch.Tensor]], rate: Fraction) -> Iterator[torch.Tensor]:
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
    frames: Iterable[torch.Tensor],
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


def _film(part: Path, frames: Iterable[torch.Tensor], rate: Fraction, sound: Iterator[Any], aspect: Fraction) -> None:
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
                host.check_cancel()
            out.mux(heard.encode(None))


NODES = [MeasureClip, ComparePictures, CompareVideos]
