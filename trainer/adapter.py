"""The adapter in training: peft layers injected into a tree, their state, and their way from and to LoRA files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..core.errors import AtelierError
from ..core.lora.factors import Factors, truncate
from ..core.lora.kinds import Hada, Kron, Layer, plain
from .config import AdapterOptions
from .flux.view import fitting_layer
from .targets import Target, choose

NAME = "default"


def inject(tree: nn.Module, options: AdapterOptions, seed: int) -> list[nn.Parameter]:
    """Add an adapter to a tree in place and return its float32 parameters, in a fixed order.

    tree     a TrainView, or a FluxTree for plain LoRA
    options  kind, rank, alpha, layers
    seed     of the initial values; the product starts at zero, so the model starts unchanged
    Raises AtelierError if peft is missing or the options leave no layer.
    """
    try:
        from peft import inject_adapter_in_model

        from .lean import slim
    except ImportError as error:
        raise AtelierError(
            f"Training needs the package peft, which could not be imported ({error}). Run: pip install peft"
        ) from None
    targets = choose(tree, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(peft_config(options, targets), tree, adapter_name=NAME)
    slim(tree, NAME, options.adapter_type == "dora")
    tree.eval()  # in training mode peft's LoKr and LoHa draw a random number in every forward
    for name, value in tree.named_parameters():
        value.requires_grad_(trained(name))
        if value.requires_grad:
            value.data = value.data.float()
    return [value for value in tree.parameters() if value.requires_grad]


def trained(name: str) -> bool:
    """Whether a parameter's name is the adapter's."""
    return name.endswith((f".{NAME}", f".{NAME}.weight"))


def peft_config(options: AdapterOptions, targets: list[Target]):
    """peft's configuration for exactly these layers with their ranks and alphas."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    names = [t.name for t in targets]
    ranks = {t.name: t.rank for t in targets if t.rank != options.rank}
    alphas = {t.name: t.alpha for t in targets if t.alpha != options.alpha}
    common = {"r": options.rank, "target_modules": names, "rank_pattern": ranks, "alpha_pattern": alphas}
    if options.adapter_type == "lokr":
        return LoKrConfig(alpha=options.alpha, decompose_factor=options.lokr_factor, **common)
    if options.adapter_type == "loha":
        return LoHaConfig(alpha=options.alpha, **common)
    return LoraConfig(lora_alpha=options.alpha, use_rslora=options.adapter_type == "rslora", **common)


def groups(tree: nn.Module, targets: list[Target]) -> list[dict]:
    """Optimiser groups by rate: `params`, and `rate` that multiplies the learning rate."""
    rates = {t.name: t.rate for t in targets}
    found: dict[float, list[nn.Parameter]] = {}
    for name, value in tree.named_parameters():
        if value.requires_grad:
            found.setdefault(rates[module_of(name)], []).append(value)
    return [{"params": params, "rate": rate} for rate, params in sorted(found.items(), reverse=True)]


def module_of(name: str) -> str:
    """Original module name of a parameter of an adapter."""
    marks = (".lora_", ".lokr_", ".hada_")
    return name[: min(name.find(m) for m in marks if m in name)]


def state(tree: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors by module and part, float32: `<module>.lora_A.weight`, `<module>.lokr_w1` ..."""
    return {name.replace(f".{NAME}", ""): value.detach() for name, value in tree.named_parameters() if trained(name)}


def load_state(tree: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Copy tensors from `state` back into a tree with the same adapter.

    Raises AtelierError if the names or sizes differ.
    """
    own = state(tree)
    if own.keys() != saved.keys() or any(own[k].shape != saved[k].shape for k in own):
        raise AtelierError(
            "The saved LoRA has other layers or another rank than the run's settings. "
            "Take the settings it was trained with, or another run folder."
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(saved[name])


def scales(tree: nn.Module) -> dict[str, float]:
    """What each layer's low-rank product is multiplied with, by module."""
    return {name: float(m.scaling[NAME]) for name, m in tree.named_modules() if hasattr(m, "enable_adapters")}


@contextmanager
def disabled(tree: nn.Module) -> Iterator[None]:
    """The model without its adapter for the length of a block; what is computed inside is the base model's."""
    layers = [m for m in tree.modules() if hasattr(m, "enable_adapters")]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def layers(tree: nn.Module) -> dict[str, Layer]:
    """The adapter as layers of a LoRA file, on the CPU, by original module name."""
    found: dict[str, Layer] = {}
    for name, module in tree.named_modules():
        if not hasattr(module, "enable_adapters"):
            continue
        part = {k.replace(f".{NAME}", ""): v.detach().cpu().clone() for k, v in module.named_parameters() if trained(k)}
        scale = float(module.scaling[NAME])
        if "lora_A.weight" in part:
            up, down = part["lora_B.weight"], part["lora_A.weight"]
            found[name] = Factors(up, down, scale * len(down), *_norms(module, scale))
        elif "hada_w1_a" in part:
            pairs = [(part[f"hada_{w}_a"], part[f"hada_{w}_b"]) for w in ("w1", "w2")]
            found[name] = Hada(*pairs, scale)
        else:
            whole = "lokr_w2" in part
            w2 = (part["lokr_w2"],) if whole else (part["lokr_w2_a"], part["lokr_w2_b"])
            found[name] = Kron(part["lokr_w1"], w2, scale)
    return found


def _norms(module: nn.Module, scale: float) -> tuple[Tensor | None, Tensor | None]:
    """A DoRA layer's row norms in both forms: peft's magnitude, and what ComfyUI divides by |W|."""
    if NAME not in module.lora_magnitude_vector:
        return None, None
    dora = module.lora_magnitude_vector[NAME]
    norms = dora.norms(module.get_base_layer(), module.lora_A[NAME].weight, module.lora_B[NAME].weight, scale)
    magnitude = dora.weight.detach()
    return magnitude.cpu().clone(), (magnitude * dora.squares.sqrt() / norms).cpu()


@torch.no_grad()
def start_from(tree: nn.Module, given: Mapping[str, Layer]) -> None:
    """Begin with what a LoRA has learnt: the adapter's factors become the best of its own rank to the LoRA's deltas.

    A LoRA of the adapter's rank or below is taken over exactly, whatever its alpha was; a higher one is truncated.
    Raises AtelierError if the LoRA has layers that are not trained here, does not fit, or the adapter is of another kind.
    """
    carriers = {name: m for name, m in tree.named_modules() if hasattr(m, "lora_A")}
    if not carriers:
        raise AtelierError("Only lora, rslora and dora go on from a LoRA. Choose one of them, or start without it.")
    left = [name for name in given if name not in carriers]
    if left:
        raise AtelierError(
            f"The LoRA to go on from has {len(left)} layers that are not trained here, such as {left[0]}. "
            "Choose targets that hold them: attention+mlp or all."
        )
    for name, layer in given.items():
        module = carriers[name]
        dora = module.lora_magnitude_vector[NAME] if NAME in module.lora_magnitude_vector else None  # noqa: SIM401 - no dict
        factors = layer if dora is not None and isinstance(layer, Factors) else plain(layer)
        fitting_layer(tree, name, factors)
        a, b = module.lora_A[NAME].weight, module.lora_B[NAME].weight
        fitted, _ = truncate(factors, len(a))
        rank = fitted.rank
        a[:rank].copy_(fitted.down)
        b.zero_()
        b[:, :rank].copy_(fitted.up * (fitted.scale / float(module.scaling[NAME])))
        if dora is not None:
            # A plain LoRA's rows keep the norms they have with it, so that the model starts as it was.
            norms = dora.norms(module.get_base_layer(), a, b, float(module.scaling[NAME]))
            gain = 1.0 if factors.dora_scale is None else factors.dora_scale.to(norms) / dora.squares.sqrt()
            dora.weight.copy_(norms * gain if factors.magnitude is None else factors.magnitude)
