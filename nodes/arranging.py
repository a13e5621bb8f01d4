"""Who is trained on and how often: splits, copies with recorded changes, repeats that balance."""

from comfy_api.latest import io, ui

from ..core.counting import counted
from ..core.dataset.augment import AugmentOptions, mirror_warnings, variants
from ..core.dataset.balance import BalanceOptions, balance
from ..core.dataset.curate import duplicates
from ..core.dataset.split import SPLITS, SplitOptions, split_table, split_view
from ..core.dataset.view import View
from ..core.options import nest, parse
from . import types
from .datasets import CATEGORY, finish
from .widgets import inputs_of

MOST_LINES = 40


class SplitDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierSplitDataset",
            display_name="Split Dataset",
            category=CATEGORY,
            description="Set pictures aside for validation and test; copies stay together, and pictures added later move none.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="The pictures."),
                *inputs_of(SplitOptions),
                io.Boolean.Input(
                    "copies_together", default=True, tooltip="Look for copies, and put all of a picture into one split."
                ),
            ],
            outputs=[
                types.Dataset.Output(display_name="dataset"),
                types.Dataset.Output(display_name="train"),
                types.Dataset.Output(display_name="validation"),
                types.Dataset.Output(display_name="test"),
                io.String.Output(display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset: View, copies_together: bool, **options) -> io.NodeOutput:
        chosen = parse(SplitOptions, nest(SplitOptions, options), "Split Dataset")
        rows, groups = dataset.kept_rows(), ()
        if copies_together:
            found = finish(duplicates(dataset, rows, False), cls.hidden.unique_id, len(rows))
            groups = [(group.kept, *group.left_out) for group in found]
        view = split_view(dataset, chosen, groups)
        splits = {row.id: view.laid[row.id]["split"] for row in rows}
        parts = [view.only(own for own in view.ids if splits.get(own) == name) for name in SPLITS]
        lines = [", ".join(f"{len(part)} {name}" for part, name in zip(parts, SPLITS, strict=True))]
        lines += [f"{len(groups)} groups of copies stay together"] if groups else []
        table = split_table(rows, splits, chosen.by)
        lines += [f"{name or 'others'}: {told(counts)}" for name, counts in table.items() if chosen.by]
        return io.NodeOutput(view, *parts, lines[0], ui=ui.PreviewText("\n".join(lines[:MOST_LINES])))


def told(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


class AugmentDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierAugmentDataset",
            display_name="Augment Dataset",
            category=CATEGORY,
            description="More pictures out of few: mirrored, turned, cropped, recoloured. Only recorded; nothing is written.",
            inputs=[types.Dataset.Input("dataset", tooltip="The pictures."), *inputs_of(AugmentOptions)],
            outputs=[types.Dataset.Output(display_name="dataset"), io.String.Output(display_name="summary")],
        )

    @classmethod
    def execute(cls, dataset: View, **options) -> io.NodeOutput:
        chosen = parse(AugmentOptions, nest(AugmentOptions, options), "Augment Dataset")
        rows = dataset.rows()
        view = dataset.with_variants(variants(rows, chosen))
        made = len(view) - len(dataset)
        summary = f"{counted(made, 'copy', 'copies')} of {counted(len(dataset), 'picture')}"
        if made < chosen.copies * len(dataset):
            summary += "; none is made that would equal another, or of pictures outside training"
        paths = {row.id: row.path for row in rows}
        lines = [summary]
        for warning in mirror_warnings(rows, chosen):
            said = ", ".join(warning.words[:4])
            lines.append(f"{paths[warning.id]} says {said}: {warning.done}")
        return io.NodeOutput(view, summary, ui=ui.PreviewText("\n".join(lines[:MOST_LINES])))


class BalanceDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierBalanceDataset",
            display_name="Balance Dataset",
            category=CATEGORY,
            description="Repeats, so that folders, artists or tags weigh the same, or what you give them.",
            inputs=[
                types.Dataset.Input("dataset", tooltip="The pictures."),
                io.String.Input(
                    "by",
                    default="folder",
                    tooltip="folder, aspect, format, column:artist, or tag:portrait,landscape for the first that a picture has.",
                ),
                *inputs_of(BalanceOptions),
            ],
            outputs=[types.Dataset.Output(display_name="dataset"), io.String.Output(display_name="summary")],
        )

    @classmethod
    def execute(cls, dataset: View, by: str, **options) -> io.NodeOutput:
        chosen = parse(BalanceOptions, nest(BalanceOptions, options), "Balance Dataset")
        rows = dataset.kept_rows()
        found = balance(rows, by.strip(), chosen)
        view = dataset.lay({own: {"repeats": times} for own, times in found.repeats.items()})
        trained = [row.id for row in rows if row.split == "train"]
        shown = sum(found.repeats[own] for own in trained)
        summary = f"{counted(shown, 'picture')} an epoch out of {len(trained)} to train on"
        lines = [summary, *(f"{group.name or 'others'}: {group.reason}" for group in found.groups)]
        return io.NodeOutput(view, summary, ui=ui.PreviewText("\n".join(lines[:MOST_LINES])))


NODES = [SplitDataset, AugmentDataset, BalanceDataset]
