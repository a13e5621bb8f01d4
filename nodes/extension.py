"""The list of nodes that ComfyUI asks for."""

from comfy_api.latest import ComfyExtension, io

from . import datasets, evaluation, frames, loras, nano, panel, runs, style, training


class FluxAtelier(ComfyExtension):
    """Every node of the pack, on every machine."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        panel.register()
        shelves = (nano, datasets, training, runs, loras, evaluation, style, frames)
        return [node for shelf in shelves for node in shelf.NODES]


async def comfy_entrypoint() -> FluxAtelier:
    return FluxAtelier()
