"""Faults of captions found and mended, and captions edited: shown first, kept when asked, taken back by one undo."""

from comfy_api.latest import io

from ..core.dataset.view import View
from ..core.options import parse
from ..trainer.captioners.options import EditOptions, LintOptions
from ..trainer.captioners.rewriting import (
    check_edit,
    edit_lines,
    edit_view,
    keep_edit,
    lint_lines,
    lint_view,
    rewritten,
)
from . import host
from .captioners import CATEGORY, dataset_input, dataset_outputs, reported
from .widgets import inputs_of

SHOW, APPLY = "preview", "apply"


class LintCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierLintCaptions",
            display_name="Lint Captions",
            category=CATEGORY,
            description="Find leaks, missing triggers, refusals, overflow and repeated captions, each with its reason and mend.",
            is_output_node=True,
            inputs=[
                dataset_input(),
                io.Combo.Input(
                    "fix",
                    options=["nothing", SHOW, APPLY],
                    default=SHOW,
                    tooltip="Report the faults alone, show what mending them would change, or change the captions.",
                ),
                *inputs_of(LintOptions),
            ],
            outputs=dataset_outputs(),
        )

    @classmethod
    def execute(cls, dataset: View, fix: str, **options) -> io.NodeOutput:
        found = lint_view(dataset, parse(LintOptions, options, "Lint Captions"))
        lines = lint_lines(found)
        if fix == "nothing":
            return reported(dataset, lines)
        view = rewritten(dataset, found.edit, "Lint Captions", found.anew) if fix == APPLY else dataset
        return reported(view, [*lines, *edit_lines(found.edit, fix == APPLY, found.human)])


class EditCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierEditCaptions",
            display_name="Edit Captions",
            category=CATEGORY,
            description="Find and replace, put words before and after, and order tags, in all captions at once.",
            is_output_node=True,
            inputs=[
                dataset_input(),
                io.Combo.Input(
                    "fix",
                    options=[SHOW, APPLY],
                    default=SHOW,
                    tooltip="Show what would change, or change the captions.",
                ),
                *inputs_of(EditOptions),
            ],
            outputs=dataset_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls, find=None, replacement=None, regex=None, prefix=None, suffix=None, dedupe=None, order=None, shuffle=None
    ):
        given = [find, replacement, regex, prefix, suffix, dedupe, order, shuffle]
        names = ("find", "replacement", "regex", "prefix", "suffix", "dedupe", "order", "shuffle")
        if None in given:  # linked, so it is not known yet
            return True
        values = dict(zip(names, given, strict=True))
        return host.told(lambda chosen: check_edit(parse(EditOptions, chosen, "Edit Captions")), values)

    @classmethod
    def execute(cls, dataset: View, fix: str, **options) -> io.NodeOutput:
        chosen = parse(EditOptions, options, "Edit Captions")
        found = edit_view(dataset, chosen)
        view = keep_edit(dataset, found, chosen, "Edit Captions") if fix == APPLY else dataset
        done = [f"{found.done} captions are as this edit left them before"] * bool(found.done)
        return reported(
            view, [f"{len(found.captions)} captions", *edit_lines(found.edit, fix == APPLY, found.human), *done]
        )


NODES = [LintCaptions, EditCaptions]
