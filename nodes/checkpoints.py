"""LoRAs and whole models: out of two models, out of other kinds of LoRA, into a model file and out of it again."""

from collections.abc import Iterator
from contextlib import ExitStack, closing

import torch
from comfy_api.latest import io, ui

from ..core.flux.checkpoint import Checkpoint
from ..core.lora.bake import BakeOptions, UnbakeOptions, bake, unbake
from ..core.lora.blocks import check_weights
from ..core.lora.extract import Extracted, ExtractOptions, convert, extract, selection
from ..core.lora.record import Lora
from ..core.options import parse
from ..core.tensor_stream import open_tensors
from . import host, types
from .host.weights import ModelWeights, checkpoint_file, checkpoint_name_of, checkpoint_names, checkpoint_path
from .saving import save_lora
from .widgets import inputs_of
from .wire import from_wire, to_wire

CATEGORY = "Flux Atelier/LoRA"
NONE = "none"


def walk(steps: Iterator, node_id: str | None):
    """Go through the steps of a long work with the node's bar; -> the last one's result."""
    bar, step = None, None
    with closing(steps):  # type: ignore[type-var]
        for step in steps:
            bar = bar or host.Progress(step.total, node_id)
            bar.at(step.done)
    return step.result  # type: ignore[union-attr]


def lora_outputs() -> list:
    return [
        types.LoraModel.Output(display_name="lora"),
        io.AnyType.Output(display_name="lora name"),
        io.String.Output(display_name="report"),
    ]


def file_outputs() -> list:
    return [io.AnyType.Output(display_name="file name"), io.String.Output(display_name="report")]


def lora_name_input(default: str):
    return io.String.Input("name", default=default, tooltip="Name of the LoRA's file in output/loras.")


def checkpoint_input(name: str, tooltip: str, *first: str):
    return io.Combo.Input(name, options=[*first, *checkpoint_names()], tooltip=tooltip)


def saved(made: Extracted, name: str) -> io.NodeOutput:
    path = save_lora(name, made.lora)
    text = f"{path}\n{made.report()}"
    return io.NodeOutput(to_wire(made.lora, path.name), host.lora_name_of(path), text, ui=ui.PreviewText(text))


def told_of(lora_file: str | None, layers: str | None) -> bool | str:
    """What is wrong with a name or with patterns of layers, before the queue starts."""
    named = host.told(host.lora_file, lora_file)
    return named if named is not True else host.told(lambda text: check_weights(selection(text)), layers)


def file_facts(*names: str) -> list:
    """Times and sizes of model files, so that a file that was written anew is read anew."""
    facts = [checkpoint_path(name).stat() for name in names if name != NONE]
    return [(f.st_mtime_ns, f.st_size) for f in facts]


def title_of(lora: Lora) -> str:
    return lora.metadata.get("modelspec.title") or "lora"


class ExtractLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierExtractLora",
            display_name="Extract LoRA",
            category=CATEGORY,
            description="The difference of two models as a plain LoRA: exact, layer by layer, without clamping.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model_tuned", tooltip="The model with the change, its loaded LoRAs included."),
                io.Model.Input("model_base", tooltip="The model without the change."),
                *inputs_of(ExtractOptions),
                lora_name_input("extracted"),
            ],
            outputs=lora_outputs(),
        )

    @classmethod
    def validate_inputs(cls, name=None, layers=None):
        return told_of(name, layers)

    @classmethod
    def execute(cls, model_tuned, model_base, name: str, **options) -> io.NodeOutput:
        chosen = parse(ExtractOptions, options, "Extract LoRA")
        with torch.inference_mode(False):
            tuned, base = ModelWeights(model_tuned, "model_tuned"), ModelWeights(model_base, "model_base")
            return saved(walk(extract(tuned, base, chosen, host.training_device()), cls.hidden.unique_id), name)


class ExtractLoraFromFiles(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierExtractLoraFromFiles",
            display_name="Extract LoRA from Files",
            category=CATEGORY,
            description="The difference of two model files as a plain LoRA, read a tensor at a time.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                checkpoint_input("tuned_file", "Model file with the change: safetensors or GGUF, of any precision."),
                checkpoint_input("base_file", "Model file without the change; its precision may be another."),
                *inputs_of(ExtractOptions),
                lora_name_input("extracted"),
            ],
            outputs=lora_outputs(),
        )

    @classmethod
    def validate_inputs(cls, name=None, layers=None):
        return told_of(name, layers)

    @classmethod
    def fingerprint_inputs(cls, tuned_file, base_file, **_):
        return file_facts(tuned_file, base_file)

    @classmethod
    def execute(cls, tuned_file: str, base_file: str, name: str, **options) -> io.NodeOutput:
        chosen = parse(ExtractOptions, options, "Extract LoRA from Files")
        with torch.inference_mode(False), ExitStack() as stack:
            files = (stack.enter_context(open_tensors(checkpoint_path(f))) for f in (tuned_file, base_file))
            tuned, base = (Checkpoint(file) for file in files)
            return saved(walk(extract(tuned, base, chosen, host.training_device()), cls.hidden.unique_id), name)


class ConvertToLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierConvertToLora",
            display_name="Convert to Plain LoRA",
            category=CATEGORY,
            description="A plain LoRA out of one of another kind: DoRA, LoKr, LoHa, OFT, BOFT, whole differences.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                types.LoraModel.Input("lora", tooltip="A LoRA of any kind."),
                io.Model.Input(
                    "model_base", optional=True, tooltip="The model it was made for; DoRA, OFT and BOFT need it."
                ),
                *inputs_of(ExtractOptions),
                lora_name_input("converted"),
            ],
            outputs=lora_outputs(),
        )

    @classmethod
    def validate_inputs(cls, name=None):
        return host.told(host.lora_file, name)

    @classmethod
    def execute(cls, lora, name: str, model_base=None, **options) -> io.NodeOutput:
        chosen = parse(ExtractOptions, options, "Convert to Plain LoRA")
        with torch.inference_mode(False):
            source = from_wire(lora, "lora")
            base = ModelWeights(model_base, "model_base") if model_base is not None else None
            steps = convert(source, base, chosen, host.training_device(), title_of(source))
            return saved(walk(steps, cls.hidden.unique_id), name)


class BakeLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierBakeLora",
            display_name="Bake LoRA",
            category=CATEGORY,
            description="Put a LoRA of any kind into a model file for good. The file is written a tensor at a time.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                checkpoint_input("checkpoint", "Model file: bf16, fp16, fp32, fp8 or GGUF. It is left as it is."),
                types.LoraModel.Input("lora", tooltip="A LoRA of any kind, made for this model."),
                *inputs_of(BakeOptions),
                io.String.Input("name", default="baked", tooltip="Name of the file in output/diffusion_models."),
            ],
            outputs=file_outputs(),
        )

    @classmethod
    def validate_inputs(cls, name=None, block_weights=None):
        named = host.told(checkpoint_file, name)
        return named if named is not True else host.told(check_weights, block_weights)

    @classmethod
    def fingerprint_inputs(cls, checkpoint, **_):
        return file_facts(checkpoint)

    @classmethod
    def execute(cls, checkpoint: str, lora, name: str, **options) -> io.NodeOutput:
        chosen = parse(BakeOptions, options, "Bake LoRA")
        with torch.inference_mode(False):
            source, out = from_wire(lora, "lora"), checkpoint_file(name, checkpoint)
            steps = bake(checkpoint_path(checkpoint), out, source, title_of(source), chosen)
            text = walk(steps, cls.hidden.unique_id).report()
        return io.NodeOutput(checkpoint_name_of(out), text, ui=ui.PreviewText(text))


class UnbakeLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierUnbakeLora",
            display_name="Unbake LoRA",
            category=CATEGORY,
            description="Take a LoRA out of a model file that it was baked into, and tell what rounding leaves.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                checkpoint_input("checkpoint", "Model file that Bake LoRA wrote. It is left as it is."),
                types.LoraModel.Input("lora", tooltip="The LoRA that was put in."),
                checkpoint_input(
                    "base_file",
                    "Model file from before, to measure what is left; none: it is worked out from the file.",
                    NONE,
                ),
                *inputs_of(UnbakeOptions),
                io.String.Input("name", default="unbaked", tooltip="Name of the file in output/diffusion_models."),
            ],
            outputs=file_outputs(),
        )

    @classmethod
    def validate_inputs(cls, name=None, block_weights=None):
        named = host.told(checkpoint_file, name)
        return named if named is not True else host.told(check_weights, block_weights)

    @classmethod
    def fingerprint_inputs(cls, checkpoint, base_file, **_):
        return file_facts(checkpoint, base_file)

    @classmethod
    def execute(cls, checkpoint: str, lora, base_file: str, name: str, **options) -> io.NodeOutput:
        chosen = parse(UnbakeOptions, options, "Unbake LoRA")
        with torch.inference_mode(False):
            out = checkpoint_file(name, checkpoint)
            before = None if base_file == NONE else checkpoint_path(base_file)
            steps = unbake(checkpoint_path(checkpoint), out, from_wire(lora, "lora"), before, chosen)
            text = walk(steps, cls.hidden.unique_id).report()
        return io.NodeOutput(checkpoint_name_of(out), text, ui=ui.PreviewText(text))


NODES = [ExtractLora, ExtractLoraFromFiles, ConvertToLora, BakeLora, UnbakeLora]
