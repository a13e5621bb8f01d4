"""The list of nodes that ComfyUI asks for."""

from comfy_api.latest import ComfyExtension, io

from . import (
    analysis,
    arranging,
    block_weights,
    caption_fusion,
    caption_lint,
    captioners,
    checkpoints,
    clips,
    dataset_report,
    datasets,
    distil,
    editing,
    evaluation,
    exchange,
    frame_models,
    frames,
    framing,
    gallery,
    lora_grid,
    lora_parts,
    loras,
    merging,
    metrics,
    nano,
    panel,
    rank,
    regions,
    registry,
    restyling,
    review,
    runs,
    style,
    training,
)  # fmt: skip


class FluxAtelier(ComfyExtension):
    """Every node of the pack, on every machine."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        panel.register()
        gallery.register()
        caption_shelves = (captioners, caption_fusion, caption_lint)
        dataset_shelves = (datasets, framing, arranging, dataset_report, review, exchange)
        training_shelves = (training, runs)
        lora_shelves = (
            loras,
            merging,
            block_weights,
            rank,
            checkpoints,
            distil,
            analysis,
            lora_parts,
            registry,
            lora_grid,
        )
        shelves = (
            nano,
            *dataset_shelves,
            *caption_shelves,
            *training_shelves,
            *lora_shelves,
            evaluation,
            style,
            regions,
            editing,
            frames,
            frame_models,
            clips,
            restyling,
            metrics,
        )
        return [node for shelf in shelves for node in shelf.NODES]


async def comfy_entrypoint() -> FluxAtelier:
    return FluxAtelier()
