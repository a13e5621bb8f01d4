"""LoRA files: open, look at, convert."""

import torch
from comfy_api.latest import io, ui

from ..core.counting import counted
from ..core.files import read_tensors
from ..core.lora.formats.layouts import SCHEMES
from ..core.lora.inspection import inspect_lora
from ..core.lora.provenance import trigger_words
from . import host, types
from .saving import save_lora
from .wire import called, from_wire, opened

CATEGORY = "Flux Atelier/LoRA"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class LoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierLoadLora",
            display_name="Load LoRA File",
            category=CATEGORY,
            description="Open a LoRA file of any layout for the nodes that merge, resize, analyse or train on LoRAs.",
            is_output_node=True,
            inputs=[
                io.Combo.Input("lora_name", options=host.lora_names(), tooltip="A file in ComfyUI's loras folders."),
            ],
            outputs=[
                types.LoraModel.Output(display_name="lora"),
                io.String.Output(display_name="trigger"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name):
        facts = host.lora_path(lora_name).stat()
        return facts.st_mtime_ns, facts.st_size

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        with torch.inference_mode(False):
            tensors, metadata = read_tensors(host.lora_path(lora_name))
            wire, seen = opened(tensors, metadata, lora_name)
        trigger = ", ".join(trigger_words(metadata))
        return io.NodeOutput(wire, trigger, ui=ui.PreviewText(seen.text()))


class InspectLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierInspectLora",
            display_name="Inspect LoRA",
            category=CATEGORY,
            description="Say what a LoRA is: base model, layout, ranks, alphas, header, and what ComfyUI and diffusers make of it.",
            is_output_node=True,
            inputs=[
                types.LoraModel.Input("lora", tooltip="The LoRA to look at."),
                io.Boolean.Input("every_layer", default=False, tooltip="List every layer with its rank and alpha."),
            ],
            outputs=[io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(cls, lora, every_layer: bool) -> io.NodeOutput:
        with torch.inference_mode(False):
            text = inspect_lora(lora, getattr(lora, "metadata", {}), called(lora, "lora")).text(every_layer)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class ConvertLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierConvertLora",
            display_name="Convert LoRA",
            category=CATEGORY,
            description="Write a LoRA in another key layout or precision; what it does stays the same.",
            is_output_node=True,
            inputs=[
                types.LoraModel.Input("lora", tooltip="The LoRA to convert."),
                io.Combo.Input(
                    "layout",
                    options=list(SCHEMES),
                    default="kohya",
                    tooltip="Key layout; kohya is read right by all loaders.",
                ),
                io.Combo.Input("dtype", options=list(DTYPES), default="float16", tooltip="Precision of the factors."),
                io.String.Input("name", default="converted", tooltip="Name of the file in output/loras."),
            ],
            outputs=[types.LoraModel.Output(display_name="lora"), io.AnyType.Output(display_name="lora name")],
        )

    @classmethod
    def validate_inputs(cls, name=None):
        return host.told(host.lora_file, name)

    @classmethod
    def execute(cls, lora, layout: str, dtype: str, name: str) -> io.NodeOutput:
        with torch.inference_mode(False):
            source = from_wire(lora, called(lora, "lora"))
            path = save_lora(name, source, {called(lora, "lora"): source}, layout, DTYPES[dtype])
            tensors, metadata = read_tensors(path)
            wire, seen = opened(tensors, metadata, path.name)
        words = "that nothing understands"
        told = counted(len(source.unknown), f"tensor {words} was", f"tensors {words} were")
        left = f"\n{told} left out" if source.unknown else ""
        return io.NodeOutput(wire, host.lora_name_of(path), ui=ui.PreviewText(f"{path}{left}\n{seen.text()}"))


NODES = [LoadLora, InspectLora, ConvertLora]
