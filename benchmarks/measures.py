"""What the trainer's benchmark measures of a process: its turns, memory, arithmetic, what autograd keeps."""

import ctypes
import gc
import json
import os
import re
import sys
import time
from pathlib import Path

import torch


def wake_libraries() -> None:
    """Train a crumb, so that the code of the kernels is in memory before memory counts; it is mapped from files."""
    x = torch.randn(1, 2, 64, 128)
    layers = torch.nn.Linear(128, 128), torch.nn.Linear(128, 128).to(torch.bfloat16)
    for fused in (False, True):
        optimizer = torch.optim.AdamW([p for layer in layers for p in layer.parameters()], fused=fused)
        with torch.autocast("cpu", torch.bfloat16):
            y = torch.nn.functional.layer_norm(layers[1](layers[0](x)), (128,))
            y = torch.nn.functional.scaled_dot_product_attention(y, y, torch.nn.functional.gelu(y, approximate="tanh"))
        y.float().square().mean().backward()
        optimizer.step()


def settle() -> float:
    """Give freed memory back to the system, forget the peak so far, and return megabytes resident now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> float:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1e3


def flops(*works) -> list[float]:
    """GFLOP of each piece of work, matrix products and attention counted."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for work in works:
        with FlopCounterMode(display=False) as counter:
            work()
        counts.append(counter.get_total_flops() / 1e9)
    return counts


def kept_for_backward(work, model: torch.nn.Module) -> float:
    """Megabytes that autograd keeps after a forward pass, the model's own weights and views of them left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = work()  # noqa: F841 - the graph holds what is counted
    return sum(sizes.values()) / 1e6


# --- ours --------------------------------------------------------------------------------------------------------------


class Turns:
    """The conversation with the benchmark, one JSON line each way, and the clock of one step."""

    def __init__(self):
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever else prints, prints to standard error
        self.rest = 0.0  # CPU seconds of this step that are counted apart
        self.base = self.peak = 0.0

    def say(self, **facts) -> None:
        self._out.write(json.dumps(facts) + "\n")
        self._out.flush()

    def ready(self) -> None:
        """The model is loaded: from here on memory counts, and steps do."""
        with torch.inference_mode(False):
            wake_libraries()
        self.base = settle()
        self.say(ready=True)
        self._go()

    def step_done(self, last: bool) -> None:
        self.say(seconds=time.process_time() - self._began, apart=self.rest)
        self.rest = 0.0
        self.peak = peak_memory() - self.base
        if not last:
            self._go()

    def _go(self) -> None:
        sys.stdin.readline()
        self._began = time.process_time()
