"""Block weights, and strengths that follow the noise level."""

import torch
from comfy_api.latest import io, ui

from ..core.lora.anatomy import ANATOMY
from ..core.lora.blocks import apply_weights, check_weights, parse_weights, summary
from ..core.lora.record import Base
from ..core.lora.schedule import INTERPOLATIONS, Interpolation, parse_schedule
from . import host, types
from .host.hooks import lora_hooks, schedule_lora
from .saving import save_lora
from .wire import called, from_wire, to_wire

CATEGORY = "Flux Atelier/LoRA"


def weights_input(**more) -> io.String.Input:
    return io.String.Input(
        "weights",
        default="",
        multiline=True,
        tooltip="Entries like double.0-18 = 0.5, single = 0..1, attention = 0, *.img_mlp = 0.3, or a vector of 57 "
        "numbers; nothing means 1 everywhere.",
        **more,
    )


def schedule_inputs() -> list:
    return [
        io.String.Input(
            "schedule",
            default="1: 1, 0: 1",
            multiline=True,
            tooltip="Points sigma: strength, sigma from 1 (noise) to 0 (picture); with % shares of the sampling, "
            "0%: 0, 30%: 1. Strengths may be of any size and sign.",
        ),
        io.Combo.Input(
            "interpolation",
            options=list(INTERPOLATIONS),
            default="linear",
            tooltip="Between two points: a straight line, a smooth one, or the earlier point's strength.",
        ),
    ]


class BlockWeights(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierBlockWeights",
            display_name="Block Weights",
            category=CATEGORY,
            description="How much of a LoRA counts in which block, drawn as bars or written as text.",
            inputs=[
                io.Combo.Input(
                    "base",
                    options=list(ANATOMY),
                    default="flux1",
                    tooltip="The kind of model whose blocks are drawn and named.",
                ),
                weights_input(),
            ],
            outputs=[io.String.Output(display_name="weights")],
        )

    @classmethod
    def validate_inputs(cls, base=None, weights=None):
        return host.told(parse_weights, weights, base or "flux1")

    @classmethod
    def execute(cls, base: Base, weights: str) -> io.NodeOutput:
        return io.NodeOutput(parse_weights(weights, base).text)


class ApplyBlockWeights(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierApplyBlockWeights",
            display_name="Apply Block Weights",
            category=CATEGORY,
            description="Multiply a LoRA's layers by weights, block by block; a weight of 0 drops a layer.",
            is_output_node=True,
            inputs=[
                types.LoraModel.Input("lora", tooltip="The LoRA."),
                weights_input(),
                io.String.Input("name", default="", tooltip="Name of a file in output/loras; nothing writes none."),
            ],
            outputs=[types.LoraModel.Output(display_name="lora")],
        )

    @classmethod
    def validate_inputs(cls, name=None, weights=None):
        named = host.told(host.lora_file, name) if name and name.strip() else True
        return named if named is not True else host.told(check_weights, weights)

    @classmethod
    def execute(cls, lora: dict, weights: str, name: str) -> io.NodeOutput:
        with torch.inference_mode(False):
            given = from_wire(lora, called(lora, "lora"))
            read = parse_weights(weights, given.base)
            weighted = apply_weights(given, read)
            lines = [summary(given, read)]
            if name.strip():
                lines.append(str(save_lora(name, weighted, {called(lora, "lora"): given})))
            out = to_wire(weighted, name.strip())
        return io.NodeOutput(out, ui=ui.PreviewText("\n".join(lines)))


class ScheduleLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierScheduleLora",
            display_name="Schedule LoRA",
            category=CATEGORY,
            description="Load a LoRA into a MODEL with a strength that follows the noise level while it samples.",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model; it stays as it is, weights and all."),
                types.LoraModel.Input("lora", tooltip="The LoRA; chain several of these nodes for several."),
                *schedule_inputs(),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, schedule=None):
        return host.told(parse_schedule, schedule)

    @classmethod
    def execute(cls, model, lora: dict, schedule: str, interpolation: Interpolation) -> io.NodeOutput:
        with torch.inference_mode(False):
            read = parse_schedule(schedule, interpolation)
            return io.NodeOutput(schedule_lora(model, from_wire(lora, "lora"), read))


class ScheduledLoraHooks(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierScheduledLoraHooks",
            display_name="LoRA Hooks with Schedule",
            category=CATEGORY,
            description="A LoRA as ComfyUI's hooks for a prompt, with a strength that follows the noise level.",
            inputs=[
                types.LoraModel.Input("lora", tooltip="The LoRA; only what it does to the diffusion model counts."),
                *schedule_inputs(),
                io.Hooks.Input("prev_hooks", optional=True, tooltip="Hooks that these are added to."),
            ],
            outputs=[io.Hooks.Output(display_name="hooks")],
        )

    @classmethod
    def validate_inputs(cls, schedule=None):
        return host.told(parse_schedule, schedule)

    @classmethod
    def execute(cls, lora: dict, schedule: str, interpolation: Interpolation, prev_hooks=None) -> io.NodeOutput:
        with torch.inference_mode(False):
            read = parse_schedule(schedule, interpolation)
            return io.NodeOutput(lora_hooks(to_wire(from_wire(lora, "lora")), read, prev_hooks))


NODES = [BlockWeights, ApplyBlockWeights, ScheduleLora, ScheduledLoraHooks]
