"""The embedded model: nano-flux as the MODEL, CLIP and VAE that ComfyUI's own nodes take."""

from comfy_api.latest import io

from . import host


class LoadNanoFlux(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierLoadNanoFlux",
            display_name="Load nano-flux",
            category="Flux Atelier/Models",
            description="A real but tiny Flux.1 that ships with the pack: draws coloured shapes at 64 pixels on any machine.",
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(host.load_nano_model(), host.load_nano_clip(), host.load_nano_vae())


NODES = [LoadNanoFlux]
