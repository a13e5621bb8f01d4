"""Several models' captions of each picture become one."""

from contextlib import closing

import torch
from comfy_api.latest import io

from ..core.dataset.store import Store
from ..core.dataset.view import View
from ..core.options import parse
from ..trainer.captioners.fusing import check_fusion, fates, fuse_view, support_table
from ..trainer.captioners.interrogator import Likeness, check_clip
from ..trainer.captioners.ledger import check_author
from ..trainer.captioners.options import FuseOptions
from ..trainer.captioners.store_ledger import StoreLedger, captioned
from . import host
from .captioners import (
    CATEGORY,
    beginning,
    dataset_input,
    dataset_outputs,
    first_input,
    first_trouble,
    name_input,
    reported,
)
from .host.captioning import clip_folders, folder_of, freed_device
from .widgets import inputs_of

NONE = "none"
SHOWN = 8  # pictures whose claims are in the report


class FuseCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierFuseCaptions",
            display_name="Fuse Captions",
            category=CATEGORY,
            description="Make one caption of several models': what they agree on stays, what only one says goes.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                dataset_input(),
                *inputs_of(FuseOptions),
                io.Combo.Input(
                    "clip_folder",
                    options=[NONE, *clip_folders()],
                    default=NONE,
                    tooltip="CLIP or SigLIP folder that puts claims which fit the picture first; none for support alone.",
                ),
                name_input("fused", "Author of the fused captions."),
                first_input(),
            ],
            outputs=dataset_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls, weight_rules=None, synonym_rules=None, prefix=None, budget=None, clip_folder=None, name=None
    ):
        def check(rules: str) -> None:
            given = {"weight_rules": rules, "synonym_rules": synonym_rules or "", "prefix": prefix or ""}
            check_fusion(FuseOptions(**given, **({"budget": budget} if budget else {})))

        def check_folder(chosen: str) -> None:
            if chosen != NONE:
                check_clip(folder_of(chosen, clip_folders()))

        return first_trouble(
            host.told(check, weight_rules), host.told(check_folder, clip_folder), host.told(check_author, name)
        )

    @classmethod
    def execute(cls, dataset: View, clip_folder: str, name: str, first: int, **options) -> io.NodeOutput:
        how = parse(FuseOptions, options, "Fuse Captions")
        view, made, bare, locked, progress = beginning(dataset, first), [], [], 0, None
        with torch.inference_mode(False), Store(dataset.store, made=False) as store:
            chosen = None if clip_folder == NONE else folder_of(clip_folder, clip_folders())
            likeness = Likeness(chosen, freed_device()) if chosen else None
            with closing(fuse_view(view, how, name.strip(), StoreLedger(store), likeness)) as steps:
                for step in steps:
                    progress = progress or host.Progress(max(1, step.total), cls.hidden.unique_id)
                    made, bare, locked = [*made, *step.made], [*bare, *step.bare], step.locked
                    progress.at(step.done)
        return reported(captioned(dataset, name.strip()), fusion_lines(made, bare, locked))


def fusion_lines(made: list, bare: list[str], locked: int) -> list[str]:
    """The report: counts, what became of the claims, and those of some pictures."""
    told = [f"{len(made)} captions fused"]
    told += [f"{locked} left alone, a person captioned them"] * bool(locked)
    counted = ", ".join(f"{count} {fate}" for fate, count in fates([fusion for _, fusion in made]).items())
    lines = [", ".join(told), *([f"claims: {counted}"] if counted else [])]
    if bare:
        shown = ", ".join(bare[:SHOWN]) + (" ..." if len(bare) > SHOWN else "")
        lines.append(f"{len(bare)} have no claim with enough support and keep what they had: {shown}")
    return [*lines, *(support_table(name, fusion) for name, fusion in made[:SHOWN])]


NODES = [FuseCaptions]
