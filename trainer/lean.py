"""peft's layers, leaner: LoRA as one function; DoRA, LoKr and LoHa without a dense matrix in every forward.

A dense delta of a Flux.1 layer is 38 to 132 MB, and autograd keeps it. The same numbers follow from the small factors:
row norms from Gram matrices, Kronecker products by reshaping, Hadamard products as factors of the squared rank. The
parameters, their names and their initial values stay peft's.
"""

import torch
import torch.nn.functional as F
from peft.tuners.loha.layer import Linear as LoHaLinear
from peft.tuners.lokr.layer import Linear as LoKrLinear
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from ..core.lora.kinds import hadamard_factors
from .flux.view import ProxyLinear


class FrozenLoraLinear(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T with a frozen W that is cast anew in backward; saves x and x A^T.

    peft adds its product to the output in passes over all of it; here both land in one.
    """

    @staticmethod
    def forward(ctx, x: Tensor, a: Tensor, b: Tensor, scale: float, base: ProxyLinear) -> Tensor:
        ctx.base, ctx.scale = base, scale
        weight, bias, release = base.cast(base.source, x)
        rows = x.flatten(0, -2)
        out = F.linear(rows, weight, bias)
        release()
        low = (rows @ a.to(x.dtype).T).mul_(scale)
        out.addmm_(low, b.to(x.dtype).T)
        ctx.save_for_backward(x, low, a, b)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, low, a, b = ctx.saved_tensors
        out = grad.flatten(0, -2)
        to_low = (out @ b.to(grad.dtype)).mul_(ctx.scale)
        for_a, for_b = to_low.T @ x.flatten(0, -2), out.T @ low
        for_x = None
        if ctx.needs_input_grad[0]:
            weight, _, release = ctx.base.cast(ctx.base.source, grad)
            for_x = (out @ weight).addmm_(to_low, a.to(grad.dtype)).view(x.shape)
            release()
        return for_x, for_a.to(a.dtype), for_b.to(b.dtype), None, None


class LeanLora(LoraLinear):
    """peft's LoRA over a proxy as one function; everything else of it stays peft's."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        base, name = self.get_base_layer(), self.active_adapters[0]
        if self.disable_adapters or base.assistant is not None:
            return super().forward(x, *args, **kwargs)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            a, b = self.lora_A[name].weight, self.lora_B[name].weight
            return FrozenLoraLinear.apply(x, a, b, float(self.scaling[name]), base)


class LeanDora(DoraLinearLayer):
    """DoRA's magnitude over a proxy: out = m / |W + s B A| (W x + s B A x) + bias, the norm taken as constant."""

    def __init__(self, base: ProxyLinear):
        super().__init__(fan_in_fan_out=False)
        weight, release = self._weight(base)
        squares = weight.square().sum(1)
        release()
        self.register_buffer("squares", squares, persistent=False)
        self.weight = nn.Parameter(squares.sqrt())

    @staticmethod
    def _weight(base: ProxyLinear):
        weight, _, release = base.cast(base.source, torch.zeros((), device=base.weight.device))
        return weight, release

    @torch.no_grad()
    def norms(self, base: ProxyLinear, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """|W + s B A| by rows, [out]: |W|^2 + 2 s B (W A^T) + s^2 B (A A^T) B^T, without B A."""
        weight, release = self._weight(base)
        with torch.autocast(a.device.type, enabled=False):
            cross, gram = weight @ a.T, a @ a.T
            squares = self.squares + 2 * scaling * (cross * b).sum(1) + scaling**2 * ((b @ gram) * b).sum(1)
        release()
        return squares.clamp(min=0).sqrt()

    def forward(self, x, *, lora_A, lora_B, scaling, base_layer, base_result=None, adapter_name="default") -> Tensor:
        gain = self.weight / self.norms(base_layer, lora_A.weight, lora_B.weight, scaling)
        with torch.no_grad():
            _, bias, release = base_layer.cast(base_layer.source, base_result)
            bias = None if bias is None else bias.clone()
            release()
        base_result = base_result if bias is None else base_result - bias
        return (gain - 1) * base_result + gain * lora_B(lora_A(x)) * scaling


class LeanLoKr(LoKrLinear):
    """kron(w1, w2) x by reshaping x, so that neither the product nor its gradient is ever whole."""

    def _get_delta_activations(self, adapter_name: str, input: Tensor, *args, **kwargs) -> Tensor:
        w1, whole = self.lokr_w1[adapter_name], adapter_name in self.lokr_w2
        first = self.lokr_w2[adapter_name] if whole else self.lokr_w2_b[adapter_name]
        rows = F.linear(input.unflatten(-1, (w1.shape[1], -1)), first)
        mixed = torch.einsum("...mr,lm->...lr", rows, w1.to(rows.dtype))
        out = mixed if whole else F.linear(mixed, self.lokr_w2_a[adapter_name])
        return out.flatten(-2) * self.scaling[adapter_name]


class LeanLoHa(LoHaLinear):
    """(a1 b1) * (a2 b2) as factors of the squared rank where that is cheaper than the dense product."""

    def _get_delta_activations(self, adapter_name: str, input: Tensor, *args, **kwargs) -> Tensor:
        parts = [getattr(self, f"hada_{name}")[adapter_name] for name in ("w1_a", "w1_b", "w2_a", "w2_b")]
        out, width = parts[0].shape[0], parts[1].shape[1]
        if parts[1].shape[0] ** 2 * (out + width) > out * width:
            return super()._get_delta_activations(adapter_name, input, *args, **kwargs)
        up, down = hadamard_factors(*parts)
        return F.linear(F.linear(input, down), up) * self.scaling[adapter_name]


def slim(tree: nn.Module, adapter_name: str, dora: bool) -> None:
    """Give every adapter layer of a tree its lean form, in place."""
    for layer in tree.modules():
        if isinstance(layer, LoKrLinear):
            layer.__class__ = LeanLoKr
        elif isinstance(layer, LoHaLinear):
            layer.__class__ = LeanLoHa
        elif dora and hasattr(layer, "lora_magnitude_vector"):
            layer.lora_variant[adapter_name] = DoraLinearVariant()
            layer.lora_magnitude_vector[adapter_name] = LeanDora(layer.get_base_layer())
        elif isinstance(layer, LoraLinear) and isinstance(layer.get_base_layer(), ProxyLinear):
            layer.__class__ = LeanLora
        if hasattr(layer, "cast_input_dtype_enabled"):
            # Under autocast peft's own cast would make a float32 copy of every input and cast it back.
            layer.cast_input_dtype_enabled = False
