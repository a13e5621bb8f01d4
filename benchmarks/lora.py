"""LoRAs brought to lower ranks and merged: in factors, beside the dense decompositions that other tools take.

Layers of Flux.1 dev's true shapes, rank 32, float16, singular values falling as i^-0.8, made here from random numbers.
Peers, written anew from what they do: the full SVD of the dense delta (sd-scripts until 2026-02, KJNodes, ComfyUI's
LoraSave), torch.svd_lowrank of it with q = 2 * rank and niter = 2 (sd-scripts since), peft's add_weighted_adapter with
combination_type "svd" in its default, and a full SVD with factors clamped at their 99 % quantile (sd-scripts' merge).

Everything has one thread, and seconds are CPU seconds, so that what else the machine does counts little; two threads
are faster for everybody where the cores are free. Seconds of a whole LoRA are those of its 304 layers. The randomised SVD
is timed in all eight shapes, 38 layers each. The full one is timed in 3072 x 3072 and 9216 x 3072, and every larger
layer counts as the latter, in the peer's favour. Errors are relative, of the layer's delta beside the float64 optimum by
QR. Memory is the peak beside the factors, in a process of its own. Our files are read and written; the peers' seconds
beside them are for the decompositions alone.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .__main__ import ROOT, Figure

DOUBLE = {"attn.qkv": (9216, 3072), "attn.proj": (3072, 3072), "mlp.0": (12288, 3072), "mlp.2": (3072, 12288),
          "mod.lin": (18432, 3072)}  # fmt: skip
SINGLE = {"linear1": (21504, 3072), "linear2": (3072, 15360), "modulation.lin": (9216, 3072)}
OF_EACH = 38  # layers of each of the eight shapes
SMALL, LARGE = (3072, 3072), (9216, 3072)
RANK, LESS, MERGED = 32, 8, 16
WEIGHTS = (1.0, 0.8, -0.5)


def run() -> list[Figure]:
    from flux_atelier.core.lora.factors import Factors

    torch.set_num_threads(1)
    shapes = [*DOUBLE.values(), *SINGLE.values()]
    layers = {shape: Factors(*layer(shape, 1), 16.0) for shape in shapes}
    ours = {shape: best(lambda one=one: resized(one, LESS), 5) for shape, one in layers.items()}
    random = {shape: best(lambda one=one: lowrank(one, LESS), 2) for shape, one in layers.items()}
    full = {shape: seconds(lambda shape=shape: full_svd(layers[shape])) for shape in (SMALL, LARGE)}
    whole = OF_EACH * sum(ours.values())
    whole_random, whole_full = OF_EACH * sum(random.values()), scaled(full)
    wrong = errors(layers)
    full_svd.cache_clear()
    merging, whole_peft = merges()
    with tempfile.TemporaryDirectory() as folder:
        files = whole_files(Path(folder))
    return [
        Figure("resize 304 layers, full SVD", whole, whole_full, "s", least=1000),
        Figure("resize 304 layers, svd_lowrank", whole, whole_random, "s", least=25),
        Figure("resize 3072 x 3072, full SVD", ours[SMALL], full[SMALL], "s"),
        Figure("resize 9216 x 3072, full SVD", ours[LARGE], full[LARGE], "s"),
        Figure("file of 292 MiB to rank 8, full SVD", files["rank"], whole_full, "s", most=2.5),
        Figure("file to 0.9 of the norm, svd_lowrank", files["norm"], whole_random, "s", most=2.0),
        Figure("file to 100 MiB, full SVD", files["size"], whole_full, "s"),
        Figure("three files to rank 16, peft svd", files["merge"], whole_peft, "s", most=6.0),
        *merging,
        *wrong,
        *memory(),
    ]


def scaled(of_two: dict[tuple[int, int], float]) -> float:
    """Seconds of all 304 layers from those of the two shapes that are measured."""
    return OF_EACH * (of_two[SMALL] + 7 * of_two[LARGE])


# --- the files ---------------------------------------------------------------------------------------------------------


def whole_files(folder: Path) -> dict[str, float]:
    """Seconds from file to file, of LoRAs of 304 layers."""
    from flux_atelier.core.lora.budget import Budget, resize_to_size
    from flux_atelier.core.lora.formats import read_lora, write_lora
    from flux_atelier.core.lora.merge import merge
    from flux_atelier.core.lora.resize import Rule, resize

    files = [synthetic(folder / f"{i}.safetensors", i) for i in range(3)]
    out = folder / "out.safetensors"

    def to_rule(rule: Rule) -> None:
        write_lora(out, resize(read_lora(files[0]), rule).lora)

    def to_size() -> None:
        write_lora(out, resize_to_size(read_lora(files[0]), Budget(100.0)).lora)

    def merged() -> None:
        parts = [(f.stem, weight, read_lora(f)) for f, weight in zip(files, WEIGHTS, strict=True)]
        write_lora(out, merge(parts, MERGED).lora)

    return {
        "rank": best(lambda: to_rule(Rule("rank", LESS)), 3),
        "norm": best(lambda: to_rule(Rule("frobenius", 0.9)), 3),
        "size": best(to_size, 2),
        "merge": best(merged, 2),
    }


def synthetic(path: Path, seed: int) -> Path:
    """A Flux.1 dev LoRA of rank 32 in float16, kohya's layout."""
    from flux_atelier.core.lora.factors import Factors
    from flux_atelier.core.lora.formats import write_lora
    from flux_atelier.core.lora.record import Lora

    rng = torch.Generator().manual_seed(seed)
    falling = torch.arange(1, RANK + 1) ** -0.4
    names = {f"double_blocks.{n}.{s}_{k}": v for n in range(19) for s in ("img", "txt") for k, v in DOUBLE.items()}
    names |= {f"single_blocks.{n}.{k}": v for n in range(38) for k, v in SINGLE.items()}
    modules = {}
    for name, (out, width) in names.items():
        up = torch.randn(out, RANK, generator=rng) * falling / out**0.5
        down = torch.randn(RANK, width, generator=rng) * falling[:, None] / width**0.5
        modules[name] = Factors(up.half(), down.half(), 16.0)
    return write_lora(path, Lora(modules, "kohya"))


# --- a layer at a time -------------------------------------------------------------------------------------------------


def layer(shape: tuple[int, int], seed: int, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """Up and down of a layer, their directions mixed, float16."""
    rng = torch.Generator().manual_seed(seed)
    out, width = shape
    left, right, mix = (torch.linalg.qr(torch.randn(n, rank, generator=rng))[0] for n in (out, width, rank))
    root = torch.arange(1, rank + 1) ** -0.4
    return (left * root @ mix).half(), (mix.T @ (root[:, None] * right.T)).half()


def resized(factors, rank: int):
    from flux_atelier.core.lora.record import Lora
    from flux_atelier.core.lora.resize import Rule, plan_layer, rebuilt

    part = plan_layer("x", factors, Rule("rank", rank))
    return rebuilt(Lora({"x": factors}, "kohya"), {"x": part}, (), {}).lora.modules["x"]


def lowrank(factors, rank: int) -> Tensor:
    left, sigma, right = torch.svd_lowrank(factors.delta(), q=2 * rank, niter=2)
    return (left[:, :rank] * sigma[:rank]) @ right[:, :rank].T


@cache
def full_svd(factors) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(factors.delta(), full_matrices=True)


def full_cut(factors, rank: int) -> Tensor:
    left, sigma, right = full_svd(factors)
    return (left[:, :rank] * sigma[:rank]) @ right[:rank]


def clamped_cut(factors, rank: int) -> Tensor:
    """As sd-scripts' merge and extraction do it: both factors cut off at the 99 % quantile of all their values."""
    left, sigma, right = full_svd(factors)
    left, right = left[:, :rank] * sigma[:rank], right[:rank]
    most = torch.quantile(torch.cat([left.flatten(), right.flatten()]), 0.99).item()
    return left.clamp(-most, most) @ right.clamp(-most, most)


def optimum(factors, rank: int) -> Tensor:
    """The best approximation of a rank, by QR of both factors in float64; nothing of it is ours."""
    left, root = torch.linalg.qr(factors.up.double() * factors.scale)
    right, other = torch.linalg.qr(factors.down.double().T)
    p, sigma, q = torch.linalg.svd(root @ other.T)
    return (left @ p[:, :rank] * sigma[:rank]) @ (q[:rank] @ right.T)


def errors(layers: dict) -> list[Figure]:
    """Errors beside the float64 optimum at 3072 x 3072, where the full SVD is at hand already."""
    one = layers[SMALL]
    exact = optimum(one, LESS)

    def error(made: Tensor) -> float:
        return ((made.double() - exact).norm() / exact.norm()).item()

    made = resized(one, LESS)
    ours = error(made.up.double() @ made.down.double() * made.scale)
    return [
        Figure("error of rank 8, full SVD", ours, error(full_cut(one, LESS)), "", most=1e-6),
        Figure("error of rank 8, svd_lowrank", ours, error(lowrank(one, LESS)), "", most=1e-6),
        Figure("error of rank 8, clamped", ours, error(clamped_cut(one, LESS)), "", most=1e-6),
    ]


def merges() -> tuple[list[Figure], float]:
    """Three LoRAs of one layer into rank 16, beside peft, and peft's seconds for a whole LoRA."""
    rows, ours_of, theirs_of = [], {}, {}
    for shape in (SMALL, LARGE):
        parts = [layer(shape, seed) for seed in range(3)]
        made = our_merge(parts)
        ours_of[shape] = best(lambda parts=parts: our_merge(parts), 5)
        model = peft_layer(shape, parts)
        theirs_of[shape] = seconds(lambda model=model: peft_merge(model))
        exact = optimum(summed(parts), MERGED)
        error, other = (
            ((delta.double() - exact).norm() / exact.norm()).item()
            for delta in (made.up.double() @ made.down.double() * made.scale, peft_delta(model))
        )
        rows.append(Figure(f"error of a merge, peft {shape[0]} x {shape[1]}", error, other, "", most=1e-6))
    whole = scaled(theirs_of)
    return [Figure("merge 304 layers, peft svd", scaled(ours_of), whole, "s", least=1000), *rows], whole


def summed(parts: list):
    """Three layers side by side, float64."""
    from flux_atelier.core.lora.factors import Factors

    up = torch.cat([weight * 0.5 * up.double() for (up, _), weight in zip(parts, WEIGHTS, strict=True)], 1)
    return Factors(up, torch.cat([down.double() for _, down in parts]), float(up.shape[1]))


def our_merge(parts: list):
    from flux_atelier.core.lora.factors import Factors
    from flux_atelier.core.lora.merge import merge
    from flux_atelier.core.lora.record import Lora

    loras = [Lora({"img_in": Factors(up, down, 16.0)}, "kohya") for up, down in parts]
    given = [(str(i), weight, lora) for i, (weight, lora) in enumerate(zip(WEIGHTS, loras, strict=True))]
    return merge(given, MERGED).lora.modules["img_in"]


def peft_layer(shape: tuple[int, int], parts: list):
    from peft import LoraConfig, get_peft_model

    base = torch.nn.Sequential(torch.nn.Linear(shape[1], shape[0], bias=False))
    config = LoraConfig(r=RANK, lora_alpha=16, target_modules=["0"])
    model = get_peft_model(base, config, adapter_name="0")
    for name in ("1", "2"):
        model.add_adapter(name, config)
    inner = model.base_model.model[0]
    for name, (up, down) in zip("012", parts, strict=True):
        inner.lora_A[name].weight.data.copy_(down)
        inner.lora_B[name].weight.data.copy_(up)
    return model


def peft_merge(model) -> None:
    model.add_weighted_adapter(list("012"), list(WEIGHTS), "merged", combination_type="svd", svd_rank=MERGED)


def peft_delta(model) -> Tensor:
    return model.base_model.model[0].get_delta_weight("merged").detach()


# --- memory ------------------------------------------------------------------------------------------------------------


def memory() -> list[Figure]:
    """Peaks of one layer's resize, each in a process of its own."""
    ours = peak("ours", (21504, 3072))
    return [
        Figure("MB beside linear1's factors, svd_lowrank", ours, peak("lowrank", (21504, 3072)), "MB", most=50),
        Figure("MB beside 3072 x 3072's, full SVD", peak("ours", SMALL), peak("full_svd", SMALL), "MB", most=50),
    ]


def peak(what: str, shape: tuple[int, int]) -> float:
    command = [sys.executable, "-c", f"from benchmarks.lora import child; child({what!r}, {shape!r})"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return float(done.stdout.split()[-1])


def child(what: str, shape: tuple[int, int]) -> None:
    """Resize one layer after a small one has woken the libraries, and print the megabytes that took."""
    from .__main__ import load_package
    from .measures import peak_memory, settle

    load_package()
    torch.set_num_threads(1)
    from flux_atelier.core.lora.factors import Factors

    work: dict[str, Callable] = {
        "ours": lambda one: resized(one, LESS),
        "lowrank": lambda one: lowrank(one, LESS),
        "full_svd": full_svd,
    }
    one = Factors(*layer(shape, 1), 16.0)
    work[what](Factors(*layer((256, 256), 0), 16.0))
    before = settle()
    work[what](one)
    print(peak_memory() - before)


# --- clocks ------------------------------------------------------------------------------------------------------------


def seconds(work: Callable) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def best(work: Callable, runs: int) -> float:
    """The shortest of some runs: what else the machine does only adds."""
    return min(seconds(work) for _ in range(runs))
