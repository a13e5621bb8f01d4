"""From a folder to a training set: load, curate, caption."""

from pathlib import Path

from comfy_api.latest import io, ui

from ..core.dataset import folder
from ..core.dataset.captions import fill_captions, write_sidecars
from ..core.dataset.contact_sheet import contact_sheet
from ..core.dataset.curate import CurateOptions, curate
from ..core.dataset.record import Dataset
from ..core.files import digest_of
from ..core.images import to_image
from ..core.options import nest, parse
from . import host, types
from .widgets import inputs_of

CATEGORY = "Flux Atelier/Dataset"


def listing(path: Path) -> str:
    """A digest of a folder's names, sizes and times, captions included: what makes the node run again."""
    facts = [[p.as_posix(), p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(path.rglob("*")) if p.is_file()]
    return digest_of(facts)


class LoadDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierLoadDataset",
            display_name="Load Dataset",
            category=CATEGORY,
            description="Read a folder of pictures with their captions. Pictures are opened only where they are needed.",
            inputs=[
                io.String.Input(
                    "folder", default="", tooltip="Folder below ComfyUI's input, output or datasets folder."
                ),
                io.Int.Input(
                    "validation",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Set one in so many pictures aside for the validation loss; 0 for none.",
                ),
            ],
            outputs=[types.Dataset.Output(display_name="dataset"), io.String.Output(display_name="summary")],
        )

    @classmethod
    def fingerprint_inputs(cls, folder, validation):
        return listing(host.picture_folder(folder)), validation

    @classmethod
    def validate_inputs(cls, folder):
        return host.told(host.picture_folder, folder)

    @classmethod
    def execute(cls, folder: str, validation: int) -> io.NodeOutput:
        dataset = load(folder, validation)
        summary = dataset.summary()
        lines = [summary, *(f"skipped {s.path}: {s.reason}" for s in dataset.skipped)]
        return io.NodeOutput(dataset, summary, ui=ui.PreviewText("\n".join(lines)))


def load(name: str, validation: int) -> Dataset:
    return folder.load_folder(host.picture_folder(name), validation)


class CurateDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierCurateDataset",
            display_name="Curate Dataset",
            category=CATEGORY,
            description="Leave out small, blurred and repeated pictures, each with its reason. Files are never touched.",
            is_output_node=True,
            inputs=[types.Dataset.Input("dataset", tooltip="The pictures."), *inputs_of(CurateOptions)],
            outputs=[
                types.Dataset.Output(display_name="dataset"),
                io.Image.Output(display_name="contact sheet"),
                io.String.Output(display_name="summary"),
            ],
        )

    @classmethod
    def execute(cls, dataset: Dataset, **options) -> io.NodeOutput:
        chosen = curate(dataset, parse(CurateOptions, nest(CurateOptions, options), "Curate Dataset"))
        sheet = to_image(contact_sheet(chosen))
        return io.NodeOutput(chosen, sheet, chosen.summary(), ui=ui.PreviewImage(sheet, cls=cls))


class CaptionDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierCaptionDataset",
            display_name="Caption Dataset",
            category=CATEGORY,
            description="Give pictures without a caption one from a template. What a person wrote is never overwritten.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="The pictures."),
                io.String.Input(
                    "template",
                    default="a picture of {name}",
                    multiline=True,
                    tooltip="Caption for pictures without one: {name} is the file's, {folder} its folder's name, {trigger} the word below.",
                ),
                io.String.Input("trigger", default="", tooltip="Value of {trigger} in the template."),
                io.Boolean.Input(
                    "write_files",
                    default=False,
                    tooltip="Write the new captions as .txt files beside pictures that have none.",
                ),
            ],
            outputs=[types.Dataset.Output(display_name="dataset")],
        )

    @classmethod
    def execute(cls, dataset: Dataset, template: str, trigger: str, write_files: bool) -> io.NodeOutput:
        captioned = fill_captions(dataset, template, trigger)
        if write_files:
            write_sidecars(captioned)
        examples = [f"{r.path}: {r.captions[0].text}" for r in captioned.kept[:8]]
        return io.NodeOutput(captioned, ui=ui.PreviewText("\n".join(examples)))


NODES = [LoadDataset, CurateDataset, CaptionDataset]
