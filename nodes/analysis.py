"""What a LoRA is made of: its layers in figures, LoRAs beside each other, what each block does to the output."""

from collections.abc import Sequence
from pathlib import Path

import torch
from comfy_api.latest import io, ui

from ..core.errors import AtelierError
from ..core.evaluation.lora_page import study_of, write_study
from ..core.evaluation.lora_plots import Scale, heat_map, matrix_picture, short_names, stacked
from ..core.files import write_json
from ..core.images import save_picture, to_image
from ..core.lora.compare import Comparison, compare, told
from ..core.lora.importance import Importance, blocks_of, importance
from ..core.lora.record import Lora
from . import host, types
from .host.velocity import velocities
from .host.weights import ModelWeights
from .loras import CATEGORY
from .widgets import drawing_inputs
from .wire import from_wire, names_of, to_wire

SIDES = (64, 4096, 16)  # of a picture in pixels: the least, the most, the step
CHANGE = Scale(name="of the output's norm, mean over prompts and noise levels", digits=".2%")


def analysis_folder(name: str) -> Path:
    """Where a study goes: output/flux_atelier/analysis/<name>; raises AtelierError for a name that leads out of it."""
    return host.inside(host.output_folder("flux_atelier", "analysis"), name.strip())


def read_numbers(text: str, what: str) -> list[float]:
    """Numbers separated by commas; raises AtelierError that says what they are for where one is none."""
    words = [word.strip() for word in text.replace(";", ",").split(",") if word.strip()]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise AtelierError(f"The {what} are {text!r}, which are no numbers. Write numbers like 0.9, 0.5.") from None
    if not numbers:
        raise AtelierError(f"There are no {what}. Write numbers like 0.9, 0.5.")
    return numbers


def read_levels(text: str) -> list[float]:
    """Noise levels; raises AtelierError for one that is not above 0 and up to 1."""
    levels = read_numbers(text, "noise levels")
    odd = next((level for level in levels if not 0 < level <= 1), None)
    if odd is not None:
        raise AtelierError(f"The noise level is {odd}. Give numbers above 0 and up to 1.")
    return levels


def check_size(**sides: int | None) -> None:
    """Raise AtelierError for a width or a height that no picture is drawn in; None comes by wire and waits.

    ComfyUI's own latents round it down in silence.
    """
    low, high, step = SIDES
    for side, value in sides.items():
        if value is not None and not (low <= value <= high and value % step == 0):
            raise AtelierError(f"The {side} is {value}. Choose a multiple of {step}, {low} to {high}.")


def read_prompts(text: str, node: str) -> list[str]:
    """Prompts, one a line; raises AtelierError where there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise AtelierError(f"{node} has no prompt. Write one prompt a line.")
    return lines


def shown(images: Sequence[torch.Tensor], report: str, node: type[io.ComfyNode]) -> dict[str, object]:
    """What a node shows of itself: pictures of any sizes, and a text under them."""
    previews = [ui.PreviewImage(image, cls=node).as_dict() for image in images]
    return {**previews[0], "images": [one for preview in previews for one in preview["images"]], "text": [report]}


class AnalyseLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierAnalyseLora",
            display_name="Analyse LoRA",
            category=CATEGORY,
            description="Singular values, norms and ranks of every layer, as a heat map, plots and one HTML page.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                types.LoraModel.Input("lora", tooltip="The LoRA to look at."),
                io.String.Input("name", default="study", tooltip="Name of the folder in output/flux_atelier/analysis."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The base model, without the LoRA; norms are then told relative to its weights.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="heat map"),
                io.Image.Output(display_name="spectra"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def validate_inputs(cls, name=None):
        return host.told(analysis_folder, name)

    @classmethod
    def execute(cls, lora, name: str, model=None) -> io.NodeOutput:
        folder = analysis_folder(name)
        with torch.inference_mode(False):
            read = from_wire(lora, "lora")
            progress = host.Progress(len(read.modules), cls.hidden.unique_id)
            base = ModelWeights(model, "The MODEL") if model is not None else None
            study = study_of(name.strip(), read, base, progress.at)
            page = write_study(folder, study)
            pictures = to_image(study.heat_map()), to_image(study.spectra())
        report = f"{study.report()}\n{page}"
        return io.NodeOutput(*pictures, report, ui=shown(pictures, report, cls))


class LoraSimilarity(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        lora = io.Autogrow.TemplatePrefix(
            types.LoraModel.Input("lora", tooltip="A LoRA."), prefix="lora", min=2, max=types.MOST_LORAS
        )
        return io.Schema(
            node_id="FluxAtelierLoraSimilarity",
            display_name="LoRA Similarity",
            category=CATEGORY,
            description="How alike LoRAs are by their weights: cosines, shared subspaces and signs against each other.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Autogrow.Input("loras", template=lora, tooltip="Two LoRAs or more, for the same base model."),
                io.String.Input(
                    "names", default="", tooltip="Their names in the picture, separated by commas; may be empty."
                ),
                io.String.Input(
                    "name", default="similarity", tooltip="Name of the folder in output/flux_atelier/analysis."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate="fixed",
                    tooltip="Seed of the entries whose signs are sampled.",
                ),
            ],
            outputs=[io.Image.Output(display_name="matrices"), io.String.Output(display_name="report")],
        )

    @classmethod
    def validate_inputs(cls, name=None, loras=None):  # noqa: ARG003 - the server always passes it, as names without values
        return host.told(analysis_folder, name)

    @classmethod
    def execute(cls, loras: dict, names: str, name: str, seed: int) -> io.NodeOutput:
        folder = analysis_folder(name)
        chosen = [word.strip() for word in names.split(",")] if names.strip() else []
        called = [*chosen, *names_of(loras)[len(chosen) :]][: len(loras)]
        with torch.inference_mode(False):
            read = [(n, from_wire(tensors, n)) for n, tensors in zip(called, loras.values(), strict=True)]
            count = len({module for _, lora in read for module in lora.modules})
            found = compare(read, seed, host.Progress(count, cls.hidden.unique_id).at)
            sheet = similarity_sheet(found)
            save_picture(folder / "similarity.png", sheet)
            path = write_json(folder / "similarity.json", found.as_dict())
            image = to_image(sheet)
        report = f"{told(found)}\n{path}"
        return io.NodeOutput(image, report, ui=shown([image], report, cls))


def similarity_sheet(found: Comparison):
    """A comparison's matrices below each other, and the cosines by block."""
    names = found.names
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    short = _told_apart(short_names(names, 10))
    by_block = {
        f"{block}.{short[i]} / {short[j]}": matrix[i, j].item()
        for block, matrix in found.blocks.items()
        for i, j in pairs
        if block[-1].isdigit()
    }
    pictures = [
        matrix_picture(names, found.cosine.tolist(), "cosine of the whole change"),
        matrix_picture(names, found.shared.tolist(), "share of the row's energy in the column's space"),
        matrix_picture(names, found.conflict.tolist(), "share of entries with signs against each other"),
    ]
    if not by_block:
        return stacked(pictures)
    scale = Scale(1.0, "cosine: blue is alike, orange is opposite", "g", both=True)
    return stacked([*pictures, heat_map(by_block, "cosine by block", scale)])


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names that are alike after they were cut get their place in the list."""
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]


class LoraImportance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierLoraImportance",
            display_name="LoRA Importance",
            category=CATEGORY,
            description="How much each block of a LoRA changes what the model puts out, on a few noise levels.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The base model, without the LoRA."),
                io.Clip.Input("clip", tooltip="The CLIP."),
                types.LoraModel.Input("lora", tooltip="The LoRA to look at."),
                io.String.Input(
                    "prompts", default="", multiline=True, tooltip="One prompt a line, as you would use it."
                ),
                io.String.Input(
                    "sigmas",
                    default="0.9, 0.7, 0.4",
                    tooltip="Noise levels above 0 and up to 1, separated by commas: high ones are layout, low ones detail.",
                ),
                io.Combo.Input(
                    "way",
                    options=["without", "alone"],
                    default="without",
                    tooltip="Take each block out of the LoRA, or put each block on alone.",
                ),
                io.Float.Input(
                    "least",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Blocks below this part of the strongest block's change get weight 0 in the block weights.",
                ),
                *drawing_inputs(
                    "Seed of the first prompt's picture and noise; the next ones count up.",
                    steps="Sampling steps of the pictures that noise is put on.",
                    first=12,
                    side=512,
                ),
            ],
            outputs=[
                io.Image.Output(display_name="heat map"),
                io.String.Output(display_name="block weights"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def validate_inputs(cls, sigmas=None, width=None, height=None):
        read = host.told(read_levels, sigmas)
        return (
            read if read is not True else host.told(lambda sides: check_size(**sides), dict(width=width, height=height))
        )

    @classmethod
    def execute(
        cls, model, clip, lora, prompts, sigmas, way, least, seed, steps, guidance, width, height
    ) -> io.NodeOutput:
        check_size(width=width, height=height)
        lines, levels = read_prompts(prompts, "LoRA Importance"), read_levels(sigmas)
        read = from_wire(lora, "lora")
        progress = host.Progress(len(lines) + 2 + len(blocks_of(read)), cls.hidden.unique_id)
        conditions = [host.condition(clip, line, guidance) for line in lines]
        whole, latents = host.with_lora(model, lora, 1.0), []
        for i, condition in enumerate(conditions):
            empty = torch.zeros(1, 16, height // 8, width // 8)
            latents.append(host.sample(whole, condition, empty, seed + i, steps))
            progress.at(len(latents))

        def velocity(part: Lora | None, at) -> torch.Tensor:
            patched = model if part is None else host.with_lora(model, to_wire(part), 1.0)
            pairs = enumerate(zip(conditions, latents, strict=True))
            return torch.cat([velocities(patched, c, latent, seed + i, at) for i, (c, latent) in pairs], 1)

        found = importance(read, velocity, levels, way, lambda done: progress.at(len(lines) + done))
        how = "without the block" if way == "without" else "by the block alone"
        image = to_image(heat_map(found.cells(), f"change of the output {how}", CHANGE))
        report = importance_report(found)
        return io.NodeOutput(image, found.weights(least), report, ui=shown([image], report, cls))


def importance_report(found: Importance) -> str:
    """The whole LoRA and every block, the strongest first."""
    lines = [f"{block}: {change:.2%}" for block, change in sorted(found.blocks.items(), key=lambda item: -item[1])]
    return "\n".join([f"the whole LoRA changes the output by {found.whole:.2%}", *lines])


NODES = [AnalyseLora, LoraSimilarity, LoraImportance]
