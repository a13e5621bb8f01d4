"""Captions by models: from a folder, from a tagger, from an endpoint; and styles by CLIP. A person's are never touched."""

from contextlib import closing
from pathlib import Path

import torch
from comfy_api.latest import io, ui

from ..core.dataset.store import Store
from ..core.dataset.view import View
from ..core.options import leaves, parse
from ..trainer.captioners.describing import axes_of, describe, distribution, tagged
from ..trainer.captioners.families import read_family
from ..trainer.captioners.interrogator import check_clip
from ..trainer.captioners.job import Tally, caption_items
from ..trainer.captioners.ledger import check_author
from ..trainer.captioners.opening import (
    WhenAsked,
    check_tagger,
    endpoint_captioner,
    tagger_captioner,
    vision_captioner,
)
from ..trainer.captioners.options import AskOptions, EndpointOptions, StyleOptions, TaggerOptions, VisionOptions
from ..trainer.captioners.prompts import check_template, split_turns
from ..trainer.captioners.store_ledger import StoreLedger, captioned, items_of
from . import host, types
from .host.captioning import NOTHING, clip_folders, folder_of, freed_device, tagger_folders, vision_folders
from .widgets import inputs_of

CATEGORY = "Flux Atelier/Captions"
TAGGED = ("caption", "trigger", "batch_size")  # what a tagger, which takes no text, has of AskOptions


def dataset_input():
    return types.Dataset.Input("dataset", tooltip="The pictures.")


def dataset_outputs() -> list:
    return [types.Dataset.Output(display_name="dataset"), io.String.Output(display_name="report")]


def first_input():
    return io.Int.Input(
        "first",
        default=0,
        min=0,
        max=1_000_000,
        tooltip="Only so many pictures from the start, as a preview; 0 for all.",
    )


def name_input(default: str, tooltip: str):
    return io.String.Input("name", default=default, tooltip=tooltip)


def own_name_input():
    return name_input("", "Author of these captions; empty for the model's name. A second prompt needs a second name.")


def folder_input(name: str, known: dict[str, Path], tooltip: str):
    return io.Combo.Input(name, options=list(known) or [NOTHING], tooltip=tooltip)


def beginning(view: View, first: int) -> View:
    """The first pictures of a view; all of them for 0."""
    return view.only(view.ids[:first]) if first else view


def reported(view: View, lines: list[str]) -> io.NodeOutput:
    text = "\n".join(lines)
    return io.NodeOutput(view, text, ui=ui.PreviewText(text))


def split_options(given: dict, *kinds: type) -> list:
    """Each option model from its own of a node's inputs."""
    return [parse(kind, {k: given[k] for k in leaves(kind) if k in given}, "The node") for kind in kinds]


def caption_view(view: View, captioner: WhenAsked, ask: AskOptions, first: int, node_id: str | None) -> io.NodeOutput:
    """Caption a view's pictures with the node's bar; a cancel keeps each batch that is done."""
    items, tally = items_of(beginning(view, first)), Tally()
    progress = host.Progress(max(1, len(items)), node_id)
    with (
        torch.inference_mode(False),
        Store(view.store, made=False) as store,
        closing(caption_items(items, captioner, ask, StoreLedger(store))) as steps,
    ):
        for step in steps:
            tally.add(step)
            progress.at(step.done)
    names = {item.id: item.file.name for item in items}
    return reported(captioned(view, captioner.name), [*tally.lines(captioner.name, names), *captioner.notes])


def check_ask(prompt: str | None, system: str | None, caption: str | None) -> None:
    """Raise AtelierError for a variable that is not known."""
    for turn in (*split_turns(prompt or ""), system or ""):
        check_template(turn)
    check_template(caption or "", answer=True)


def told_name(name: str | None) -> bool | str:
    """What is wrong with the author's name; empty takes the model's."""
    return host.told(check_author, name) if name and name.strip() else True


def first_trouble(*answers: bool | str) -> bool | str:
    """The first check that found something, else True."""
    return next((answer for answer in answers if answer is not True), True)


class CaptionWithModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierCaptionWithModel",
            display_name="Caption with Model",
            category=CATEGORY,
            description="Caption pictures with a vision-language model on disk: Qwen-VL, JoyCaption, Florence-2 and others.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                dataset_input(),
                folder_input(
                    "model_folder", vision_folders(), "Folder with config.json and .safetensors below ComfyUI's models."
                ),
                *inputs_of(AskOptions),
                *inputs_of(VisionOptions),
                own_name_input(),
                first_input(),
            ],
            outputs=dataset_outputs(),
        )

    @classmethod
    def validate_inputs(cls, model_folder=None, prompt=None, system=None, caption=None, name=None):
        told = host.told(lambda name: read_family(folder_of(name, vision_folders())), model_folder)
        return first_trouble(told, host.told(check_ask, prompt or "", system, caption), told_name(name))

    @classmethod
    def execute(cls, dataset: View, model_folder: str, name: str, first: int, **options) -> io.NodeOutput:
        ask, how = split_options(options, AskOptions, VisionOptions)
        folder = folder_of(model_folder, vision_folders())
        captioner = vision_captioner(folder, how, freed_device, name.strip())
        return caption_view(dataset, captioner, ask, first, cls.hidden.unique_id)


class CaptionWithTagger(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierCaptionWithTagger",
            display_name="Caption with Tagger",
            category=CATEGORY,
            description="Caption pictures with tags by a WD tagger in ONNX.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                dataset_input(),
                folder_input(
                    "tagger_folder",
                    tagger_folders(),
                    "Folder with model.onnx and selected_tags.csv below ComfyUI's models.",
                ),
                *inputs_of(TaggerOptions),
                *inputs_of(AskOptions, TAGGED),
                own_name_input(),
                first_input(),
            ],
            outputs=dataset_outputs(),
        )

    @classmethod
    def validate_inputs(cls, tagger_folder=None, caption=None, name=None):
        told = host.told(lambda name: check_tagger(folder_of(name, tagger_folders())), tagger_folder)
        return first_trouble(told, host.told(lambda text: check_template(text, answer=True), caption), told_name(name))

    @classmethod
    def execute(cls, dataset: View, tagger_folder: str, name: str, first: int, **options) -> io.NodeOutput:
        ask, how = split_options(options, AskOptions, TaggerOptions)
        captioner = tagger_captioner(folder_of(tagger_folder, tagger_folders()), how, name.strip())
        return caption_view(dataset, captioner, ask, first, cls.hidden.unique_id)


class CaptionByEndpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierCaptionByEndpoint",
            display_name="Caption by Endpoint",
            category=CATEGORY,
            description="Caption pictures through a chat server in OpenAI's form, on this machine unless you allow another.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                dataset_input(),
                *inputs_of(EndpointOptions, ("url", "model")),
                *inputs_of(AskOptions),
                *inputs_of(EndpointOptions, [n for n in leaves(EndpointOptions) if n not in ("url", "model")]),
                own_name_input(),
                first_input(),
            ],
            outputs=dataset_outputs(),
        )

    @classmethod
    def validate_inputs(cls, url=None, allow_remote=None, prompt=None, system=None, caption=None, name=None):
        def check(address: str) -> None:
            endpoint_captioner(EndpointOptions(url=address, allow_remote=bool(allow_remote)))

        return first_trouble(
            host.told(check, url), host.told(check_ask, prompt or "", system, caption), told_name(name)
        )

    @classmethod
    def execute(cls, dataset: View, name: str, first: int, **options) -> io.NodeOutput:
        ask, how = split_options(options, AskOptions, EndpointOptions)
        return caption_view(dataset, endpoint_captioner(how, name.strip()), ask, first, cls.hidden.unique_id)


class DescribeStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierDescribeStyle",
            display_name="Describe Style",
            category=CATEGORY,
            description="Tell style, medium and artist of pictures with a CLIP model and a vocabulary; says nothing where unsure.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                dataset_input(),
                folder_input("clip_folder", clip_folders(), "Folder of a CLIP or SigLIP model below ComfyUI's models."),
                *inputs_of(StyleOptions),
                first_input(),
            ],
            outputs=dataset_outputs(),
        )

    @classmethod
    def validate_inputs(cls, clip_folder=None, vocabulary=None, axes=None):
        told = host.told(lambda name: check_clip(folder_of(name, clip_folders())), clip_folder)
        return first_trouble(
            told, host.told(lambda file: axes_of(StyleOptions(vocabulary=file, axes=axes or "")), vocabulary)
        )

    @classmethod
    def execute(cls, dataset: View, clip_folder: str, first: int, **options) -> io.NodeOutput:
        how = parse(StyleOptions, options, "Describe Style")
        folder, view = folder_of(clip_folder, clip_folders()), beginning(dataset, first)
        found, failed, progress = {}, [], None
        with (
            torch.inference_mode(False),
            Store(dataset.store, made=False) as store,
            closing(describe(view, folder, how, freed_device, StoreLedger(store))) as steps,
        ):
            for step in steps:
                progress = progress or host.Progress(max(1, step.total), cls.hidden.unique_id)
                found |= step.found
                failed += [f"failed {one.row}: {one.reason}" for one in step.failed]
                progress.at(step.done)
        after = captioned(dataset, folder.name) if how.captions else dataset
        return reported(tagged(after, found) if how.tags else after, [*distribution(found), *failed])


NODES = [CaptionWithModel, CaptionWithTagger, CaptionByEndpoint, DescribeStyle]
