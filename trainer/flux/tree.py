"""The module tree of a Flux.1 transformer under its original names, with the Linears left to the caller.

`FluxTree(shape)` is a plain trainable model; the TrainView builds the same tree from proxies. Either way the state
dict and the module names are the original single file's, so an adapter fits both.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.flux.layout import FluxShape
from .attention import at_least_float32
from .forward import double_block, flux_forward, single_block

MakeLinear = Callable[[str, int, int], nn.Module]  # (module name, in features, out features)
MakeNorm = Callable[[str], nn.Module]


class Norm(nn.Module):
    """Root mean square norm over one head of 128, in float32 or finer."""

    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        exact = at_least_float32(x)
        return F.rms_norm(exact, x.shape[-1:], self.scale.to(exact.dtype), 1e-6).to(x.dtype)


def plain_linear(name: str, width: int, out: int) -> nn.Module:
    return nn.Linear(width, out)


def plain_norm(name: str) -> nn.Module:
    return Norm(torch.ones(128))


class FluxTree(nn.Module):
    """A Flux.1 transformer of any width and depth; `shape` says which."""

    def __init__(self, shape: FluxShape, linear: MakeLinear = plain_linear, norm: MakeNorm = plain_norm):
        super().__init__()
        self.shape, self._linear, self._norm = shape, linear, norm
        self.block_functions: tuple[Callable, Callable] = double_block, single_block
        h = shape.hidden
        self.img_in, self.txt_in = linear("img_in", shape.channels, h), linear("txt_in", shape.context, h)
        self.time_in, self.vector_in = self._embedder("time_in", 256), self._embedder("vector_in", shape.pooled)
        if shape.guidance:
            self.guidance_in = self._embedder("guidance_in", 256)
        self.double_blocks = nn.ModuleList(self._double(f"double_blocks.{i}") for i in range(shape.double))
        self.single_blocks = nn.ModuleList(self._single(f"single_blocks.{i}") for i in range(shape.single))
        modulation = nn.Sequential(nn.SiLU(), linear("final_layer.adaLN_modulation.1", h, 2 * h))
        last = linear("final_layer.linear", h, shape.channels)
        self.final_layer = _named(linear=last, adaLN_modulation=modulation)

    def _embedder(self, name: str, width: int) -> nn.Module:
        h = self.shape.hidden
        return _named(
            in_layer=self._linear(f"{name}.in_layer", width, h), out_layer=self._linear(f"{name}.out_layer", h, h)
        )

    def _norms(self, name: str) -> nn.Module:
        return _named(query_norm=self._norm(f"{name}.query_norm"), key_norm=self._norm(f"{name}.key_norm"))

    def _double(self, name: str) -> nn.Module:
        h, mlp, linear = self.shape.hidden, self.shape.mlp, self._linear
        parts = {}
        for side in ("img", "txt"):
            at = f"{name}.{side}"
            parts[f"{side}_mod"] = _named(lin=linear(f"{at}_mod.lin", h, 6 * h))
            parts[f"{side}_attn"] = _named(
                qkv=linear(f"{at}_attn.qkv", h, 3 * h),
                norm=self._norms(f"{at}_attn.norm"),
                proj=linear(f"{at}_attn.proj", h, h),
            )
            parts[f"{side}_mlp"] = nn.Sequential(
                linear(f"{at}_mlp.0", h, mlp), nn.GELU("tanh"), linear(f"{at}_mlp.2", mlp, h)
            )
        return _named(**parts)

    def _single(self, name: str) -> nn.Module:
        h, mlp, linear = self.shape.hidden, self.shape.mlp, self._linear
        return _named(
            linear1=linear(f"{name}.linear1", h, 3 * h + mlp),
            linear2=linear(f"{name}.linear2", h + mlp, h),
            norm=self._norms(f"{name}.norm"),
            modulation=_named(lin=linear(f"{name}.modulation.lin", h, 3 * h)),
        )

    def compile_blocks(self) -> None:
        """Compile the two kinds of blocks with torch.compile; each is one graph, whatever its depth."""
        double, single = self.block_functions
        self.block_functions = torch.compile(double, dynamic=False), torch.compile(single, dynamic=False)

    def forward(self, latent, sigma, text, pooled, guidance=None, checkpointed=(), reference=None) -> Tensor:
        """Predict the velocity; see flux_forward."""
        return flux_forward(self, latent, sigma, text, pooled, guidance, checkpointed, reference)


def _named(**children: nn.Module) -> nn.Module:
    holder = nn.Module()
    for name, child in children.items():
        holder.add_module(name, child)
    return holder
