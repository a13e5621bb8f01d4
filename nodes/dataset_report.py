"""What a dataset is made of, in plots, in words and on one page."""

from typing import Literal

from comfy_api.latest import io
from pydantic import Field

from ..core.dataset.curate import duplicates
from ..core.dataset.opening import THUMBS
from ..core.dataset.report import Found, ReportOptions, report
from ..core.dataset.store import Store
from ..core.dataset.view import View
from ..core.evaluation.dataset_page import write_page
from ..core.evaluation.dataset_plots import overview
from ..core.files import digest_of
from ..core.images import to_image
from ..core.options import nest, parse
from . import host, types
from .analysis import shown as with_text
from .datasets import CATEGORY, finish
from .widgets import inputs_of


class NodeReportOptions(ReportOptions):
    """A report's options, and whether copies are looked for."""

    copies: Literal["off", "fast", "robust"] = Field(
        "fast", description="Look for copies of pictures, and how thoroughly."
    )


class DatasetReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierDatasetReport",
            display_name="Dataset Report",
            category=CATEGORY,
            description="Sizes, sharpness, colours, copies, diversity, words of captions, and how many steps to train, with reasons.",
            is_output_node=True,
            inputs=[types.Dataset.Input("dataset", tooltip="The pictures."), *inputs_of(NodeReportOptions)],
            outputs=[
                io.Image.Output(display_name="plots"),
                io.String.Output(display_name="report"),
                io.String.Output(display_name="page"),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, dataset: View, **options) -> io.NodeOutput:
        chosen = parse(NodeReportOptions, nest(NodeReportOptions, options), "Dataset Report")
        rows, groups = dataset.rows(), None
        if chosen.copies != "off":
            steps = duplicates(dataset, rows, chosen.copies == "robust")
            groups = finish(steps, cls.hidden.unique_id, len(rows))
        with Store(dataset.store, made=False) as store:
            faults = store.faults()
        found = Found(groups=groups, faults=faults, captions=dataset.captions)
        folder = dataset.store.parent
        host.check_cancel()
        figures = report(rows, folder / THUMBS, chosen, found)
        page = write_page(
            figures,
            host.output_folder("flux_atelier", "reports", f"{folder.name}-{digest_of(dataset.ids, size=4)}.html"),
            folder.name,
        )
        text = "\n".join([*figures.lines(), f"All on one page: {page}"])
        image = to_image(overview(figures))
        return io.NodeOutput(image, text, str(page), ui=with_text([image], text, cls))


NODES = [DatasetReport]
