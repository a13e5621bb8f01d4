"""What is in the frame: faces and subjects, crops that keep them, and what buckets do to the rest."""

from comfy_api.latest import io, ui

from ..core.counting import counted
from ..core.dataset.bucket_report import report_buckets
from ..core.dataset.contact_sheet import contact_sheet
from ..core.dataset.crop import CropOptions
from ..core.dataset.faces import faces_among, read_boxes
from ..core.dataset.framing import ASPECTS, crop_view, find_faces_in, trained_sizes
from ..core.dataset.transfer import pictures_of
from ..core.dataset.view import View
from ..core.errors import AtelierError
from ..core.images import to_image
from ..core.options import nest, parse
from . import types
from .analysis import shown as with_text
from .datasets import CATEGORY, finish
from .widgets import inputs_of

MOST_LINES = 40


class FindFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierFindFaces",
            display_name="Find Faces",
            category=CATEGORY,
            description="Look for faces with a detector that needs no model file; filter by faces, face_share, face_sharpness after.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="The pictures."),
                io.Boolean.Input("again", default=False, tooltip="Look again where it was looked before."),
            ],
            outputs=[types.Dataset.Output(display_name="dataset"), io.String.Output(display_name="summary")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, dataset: View, again: bool) -> io.NodeOutput:
        finish(find_faces_in(dataset, again), cls.hidden.unique_id, len(dataset))
        view = dataset.renewed()
        counts: dict[int, int] = {}
        for row in view.rows():
            number = len(faces_among(row.boxes))
            counts[number] = counts.get(number, 0) + 1
        summary = ", ".join(
            f"{many} with {n or 'no'} face{'' if n == 1 else 's'}" for n, many in sorted(counts.items())
        )
        return io.NodeOutput(view, summary, ui=ui.PreviewText(summary))


class BoxesToDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierBoxesToDataset",
            display_name="Boxes to Dataset",
            category=CATEGORY,
            description="Take boxes of any detector into the dataset: detect on the images of Dataset to Images.",
            is_input_list=True,
            inputs=[
                types.Dataset.Input("dataset", tooltip="The dataset that the images came from."),
                io.MultiType.Input(
                    "boxes",
                    types=[io.BoundingBox, io.BoundingBoxes],
                    tooltip="Boxes for each image in turn, from RT-DETR, MediaPipe, SAM, YOLO or by hand.",
                ),
                io.String.Input("label", default="face", tooltip="What boxes without a label are of."),
            ],
            outputs=[types.Dataset.Output(display_name="dataset"), io.String.Output(display_name="summary")],
        )

    @classmethod
    def execute(cls, dataset: list[View], boxes: list, label: list[str]) -> io.NodeOutput:
        view = dataset[0]
        rows = [row for row, _ in pictures_of(view)]
        if any(row.crop or view.ops_of(row) for row in rows):
            raise AtelierError("The pictures are cropped or changed already. Take boxes first, then crop.")
        found = boxes_of(boxes, [(row.width, row.height) for row in rows], label[0].strip() or "face")
        labels = {str(box["label"]).lower() for group in found for box in group} or {label[0].strip().lower()}
        laid = {}
        for row, group in zip(rows, found, strict=True):
            others = [box for box in row.boxes or () if str(box["label"]).lower() not in labels]
            laid[row.id] = {"boxes": (*others, *group)}
        summary = f"{counted(sum(map(len, found)), 'box', 'boxes')} on {counted(len(rows), 'picture')}"
        return io.NodeOutput(view.lay(laid), summary, ui=ui.PreviewText(summary))


def boxes_of(values: list, sizes: list[tuple[int, int]], label: str) -> list[list]:
    """Boxes of each picture: a value a picture, or one value that holds all pictures'."""
    held = values[0] if len(values) == 1 and len(sizes) != 1 and isinstance(values[0], list) else values
    if len(held) != len(sizes):
        raise AtelierError(
            f"There are boxes for {counted(len(held), 'picture')}, but {counted(len(sizes), 'picture')}. "
            "Detect on the images of Dataset to Images, all of them."
        )
    values = held
    return [read_boxes(value, [size], label)[0] for value, size in zip(values, sizes, strict=True)]


class SmartCrop(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierSmartCrop",
            display_name="Smart Crop",
            category=CATEGORY,
            description="Crop every picture to a bucket or an aspect so that no face is cut and the subject stays. Only recorded.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="The pictures; Find Faces before it protects faces."),
                io.Combo.Input(
                    "aspect", options=list(ASPECTS), default="buckets", tooltip="buckets: the one that loses the least of a picture."
                ),
                io.Int.Input("resolution", default=1024, min=64, max=4096, step=16, tooltip="Of the training, for buckets."),
                *inputs_of(CropOptions),
            ],
            outputs=[
                types.Dataset.Output(display_name="dataset"),
                io.Image.Output(display_name="contact sheet"),
                io.String.Output(display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, dataset: View, aspect: str, resolution: int, **options) -> io.NodeOutput:
        chosen = parse(CropOptions, nest(CropOptions, options), "Smart Crop")
        view, lines = finish(crop_view(dataset, aspect, resolution, chosen), cls.hidden.unique_id, len(dataset))
        sheet = to_image(contact_sheet(view))
        return io.NodeOutput(view, sheet, lines[0], ui=with_text([sheet], "\n".join(lines[:MOST_LINES]), cls))


class BucketReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierBucketReport",
            display_name="Bucket Report",
            category=CATEGORY,
            description="Which sizes a training would use, what every picture loses to them, and which have too few pictures.",
            is_output_node=True,
            inputs=[
                types.Dataset.Input("dataset", tooltip="The pictures."),
                io.Int.Input("resolution", default=1024, min=64, max=4096, step=16, tooltip="Of the training."),
                io.Int.Input("batch_size", default=1, min=1, max=256, tooltip="Of the training."),
            ],
            outputs=[io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(cls, dataset: View, resolution: int, batch_size: int) -> io.NodeOutput:
        text = report_buckets(trained_sizes(dataset), resolution, batch_size).text()
        return io.NodeOutput(text, ui=ui.PreviewText(text))


NODES = [FindFaces, BoxesToDataset, SmartCrop, BucketReport]
