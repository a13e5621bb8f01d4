"""Datasets in and out: other trainers' formats, and ComfyUI's own lists of images and texts."""

from pathlib import Path

import torch
from comfy_api.latest import io, ui

from ..core.counting import counted
from ..core.dataset.exchange.exchanged import Target
from ..core.dataset.exchange.formats import FORMATS, import_rows
from ..core.dataset.opening import edits, listing
from ..core.dataset.transfer import estimate_bytes, export_view, open_pictures, pictures_of, with_exchanged
from ..core.dataset.unpack import Take
from ..core.dataset.view import View
from ..core.errors import AtelierError
from ..core.files import digest_of, write_text
from ..core.images import save_picture, to_image, to_picture
from . import host, types
from .datasets import CATEGORY, STORE, load, store_folder

GIB = 1 << 30


class ImportDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierImportDataset",
            display_name="Import Dataset",
            category=CATEGORY,
            description="Read a dataset that another trainer uses: captions, tags, splits and repeats come along.",
            inputs=[
                io.String.Input("folder", default="", tooltip="Its folder, below input, output or datasets."),
                io.Combo.Input("format", options=list(FORMATS), default="kohya", tooltip="How it is written."),
                io.String.Input("trigger", default="", tooltip="The word for ai-toolkit's [trigger]; empty: as exported."),
            ],
            outputs=[types.Dataset.Output(display_name="dataset"), io.String.Output(display_name="summary")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder, format, trigger):
        path = host.picture_folder(folder)
        return listing(path), edits(store_folder(path, Take()) / STORE), texts_in(path), format, trigger

    @classmethod
    def validate_inputs(cls, folder=None):
        return host.told(host.picture_folder, folder)

    @classmethod
    def execute(cls, folder: str, format: str, trigger: str) -> io.NodeOutput:
        path = host.picture_folder(folder)
        rows = import_rows(format, path, trigger)
        view = with_exchanged(load(path, Take(), cls.hidden.unique_id), rows, FORMATS[format].place)
        captioned = sum(bool(row.captions) for row in rows)
        summary = f"{view.summary()}; {captioned} captions from {format}"
        return io.NodeOutput(view, summary, ui=ui.PreviewText(summary))


def texts_in(folder: Path) -> str:
    """A digest of the tables and settings of a folder by size and time."""
    kinds = (".json", ".jsonl", ".toml", ".parquet", ".csv")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in kinds)
    return digest_of([[p.as_posix(), p.stat().st_size, p.stat().st_mtime_ns] for p in found])


class ExportDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierExportDataset",
            display_name="Export Dataset",
            category=CATEGORY,
            description="Write the kept pictures and their captions for another trainer; crops and copies are drawn.",
            is_output_node=True,
            inputs=[
                types.Dataset.Input("dataset", tooltip="The pictures."),
                io.Combo.Input("format", options=list(FORMATS), default="kohya", tooltip="How it is written."),
                io.String.Input("name", default="my-dataset", tooltip="Folder below output/exported; an empty one, or the same again."),
                io.String.Input("trigger", default="", tooltip="The word that ai-toolkit is to have as [trigger]."),
                io.Boolean.Input("replace", default=False, tooltip="Let this export take the place of an earlier one of that name."),
            ],
            outputs=[io.String.Output(display_name="folder"), io.String.Output(display_name="summary")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, name=None):
        return host.told(lambda text: host.named(host.output_folder("exported"), text), name)

    @classmethod
    def execute(cls, dataset: View, format: str, name: str, trigger: str, replace: bool) -> io.NodeOutput:
        folder = host.named(host.output_folder("exported"), name)
        progress = host.Progress(max(1, len(dataset)), cls.hidden.unique_id)
        done = export_view(dataset, format, Target(folder, folder, replace, trigger), progress.at)
        lines = [f"{counted(done.pictures, 'picture')} written to {folder} for {format}", *done.lines(format)]
        return io.NodeOutput(str(folder), lines[0], ui=ui.PreviewText("\n".join(lines)))


class DatasetToImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierDatasetToImages",
            display_name="Dataset to Images",
            category=CATEGORY,
            description="Open the kept pictures as a list of images with a list of texts, for ComfyUI's own dataset nodes.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="The pictures."),
                io.Int.Input("first", default=0, min=0, max=10_000_000, tooltip="The first picture, from 0."),
                io.Int.Input("most", default=0, min=0, max=10_000_000, tooltip="As many as this at most; 0 for all."),
                io.Float.Input("limit", default=8.0, min=0.1, max=1024, step=0.5, tooltip="GiB of memory above which nothing is opened."),
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True),
                io.String.Output(display_name="texts", is_output_list=True),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, dataset: View, first: int, most: int, limit: float) -> io.NodeOutput:
        kept = pictures_of(dataset)
        found = kept[first : first + most if most else None]
        if not kept:
            raise AtelierError(
                f"None of {counted(len(dataset), 'picture')} is kept. Loosen the curation, or keep some."
            )
        if not found:
            raise AtelierError(f"There are {counted(len(kept), 'picture')}, and first is {first}. Start earlier.")
        chosen = dataset.only(row.id for row, _ in found)
        needed = estimate_bytes(chosen) / GIB
        if needed > limit:
            raise AtelierError(
                f"{len(found)} pictures need {needed:.1f} GiB as images, above the limit of {limit:g}. "
                "Take fewer with most, or raise the limit."
            )
        progress = host.Progress(len(found), cls.hidden.unique_id)
        images = []
        for i, picture in enumerate(open_pictures(dataset, [row for row, _ in found]), 1):
            images.append(to_image(picture))
            progress.at(i)
        texts = [text for _, text in found]
        return io.NodeOutput(images, texts, ui=ui.PreviewText(f"{len(images)} images, {needed:.2f} GiB"))


class ImagesToDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierImagesToDataset",
            display_name="Images to Dataset",
            category=CATEGORY,
            description="Make a dataset of images in the graph: they are written as PNG files, with their texts beside them.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="A batch, or a list of images of any sizes."),
                io.String.Input("texts", optional=True, force_input=True, tooltip="A caption for each image, or one for all."),
                io.String.Input("name", default="from-graph", tooltip="Folder below output/flux_atelier/pictures; written anew each time."),
            ],
            outputs=[types.Dataset.Output(display_name="dataset")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, images: list[torch.Tensor], name: list[str], texts: list[str] | None = None) -> io.NodeOutput:
        pictures = [picture for batch in images for picture in batch]
        said = spread(texts or [], len(pictures))
        folder = host.named(host.output_folder("flux_atelier", "pictures"), name[0])
        node_id = cls.hidden.unique_id[0] if isinstance(cls.hidden.unique_id, list) else cls.hidden.unique_id
        progress = host.Progress(len(pictures), node_id)
        written = set()
        for i, (picture, text) in enumerate(zip(pictures, said, strict=True), 1):
            path = save_picture(folder / f"{i:05}.png", to_picture(picture[..., :3].permute(2, 0, 1)))
            written.add(path.name)
            beside = path.with_suffix(".txt")
            if text:
                write_text(beside, text + "\n")
                written.add(beside.name)
            progress.at(i)
        for old in folder.iterdir():  # of a longer list before: only files that this node names
            if old.name not in written and old.stem.isdecimal() and old.suffix in (".png", ".txt"):
                old.unlink()
        view = load(folder, Take(), node_id)
        return io.NodeOutput(view, ui=ui.PreviewText(f"{view.summary()} in {folder}"))


def spread(texts: list[str], count: int) -> list[str]:
    """One text for each image: as many as there are, one for all, or none."""
    if len(texts) in (0, 1):
        return (texts or [""]) * count
    if len(texts) != count:
        raise AtelierError(f"There are {len(texts)} texts for {count} images. Give as many texts as images, or one.")
    return texts


NODES = [ImportDataset, ExportDataset, DatasetToImages, ImagesToDataset]
