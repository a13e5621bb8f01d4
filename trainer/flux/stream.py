"""Weights that wait in RAM and come to the GPU on a stream of their own while others are at work.

The host runs ahead of the GPU, so the copy of the next layer is asked for while the GPU still computes the last one; on
two lanes that take turns it need not wait, and no more than two layers are ever under way.
"""

import torch
from torch import Tensor, nn

from .view import Cast, Release, cast_plain


class Streamer:
    """A cast for models of which a part stays in pinned RAM."""

    def __init__(self, device: torch.device):
        self.lanes = [torch.cuda.Stream(device), torch.cuda.Stream(device)]
        self.done: list[torch.cuda.Event | None] = [None, None]
        self.turn = 0

    def cast(self, module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None, Release]:
        """The weight in a tensor's dtype and device; `release` lets its lane go on to the next."""
        if module.weight.device == like.device:
            return cast_plain(module, like)
        self.turn = turn = 1 - self.turn
        lane, work = self.lanes[turn], torch.cuda.current_stream(like.device)
        if self.done[turn] is not None:
            lane.wait_event(self.done[turn])
        with torch.cuda.stream(lane):
            weight, bias, _ = cast_plain(module, like, non_blocking=True)
        work.wait_stream(lane)
        for tensor in (weight, bias):
            if tensor is not None:
                tensor.record_stream(work)

        def release() -> None:
            self.done[turn] = work.record_event()

        return weight, bias, release


def place(tree: nn.Module, device: torch.device, streamed: float) -> Cast:
    """Bring a tree's weights to a device, leaving a share of its blocks in pinned RAM; returns the cast to use.

    streamed  share of the blocks' bytes that stays in RAM, spread evenly over the depth
    """
    if device.type != "cuda" or streamed <= 0:
        tree.to(device)
        return cast_plain
    blocks = [*tree.double_blocks, *tree.single_blocks]
    count = min(len(blocks), -(-int(streamed * len(blocks) * 1000) // 1000))
    waiting = {i * len(blocks) // count for i in range(count)} if count else set()
    for i, block in enumerate(blocks):
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.data = tensor.data.pin_memory() if i in waiting else tensor.data.to(device)
    for name, child in tree.named_children():
        if name not in ("double_blocks", "single_blocks"):
            child.to(device)
    return Streamer(device).cast
