"""Editing and restyling with SamplerCustomAdvanced: two texts, a picture's layout, a reference's style."""

from comfy_api.latest import io

from ..core.style.edit import FlowEditOptions, InversionOptions
from ..core.style.shared_attention import StyleOptions
from ..core.style.structure import StructureOptions
from .host.attention import Style, share_style
from .host.editing import edit_guider, flow_edit_sampler, guide_structure, inversion_sampler
from .widgets import inputs_of

CATEGORY = "Flux Atelier/Style"


class EditGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierEditGuider",
            display_name="Edit Guider",
            category=CATEGORY,
            description="A guider with two texts for FlowEdit Sampler and RF Inversion Sampler. Other samplers see the target.",
            inputs=[
                io.Model.Input("model", tooltip="The Flux model."),
                io.Conditioning.Input(
                    "source", tooltip="What the picture shows, with its guidance: low, such as 1.5 for FLUX.1-dev."
                ),
                io.Conditioning.Input(
                    "target", tooltip="What it shall show, with its guidance: higher, such as 5.5 for FLUX.1-dev."
                ),
            ],
            outputs=[io.Guider.Output(display_name="guider")],
        )

    @classmethod
    def execute(cls, model, source, target) -> io.NodeOutput:
        return io.NodeOutput(edit_guider(model, source, target))


class FlowEditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierFlowEditSampler",
            display_name="FlowEdit Sampler",
            category=CATEGORY,
            description="Changes what the two texts of an Edit Guider differ in and leaves the rest (FlowEdit).",
            inputs=inputs_of(FlowEditOptions),
            outputs=[io.Sampler.Output(display_name="sampler")],
        )

    @classmethod
    def execute(cls, **options) -> io.NodeOutput:
        return io.NodeOutput(flow_edit_sampler(FlowEditOptions(**options)))


class RFInversionSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierRFInversionSampler",
            display_name="RF Inversion Sampler",
            category=CATEGORY,
            description="Goes from the picture to noise and back under an Edit Guider's other text (RF-inversion).",
            inputs=inputs_of(InversionOptions),
            outputs=[io.Sampler.Output(display_name="sampler")],
        )

    @classmethod
    def execute(cls, **options) -> io.NodeOutput:
        return io.NodeOutput(inversion_sampler(InversionOptions(**options)))


class KeepStructure(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierKeepStructure",
            display_name="Keep Structure",
            category=CATEGORY,
            description="Makes a model keep the coarse shapes of a picture while it draws, with any sampler.",
            inputs=[
                io.Model.Input("model", tooltip="The model; it stays as it is, the one that comes out is guided."),
                io.Latent.Input(
                    "latent", tooltip="The picture whose layout is kept, encoded; one, or one for each picture."
                ),
                *inputs_of(StructureOptions),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model, latent, **options) -> io.NodeOutput:
        return io.NodeOutput(guide_structure(model, latent["samples"], StructureOptions(**options)))


class StyleReference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierStyleReference",
            display_name="Style Reference",
            category=CATEGORY,
            description="Makes a Flux model draw in the style of reference pictures, by shared attention, without training.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model; it stays as it is, the one that comes out takes the style."
                ),
                io.Latent.Input(
                    "reference",
                    optional=True,
                    tooltip="One or several reference pictures, encoded. Empty: each batch's first picture is the reference.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where pictures take the style: white does, black does not; grey in part.",
                ),
                io.Mask.Input(
                    "reference_mask",
                    optional=True,
                    tooltip="What of the references is looked at: white is, black is not.",
                ),
                *inputs_of(StyleOptions),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model, reference=None, mask=None, reference_mask=None, **options) -> io.NodeOutput:
        latents = None if reference is None else reference["samples"]
        return io.NodeOutput(share_style(model, Style(latents, StyleOptions(**options), mask, reference_mask)))


NODES = [EditGuider, FlowEditSampler, RFInversionSampler, KeepStructure, StyleReference]
