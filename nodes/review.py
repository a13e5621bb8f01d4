"""Look through a dataset in the browser: the node shows the gallery a view, and can hold the graph back until all is decided."""

from collections import Counter

from comfy_api.latest import io

from ..core.dataset.kept_view import keep_view
from ..core.dataset.opening import STORE
from ..core.dataset.view import View
from . import host, types
from .datasets import CATEGORY

_held_back: Counter[str] = Counter()  # by node: how often it did not let its dataset pass


class ReviewDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierReviewDataset",
            display_name="Review Dataset",
            category=CATEGORY,
            description="Keep, reject, caption and crop pictures in a gallery. The queue never waits for it; the next run goes by your decisions.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                types.Dataset.Input("dataset", tooltip="The pictures to look through."),
                io.Boolean.Input(
                    "require_review",
                    default=False,
                    tooltip="Hold back what follows until every picture is kept or rejected; the queue goes on with other work.",
                ),
            ],
            outputs=[types.Dataset.Output(display_name="dataset"), io.String.Output(display_name="summary")],
        )

    @classmethod
    def fingerprint_inputs(cls, require_review, dataset=None):  # noqa: ARG003
        # What held back is asked again at each run, or ComfyUI would go on with its remembered answer. What let pass
        # keeps its number, so that nothing after it is done twice; decisions reach it through Load Dataset's own.
        return _held_back[cls.hidden.unique_id or ""]

    @classmethod
    def execute(cls, dataset: View, require_review: bool) -> io.NodeOutput:
        view = dataset.renewed()
        shown = show(view)
        waiting, summary = waiting_of(view), view.summary()
        if waiting and require_review:
            _held_back[cls.hidden.unique_id or ""] += 1
            told = f"{waiting} of {len(view)} pictures wait for a decision. Decide in this node's gallery, then queue again."
            # ComfyUI takes the block only beside values.
            return io.NodeOutput(view, summary, ui={"atelier_view": shown, "text": [told]}, block_execution=told)
        text = f"{summary}, {waiting} undecided" if waiting else summary
        return io.NodeOutput(view, text, ui={"atelier_view": shown, "text": [text]})


def show(view: View) -> list[str]:
    """Keep a view for the gallery: its name there, or nothing for a store that the gallery does not reach."""
    key = keep_view(view)
    reachable = view.store.name == STORE and view.store.parent.parent.resolve() == host.datasets_folder().resolve()
    return [f"{view.store.parent.name}/{key}"] if reachable else []


def waiting_of(view: View) -> int:
    """How many pictures nobody has decided on."""
    return len(view.matching("undecided"))


NODES = [ReviewDataset]
