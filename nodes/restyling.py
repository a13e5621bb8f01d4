"""Clips drawn again in the style of a LoRA, coherent in time: a batch of frames, or a video from file to file."""

import torch
from comfy_api.latest import io

from ..core.counting import counted
from ..core.errors import AtelierError
from ..core.frames.restyle import RestyleOptions, restyle
from ..core.frames.restyle_file import Film, FilmOptions, canvas_size, film_key, restyle_file
from ..core.frames.video import probe
from ..core.style.structure import TOKEN, continued, layout_kept
from . import host
from .color import planes, with_planes
from .host.clips import ClipPainter
from .style import STRUCTURE, UNTIL
from .video_files import THERE, Previews, fitting, followed, name_input, shown, told_name, video_path
from .widgets import drawing_inputs, inputs_of
from .written import removals

CATEGORY = "Flux Atelier/Frames"


def painter_inputs() -> list:
    """What draws a frame."""
    return [
        io.Model.Input("model", tooltip="The model, with the LoRA applied; it stays as it is."),
        io.Clip.Input("clip", tooltip="The CLIP."),
        io.Vae.Input("vae", tooltip="The VAE."),
        io.String.Input(
            "prompt",
            default="",
            multiline=True,
            tooltip="What the clip shows: one line for all, or one line for each shot; the last one serves all further shots.",
        ),
        io.Float.Input(
            "strength",
            default=0.6,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Share of the steps that are gone back to noise: little keeps the frames, 1 forgets them.",
        ),
        io.Float.Input(
            "structure",
            default=STRUCTURE,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How far the coarse shapes follow the source while a frame is drawn: 0 off, 1 fully.",
        ),
        *drawing_inputs("Seed of the noise.", steps="Sampling steps of the whole way."),
        *inputs_of(RestyleOptions),
    ]


def painter_of(size: tuple[int, int], drawing: dict) -> ClipPainter:
    """What draws frames of a height and width, out of a node's inputs."""
    lines = tuple(line.strip() for line in drawing["prompt"].splitlines() if line.strip()) or ("",)
    return ClipPainter(
        drawing["model"], drawing["clip"], drawing["vae"], lines, drawing["guidance"], drawing["strength"],
        drawing["steps"], layout_kept(drawing["structure"], UNTIL, size),
    )  # fmt: skip


def options_of(values: dict) -> RestyleOptions:
    return RestyleOptions(**{name: values[name] for name in RestyleOptions.model_fields})


class RestyleFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierRestyleFrames",
            display_name="Restyle Frames",
            category=CATEGORY,
            description="Draw the frames of a clip again with the model and its LoRA, without flicker. Long clips: Restyle Video.",
            hidden=[io.Hidden.unique_id],
            inputs=[io.Image.Input("images", tooltip="The frames in order, of any size."), *painter_inputs()],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, images, **values) -> io.NodeOutput:
        if not len(images):
            raise AtelierError("There are no frames. Give at least one.")
        height, width = images.shape[1:3]
        frames = (continued(frame[None])[0] for frame in planes(images))
        canvas = painter_of((height, width), values).canvas(
            height + -height % TOKEN, width + -width % TOKEN, values["seed"]
        )
        progress, previews = host.Progress(len(images), cls.hidden.unique_id), Previews()
        out = torch.empty_like(planes(images))
        for number, frame in enumerate(restyle(frames, canvas, options_of(values))):
            seen = frame[:, :height, :width]
            out[number] = seen
            progress.at(number + 1, previews.of(seen))
        return io.NodeOutput(with_planes(images, out))


class RestyleVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierRestyleVideo",
            display_name="Restyle Video",
            category=CATEGORY,
            description="Draw a video again with the model and its LoRA, without flicker, from file to file; sound is copied. "
            "A cancelled run leaves a part that plays, and goes on from it.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Video.Input("video", tooltip="The video."),
                *painter_inputs(),
                *inputs_of(FilmOptions),
                name_input(),
            ],
            outputs=[io.Video.Output(display_name="video")],
        )

    @classmethod
    def validate_inputs(cls, name=None):
        return told_name(name)

    @classmethod
    def fingerprint_inputs(cls, **_):
        """A video that was removed is made again."""
        return removals()

    @classmethod
    def execute(cls, video, name: str, **values) -> io.NodeOutput:
        part = FilmOptions(**{n: values[n] for n in FilmOptions.model_fields})
        options = options_of(values)
        with host.video_source(video) as source:
            size = canvas_size(probe(source.path), part.longest_side)
            painter = painter_of(size, values)
            key = film_key(source.key, part, painter.key(), values["seed"], options.model_dump())
            out, left_out = fitting(source.path, video_path(source, name, key))
            if out.is_file():
                return shown(out, THERE, left_out)
            film = Film(source.path, out, part, key)
            steps = restyle_file(film, painter.canvas(*size, values["seed"]), options)
            report = followed(steps, out, cls.hidden.unique_id)
        return shown(out, counted(report.frames, "frame"), left_out)


NODES = [RestyleFrames, RestyleVideo]
