"""From pictures on disk to a training set: load, curate, filter, caption by a template."""

from dataclasses import replace
from pathlib import Path

from comfy_api.latest import io, ui

from ..core.dataset.contact_sheet import contact_sheet
from ..core.dataset.curate import CurateOptions, curate
from ..core.dataset.expression import check_syntax
from ..core.dataset.opening import STORE, edits, hold_out, listing, open_dataset, remarks, store_name
from ..core.dataset.scan import Progress
from ..core.dataset.selection import select
from ..core.dataset.templates import fill_captions, write_sidecars
from ..core.dataset.unpack import STYLES, Take
from ..core.dataset.view import View
from ..core.images import to_image
from ..core.options import nest, parse
from . import host, types
from .widgets import inputs_of

CATEGORY = "Flux Atelier/Dataset"
ALL = "all"
FURTHER = ("max_noise", "max_letterbox", "min_entropy", "min_resolution", "max_clipped", "longest_aspect")


class LoadDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierLoadDataset",
            display_name="Load Dataset",
            category=CATEGORY,
            description="Read a folder, archive, table or video into a dataset: every picture is opened once and measured.",
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Folder, .zip, .tar, .parquet or video below ComfyUI's input, output or datasets folder.",
                ),
                io.Int.Input(
                    "validation",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Set one in so many pictures aside for the validation loss; 0 for none.",
                ),
                *take_inputs(),
            ],
            outputs=[types.Dataset.Output(display_name="dataset"), io.String.Output(display_name="summary")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder, validation, **take):
        path = host.picture_source(folder)
        return listing(path), edits(store_folder(path, taken(take)) / STORE), validation, tuple(sorted(take.items()))

    @classmethod
    def validate_inputs(cls, folder=None):
        return host.told(host.picture_source, folder)

    @classmethod
    def execute(cls, folder: str, validation: int, **take) -> io.NodeOutput:
        view = load(host.picture_source(folder), taken(take), cls.hidden.unique_id)
        view = hold_out(view, validation)
        summary = view.summary()
        return io.NodeOutput(view, summary, ui=ui.PreviewText("\n".join([summary, *remarks(view)])))


def take_inputs() -> list:
    """Which part of a source is taken."""
    return [
        io.Combo.Input(
            "style",
            options=[ALL, *STYLES],
            default=ALL,
            optional=True,
            tooltip="Of WikiArt, as folders or tables: only this style.",
        ),
        io.String.Input("artist", default="", optional=True, tooltip="Of WikiArt: only this artist, as claude-monet."),
        io.Float.Input(
            "seconds", default=1.0, min=0.01, max=3600, step=0.1, optional=True, tooltip="Of a video: one frame in so many seconds."
        ),
        io.Float.Input(
            "scene",
            default=0.0,
            min=0,
            max=1,
            step=0.01,
            optional=True,
            tooltip="Of a video: change that starts a scene, one frame each; 0.1 is usual, 0 takes frames by time.",
        ),
    ]  # fmt: skip


def taken(given: dict) -> Take:
    """What a node's inputs take of a source."""
    style = given.get("style", ALL)
    return replace(Take(**given), style="" if style == ALL else style)


def store_folder(path: Path, take: Take) -> Path:
    """Where the store of a source lies."""
    return host.datasets_folder() / store_name(path, take)


def load(path: Path, take: Take, node_id: str | None) -> View:
    """Bring a source's store up to date and view it, showing how far it is; a cancel loses nothing."""
    return finish(open_dataset(path, store_folder(path, take), take), node_id)


def finish(steps, node_id: str | None, total: int = 0):
    """Run steps to their end, moving the node's bar; a cancel closes them. Returns what comes of them.

    total  how many there are, where the steps are plain numbers
    """
    progress = None
    try:
        while True:
            step = next(steps)
            done, whole = (step.done, step.total) if isinstance(step, Progress) else (step, total)
            progress = progress or host.Progress(max(1, whole), node_id)
            progress.at(min(done, progress.total))
    except StopIteration as stop:
        return stop.value
    finally:
        steps.close()


class CurateDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierCurateDataset",
            display_name="Curate Dataset",
            category=CATEGORY,
            description="Leave out small, blurred, noisy and repeated pictures, each with its reason. Files are never touched.",
            is_output_node=True,
            inputs=[
                types.Dataset.Input("dataset", tooltip="The pictures."),
                *inputs_of(CurateOptions, ("min_side", "min_sharpness", "duplicates")),
                *inputs_of(CurateOptions, FURTHER, optional=True),
            ],
            outputs=[
                types.Dataset.Output(display_name="dataset"),
                io.Image.Output(display_name="contact sheet"),
                io.String.Output(display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset: View, **options) -> io.NodeOutput:
        chosen = parse(CurateOptions, nest(CurateOptions, options), "Curate Dataset")
        view = finish(curate(dataset, chosen), cls.hidden.unique_id, len(dataset))
        sheet = to_image(contact_sheet(view))
        return io.NodeOutput(view, sheet, view.summary(), ui=ui.PreviewImage(sheet, cls=cls))


class FilterDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierFilterDataset",
            display_name="Filter Dataset",
            category=CATEGORY,
            description="Take the pictures that an expression selects, in an order, as many as wanted.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="The pictures."),
                io.String.Input(
                    "expression",
                    default="",
                    multiline=True,
                    tooltip="Such as: sharpness > 0.4 and faces == 1 and not tag:watermark. Empty takes all.",
                ),
                io.String.Input(
                    "order", default="", tooltip="A name or score to sort by, such as -sharpness; empty leaves the order."
                ),
                io.Int.Input("most", default=0, min=0, max=10_000_000, tooltip="As many as this at most; 0 for all."),
            ],
            outputs=[
                types.Dataset.Output(display_name="dataset"),
                types.Dataset.Output(display_name="the others"),
                io.String.Output(display_name="summary"),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, expression=None):
        return host.told(check_syntax, expression)

    @classmethod
    def execute(cls, dataset: View, expression: str, order: str, most: int) -> io.NodeOutput:
        found = select(dataset, expression, order.strip(), most)
        mine = set(found.ids)
        others = dataset.only(own for own in dataset.ids if own not in mine)
        summary = f"{len(found)} of {len(dataset)} pictures selected"
        return io.NodeOutput(found, others, summary, ui=ui.PreviewText(summary))


class CaptionDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierCaptionDataset",
            display_name="Caption Dataset",
            category=CATEGORY,
            description="Give pictures without a person's caption one from a template. What a person wrote is never overwritten.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="The pictures."),
                io.String.Input(
                    "template",
                    default="a picture of {name}",
                    multiline=True,
                    tooltip="{name} is the file's, {folder} its folder's; also {trigger}, {caption}, {tags}, {style}, {artist}, {genre}.",
                ),
                io.String.Input("trigger", default="", tooltip="Value of {trigger} in the template."),
                io.Boolean.Input(
                    "write_files",
                    default=False,
                    tooltip="Write the captions as .txt files beside pictures that have none.",
                ),
            ],
            outputs=[types.Dataset.Output(display_name="dataset")],
        )

    @classmethod
    def execute(cls, dataset: View, template: str, trigger: str, write_files: bool) -> io.NodeOutput:
        captioned = fill_captions(dataset, template, trigger)
        if write_files:
            write_sidecars(captioned)
        rows = captioned.rows(0, 8)
        examples = [f"{row.path}: {captioned.captions_of(row)[0].text}" for row in rows]
        return io.NodeOutput(captioned, ui=ui.PreviewText("\n".join(examples)))


NODES = [LoadDataset, CurateDataset, FilterDataset, CaptionDataset]
