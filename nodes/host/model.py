"""The graph's MODEL as something to train on: its kind, its weights through ComfyUI's own casts, its identity."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as memory
import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ...core.errors import AtelierError
from ...core.files import digest_of
from ...core.flux.layout import FluxShape
from ...trainer.flux.view import Cast, Release, TrainView

SCHEDULE = "flux_atelier.schedule"  # how wrappers are named that change a LoRA's strength from step to step


def flux_shape(model) -> FluxShape:
    """Read the sizes of the Flux.1 transformer in a MODEL.

    Raises AtelierError that names what it is otherwise, or what of it training cannot see.
    """
    inner = model.model.diffusion_model
    params = getattr(inner, "params", None)
    kind = type(model.model).__name__
    channels = getattr(getattr(inner, "img_in", None), "in_features", None)
    if params is None or channels is None or not hasattr(inner, "double_blocks") or not hasattr(inner, "single_blocks"):
        raise AtelierError(f"The MODEL is {kind}, not Flux.1. Load a Flux.1 diffusion model.")
    for sign, what in (
        ("global_modulation", "Flux.2"),
        ("yak_mlp", "another Flux variant"),
        ("txt_norm", "a Flux variant"),
    ):
        if getattr(params, sign, False):
            raise AtelierError(f"The MODEL is {what} ({kind}), not Flux.1. Load a Flux.1 diffusion model.")
    if getattr(inner, "vector_in", None) is None or params.hidden_size // params.num_heads != 128:
        raise AtelierError(f"The MODEL is a Flux variant ({kind}) that is not Flux.1. Load a Flux.1 diffusion model.")
    if channels != 64:
        raise AtelierError(
            f"The MODEL takes {channels} input channels (Fill, Canny or Depth), not 64. Train on a Flux.1 base model."
        )
    if "bypass_lora" in model.injections:
        raise AtelierError(
            "The MODEL carries a LoRA in bypass mode, which training cannot see. Load that LoRA without bypass."
        )
    if any(str(key).startswith(SCHEDULE) for kept in model.wrappers.values() for key in kept):
        raise AtelierError(
            "The MODEL carries a scheduled LoRA, which training cannot see. Connect the MODEL from before Schedule LoRA."
        )
    return FluxShape(
        hidden=params.hidden_size, double=len(inner.double_blocks), single=len(inner.single_blocks), channels=channels,
        context=params.context_in_dim, pooled=params.vec_in_dim, guidance=bool(params.guidance_embed),
        mlp=int(params.hidden_size * params.mlp_ratio),
    )  # fmt: skip


def cast(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None, Release]:
    """Ask a ComfyUI layer of any kind for its weight in a tensor's dtype and device."""
    if hasattr(module, "cast_bias_weight"):  # ComfyUI-GGUF dequantises in its own method
        weight, bias = module.cast_bias_weight(like)[:2]
        return weight, bias, lambda: None
    held, bias, stream = comfy.ops.cast_bias_weight(module, like, offloadable=True)
    # ComfyUI hands a quantised weight out as it is if its compute dtype is the one asked for. Products with such a
    # weight round their other side too, gradients among them, and the 4-bit layouts know no product for backward.
    weight = held.dequantize() if isinstance(held, QuantizedTensor) else held
    smooth = getattr(module, "pre_quant_scale", None)  # of the inputs, in calibrated files: the same as of the columns
    if smooth is not None:
        weight = weight * smooth.to(like.device, like.dtype)
    return weight, bias, lambda: comfy.ops.uncast_bias_weight(module, held, bias, stream)


CAST: Cast = cast


@contextmanager
def training(model, required: int = 0) -> Iterator[TrainView]:
    """Load a MODEL and mirror it for training, with autograd on; memory is given back on the way out.

    required  bytes on the device that the training itself will need; ComfyUI keeps weights in RAM to leave them free

    ComfyUI runs nodes in inference mode, whose tensors cannot be trained on; inside this context tensors are normal.
    """
    shape = flux_shape(model)
    make_room(model)
    with torch.inference_mode(False), torch.enable_grad():
        reload(model, required)
        view = TrainView(model.model.diffusion_model, shape, CAST, memory.get_torch_device())
        try:
            yield view
        finally:
            del view
            gc.collect()
            memory.soft_empty_cache()


def reload(model, required: int = 0) -> None:
    """Bring a MODEL to where it is computed, leaving so many bytes free beside it."""
    # Quantised weights are made in inference mode and cannot be moved outside it.
    with torch.inference_mode():
        memory.load_models_gpu([model], memory_required=required)


def training_device() -> torch.device:
    """Where ComfyUI computes."""
    return memory.get_torch_device()


def make_room(model) -> tuple[int, int]:
    """Put every loaded model out of the way; gives the bytes then free, and those the MODEL's weights will take there.

    On the CPU the weights are in place already and take nothing more.
    """
    memory.unload_all_models()
    memory.soft_empty_cache()
    device = memory.get_torch_device()
    return int(memory.get_free_memory(device)), 0 if device.type == "cpu" else int(model.model_size())


def fingerprint(patcher, *more: object) -> str:
    """A digest of a model's weights and patches by a few values of each tensor: the same weights, the same key.

    Weights count as they are without patches, whatever is loaded at the moment; patches count with their strengths.
    """
    facts = [[name, *some_values(value)] for name, value in unpatched(patcher).items()]
    for name, patches in sorted(patcher.patches.items()):
        facts += [[str(name), str(p[0]), str(p[2]), *some_values(p[1])] for p in patches]
    return digest_of(facts, [str(m) for m in more])


def unpatched(patcher) -> dict[str, Tensor]:
    """A model's tensors by name as they are without patches."""
    state, parameters = patcher.model.state_dict(), dict(patcher.model.named_parameters())
    # ComfyUI-GGUF lists its weights by their sizes alone.
    state = {name: parameters.get(name, value) if value.is_meta else value for name, value in state.items()}
    for name, kept in patcher.backup.items():
        packed = isinstance(kept.weight, QuantizedTensor)
        state |= kept.weight.state_dict(name) if packed else {name: kept.weight}
    # A clone that was loaded before may have left its own shift in the model that both share.
    for name, kept in patcher.object_patches_backup.items():
        state = {k: v for k, v in state.items() if not k.startswith(f"{name}.")}
        state |= kept.state_dict(prefix=f"{name}.") if isinstance(kept, nn.Module) else {}
    return state


def some_values(value: object) -> list:
    """Shape and up to 16 values of a tensor; the same of every tensor inside an adapter or a tuple."""
    if isinstance(value, Tensor):
        flat = value.detach().as_subclass(Tensor).flatten()
        known = flat.numel() and not flat.is_meta
        picked = flat[:: max(1, flat.numel() // 16)][:16].float().cpu().tolist() if known else []
        return [list(value.shape), picked]
    inner = getattr(value, "weights", value)
    if isinstance(inner, (tuple, list)):
        return [some_values(v) for v in inner]
    return [inner if isinstance(inner, (int, float, str)) else type(inner).__name__]
