"""The optimisers and learning-rate schedules a run may choose, and the optimiser's state as files hold it.

Every optimiser comes from a library that keeps it; those that are not torch's are imported when they are chosen. What
an optimiser or schedule does not know is an error, never passed over.
"""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import AtelierError
from .config import OptimizerOptions, OptimizerType, TrainOptions


@dataclass(frozen=True)
class Source:
    """Where an optimiser comes from; `package` is what pip installs, empty for what is there anyway."""

    module: str
    name: str
    package: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)
    finds_rate: bool = False  # Prodigy: the learning rate is a factor around 1
    averages: bool = False  # schedule-free: no schedule, and train and eval weights differ


SOURCES: dict[OptimizerType, Source] = {
    "adamw": Source("torch.optim", "AdamW", fixed={"fused": True}),
    "adamw8bit": Source("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "paged_adamw8bit": Source("bitsandbytes.optim", "PagedAdamW8bit", "bitsandbytes"),
    "adafactor": Source("transformers", "Adafactor", fixed={"relative_step": False, "scale_parameter": False}),
    "lion": Source("pytorch_optimizer", "Lion", "pytorch_optimizer"),
    "prodigy": Source("prodigyopt", "Prodigy", "prodigyopt", finds_rate=True),
    "prodigy_plus": Source(
        "prodigyplus", "ProdigyPlusScheduleFree", "prodigy-plus-schedule-free", finds_rate=True, averages=True
    ),
    "schedule_free": Source("schedulefree", "AdamWScheduleFree", "schedulefree", averages=True),
    "came": Source("pytorch_optimizer", "CAME", "pytorch_optimizer"),
}
OWN = ("params", "lr", "weight_decay", "fused")  # arguments that have an option of their own
# Schedules that cannot do without an argument get the one people mean.
USUAL: dict[str, dict[str, float]] = {"cosine_with_min_lr": {"min_lr_rate": 0.1}}


def make_optimizer(groups: list[dict], options: OptimizerOptions) -> torch.optim.Optimizer:
    """Make the chosen optimiser.

    groups  `params` and `rate` of each, see adapter.groups
    Raises AtelierError for a package that is missing, an argument it does not know, or a rate that makes no sense.
    """
    source = SOURCES[options.optimizer_type]
    kind, given = check(options, len(groups))
    rated = [g | {"lr": options.learning_rate * g["rate"]} for g in groups]
    try:
        made = kind(rated, lr=options.learning_rate, weight_decay=options.weight_decay, **{**source.fixed, **given})
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise AtelierError(
            f"The optimiser {options.optimizer_type} refused its arguments ({error}). Check optimizer_arguments."
        ) from None
    if source.averages:
        made.train()
    return made


def check(options: OptimizerOptions, rates: int) -> tuple[type, dict[str, Any]]:
    """Look at everything about an optimiser that can be wrong before there is anything to optimise.

    rates  number of different rates among the layers
    ->     its class, and the arguments given for it
    Raises AtelierError as make_optimizer does.
    """
    source, name = SOURCES[options.optimizer_type], options.optimizer_type
    _refuse_misfits(source, rates, options)
    kind = _load(source, name)
    return kind, read_arguments(options.optimizer_arguments, kind, name)


def _refuse_misfits(source: Source, rates: int, options: OptimizerOptions) -> None:
    name = options.optimizer_type
    if source.finds_rate and options.learning_rate < 0.01:
        raise AtelierError(
            f"{name} finds the learning rate itself and takes learning_rate = {options.learning_rate} as a factor. "
            "Set learning_rate to 1."
        )
    if not source.finds_rate and options.learning_rate > 0.1:
        raise AtelierError(f"learning_rate is {options.learning_rate}, which {name} cannot train with. Try 0.0001.")
    if source.finds_rate and rates > 1:
        raise AtelierError(f"{name} finds one rate for all layers. Leave rate= out of layer_rules, or choose adamw.")
    if source.averages and options.schedule != "constant":
        raise AtelierError(
            f"{name} needs no schedule, and {options.schedule} would work against it. Set schedule to constant."
        )


def _load(source: Source, name: str) -> type:
    try:
        return getattr(importlib.import_module(source.module), source.name)
    except (ImportError, RuntimeError) as error:
        raise AtelierError(
            f"The optimiser {name} needs the package {source.package or source.module} ({error}). "
            f"Run: pip install {source.package or source.module}"
        ) from None


def read_arguments(text: str, function: Callable, name: str) -> dict[str, Any]:
    """Read `betas=(0.9, 0.99), d_coef=2` into values, for a function that has to know every name.

    Raises AtelierError for what is no such list, or a name the function does not have.
    """
    try:
        call = ast.parse(f"_({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        given = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise AtelierError(
            f"The arguments {text!r} cannot be read. Write them like betas=(0.9, 0.99), eps=1e-8."
        ) from None
    known = [k for k, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD]
    for key in given:
        if key in OWN:
            raise AtelierError(f"The argument {key} of {name} has its own option. Set it there.")
        if key not in known:
            raise AtelierError(f"{name} has no argument {key}. It knows {', '.join(k for k in known if k not in OWN)}.")
    return given


def learning_rates(options: TrainOptions) -> Callable[[int], float]:
    """The learning rate as a function of the step, counted from 0: warmup, then the schedule (transformers').

    Raises AtelierError for schedule arguments that the schedule does not know.
    """
    import transformers.optimization as schedules
    from transformers import get_scheduler

    chosen = options.optimizer
    name = "constant_with_warmup" if chosen.schedule == "constant" else chosen.schedule
    function = schedules.TYPE_TO_SCHEDULER_FUNCTION[schedules.SchedulerType(name)]
    usual = dict(USUAL.get(name, {}))
    if name == "warmup_stable_decay":
        usual["num_decay_steps"] = max(1, options.steps // 5)
    given = read_arguments(chosen.schedule_arguments, function, f"the schedule {chosen.schedule}")
    if "min_lr" in given:
        usual.pop("min_lr_rate", None)
    stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(()))], chosen.learning_rate)
    try:
        scheduler = get_scheduler(
            name, stand_in, chosen.warmup, options.steps, scheduler_specific_kwargs={**usual, **given}
        )
    except (TypeError, ValueError) as error:
        raise AtelierError(
            f"The schedule {chosen.schedule} refused its arguments ({error}). Check schedule_arguments."
        ) from None
    factor = scheduler.lr_lambdas[0]
    # Step 0 of a warmup would be a step of zero; count from one.
    return lambda step: chosen.learning_rate * factor(step + 1 if step < chosen.warmup else step)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


@contextmanager
def averaged(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> Iterator[None]:
    """A schedule-free optimiser's averaged weights in place of those it trains, bit for bit undone after."""
    if not hasattr(optimizer, "eval"):
        yield
        return
    before = [p.detach().clone() for p in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()  # its own way back rounds
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)


def pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict]:
    """An optimiser's state as tensors by path, and the rest as what JSON holds."""
    tensors: dict[str, Tensor] = {}
    saved = optimizer.state_dict()
    groups = [{k: v for k, v in g.items() if k != "params"} for g in saved["param_groups"]]
    return tensors, {
        "state": {str(i): _pack(s, f"{i}", tensors) for i, s in saved["state"].items()},
        "groups": [_pack(g, f"group{i}", tensors) for i, g in enumerate(groups)],
    }


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": {str(k): _pack(v, f"{path}.{k}", tensors) for k, v in value.items()}}
    if isinstance(value, (list, tuple)):
        return {"list": [_pack(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]}
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "list" in value:
        return tuple(_unpack(v, tensors) for v in value["list"])
    return {k: _unpack(v, tensors) for k, v in value["dict"].items()}


def unpack(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], rest: dict) -> None:
    """Put what `pack` gave back into an optimiser over the same parameters.

    Raises AtelierError if the state is of other parameters.
    """
    groups, parameters = (
        optimizer.state_dict()["param_groups"],
        [p for g in optimizer.param_groups for p in g["params"]],
    )
    state = {int(i): _unpack(s, tensors) for i, s in rest["state"].items()}
    if len(groups) != len(rest["groups"]) or max(state, default=-1) >= len(parameters):
        raise AtelierError("The saved optimiser is one of other layers. Start the run anew under another name.")
    merged = [g | _unpack(saved, tensors) for g, saved in zip(groups, rest["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": merged})
    # torch casts what it loads to the parameter's dtype, though some optimisers keep bfloat16 or bytes.
    for index, values in state.items():
        own = optimizer.state[parameters[index]]
        for name, value in values.items():
            if isinstance(value, Tensor) and isinstance(own.get(name), Tensor) and own[name].dtype != value.dtype:
                own[name] = value.to(own[name].device)
