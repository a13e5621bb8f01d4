"""Merging by hand, beside peft and the formulas of the papers on dense float64 matrices, and the laws of each method.

DELLA, Breadcrumbs and SLERP stand beside formulas written here from arXiv:2406.11617, arXiv:2312.06795 and Shoemake
1985; they were compared once with mergekit 0.1.5 and sd-mecha 1.1.8, which pin packages this suite cannot have.
"""

import json
import math
from itertools import permutations

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora import elementwise
from flux_atelier.core.lora import merge as merge_of
from flux_atelier.core.lora.elementwise import METHODS, Part, Pruning, kth_magnitude, merge_values
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.kinds import Dense, Hada, Kron, Rotation
from flux_atelier.core.lora.merge import MergeOptions, merge, read_block_weights
from flux_atelier.core.lora.recompress import recompress, recompress_dense
from flux_atelier.core.lora.record import Layers, Lora
from flux_atelier.core.lora.spans import inner, shared_basis
from flux_atelier.core.options import parse

QKV, PROJ, SINGLE = "double_blocks.0.img_attn.qkv", "double_blocks.1.txt_attn.proj", "single_blocks.3.linear2"
ALL = merge_of.USED_BY["density"]
SPAN = ("linear", "average", "interpolate", "slerp", "difference", "negate", "orthogonal")


def exact(matrix) -> Factors:
    """A small matrix as factors."""
    value = torch.tensor(matrix, dtype=torch.float32)
    return Factors(value, torch.eye(value.shape[1]), float(value.shape[1]))


def factors(rows=24, columns=16, rank=4, seed=0, alpha=6.0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    up, down = torch.randn(rows, rank, generator=rng), torch.randn(rank, columns, generator=rng)
    return Factors(up.to(dtype), down.to(dtype), alpha)


def lora_of(*layers, **named) -> Lora:
    return Lora({**dict(zip((QKV, PROJ, SINGLE), layers, strict=False)), **named}, "kohya")


def true(factors) -> torch.Tensor:
    """A layer's delta in float64."""
    return factors.scale * factors.up.double() @ factors.down.double()


def merged(method, parts, rank=0, **options) -> torch.Tensor:
    """The delta of a merge of single layers at full rank: (weight, Factors) each."""
    loras = [(f"lora{i}", weight, lora_of(layer)) for i, (weight, layer) in enumerate(parts)]
    if method in METHODS and not rank:
        rank = min(parts[0][1].up.shape[0], parts[0][1].down.shape[1])
    return true(merge(loras, rank, MergeOptions(method=method, **options)).lora.modules[QKV])


def off(found, wanted) -> float:
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


# By hand

A, B = [[4.0, -1.0], [0.0, 2.0]], [[2.0, 3.0], [-1.0, -2.0]]
BY_HAND = [
    ("linear", dict(), (1.0, -1.0), [[2.0, -4.0], [1.0, 4.0]]),
    ("average", dict(), (3.0, 1.0), [[3.5, 0.0], [-0.25, 1.0]]),
    ("interpolate", dict(t=0.25), (1.0, 1.0), [[3.5, 0.0], [-0.25, 1.0]]),
    ("difference", dict(), (1.0, 1.0), [[2.0, -4.0], [1.0, 4.0]]),
    ("negate", dict(), (1.0, 0.5), [[-5.0, -0.5], [0.5, -1.0]]),
    ("magnitude", dict(density=0.5), (1.0, 1.0), [[6.0, 3.0], [0.0, 0.0]]),  # A keeps 4 and 2; B 3 and both 2s
    ("ties", dict(density=1.0), (1.0, 1.0), [[3.0, 3.0], [-1.0, 2.0]]),  # 2 - 2 elects plus
    ("ties", dict(density=0.25), (1.0, 1.0), [[4.0, 3.0], [0.0, 0.0]]),
    ("ties", dict(density=1.0), (2.0, 1.0), [[5.0, 3.0], [-1.0, 4.0]]),
    ("breadcrumbs", dict(density=0.5, gamma=0.25), (1.0, 1.0), [[2.0, -1.0], [0.0, 0.0]]),  # A: -1, 2; B: 2, -2
    ("dare_linear", dict(density=1.0), (1.0, 1.0), [[6.0, 2.0], [-1.0, 0.0]]),
]


@pytest.mark.parametrize(("method", "options", "weights", "expected"), BY_HAND)
def test_by_hand(method, options, weights, expected):
    found = merged(method, list(zip(weights, (exact(A), exact(B)), strict=True)), **options)
    assert torch.allclose(found, torch.tensor(expected).double(), atol=1e-5), found


def test_slerp_by_hand():
    a, b = exact([[2.0, 0.0], [0.0, 0.0]]), exact([[0.0, 0.0], [0.0, 4.0]])  # a right angle: halfway is at 45 degrees
    half = 3 * math.sqrt(0.5)
    assert torch.allclose(merged("slerp", [(1, a), (1, b)]), torch.tensor([[half, 0], [0, half]]).double())
    third = merged("slerp", [(1, a), (1, b)], t=1 / 3)
    norm = 2 * 2 / 3 + 4 / 3
    wanted = [[norm * math.cos(math.pi / 6), 0], [0, norm * math.sin(math.pi / 6)]]
    assert torch.allclose(third, torch.tensor(wanted, dtype=torch.float64), atol=1e-6)


def test_orthogonal_by_hand():
    a = exact([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])  # spans only the first value
    b = exact([[5.0, 1, 0, 0], [2, 3, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0]])
    wanted = torch.tensor([[1.0, 1, 0, 0], [2, 3, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0]]).double()
    assert torch.allclose(merged("orthogonal", [(1, a), (1, b)]), wanted, atol=1e-6)


def test_knots_by_hand():
    """Deltas that share the column (1, 1): in its direction they are rows of one line, and TIES goes on there."""
    a, b = exact([[3.0, -1.0], [3.0, -1.0]]), exact([[1.0, 2.0], [1.0, 2.0]])
    found = merged("knots_ties", [(1, a), (1, b)], density=1.0)
    assert torch.allclose(found, torch.tensor([[2.0, 2.0], [2.0, 2.0]]).double(), atol=1e-6)


def test_ties_of_four_by_four():
    """Half of each kept, signs elected by the sums, agreeing values averaged."""
    a = [[9, 1, -8, 1], [7, 1, 6, 1], [-5, 1, 4, 1], [3, 1, 2, 1]]
    b = [[-10, 1, -6, 1], [5, 1, -7, 1], [-3, 1, 8, 1], [1, 9, 1, 4]]
    wanted = [[-10, 0, -7, 0], [6, 0, -7, 0], [-4, 0, 6, 0], [3, 9, 2, 4]]
    found = merged("ties", [(1, exact(a)), (1, exact(b))], density=0.5)
    assert torch.allclose(found, torch.tensor(wanted).double(), atol=1e-5), found


# Beside references

MIXED = [
    (1.0, factors(rank=4, seed=1, dtype=torch.bfloat16)),
    (-0.7, factors(rank=6, seed=2, alpha=3.0, dtype=torch.float16)),
    (0.4, factors(rank=2, seed=3, alpha=1.0)),
]


def trained(seed, shared=6, rows=192, columns=160, rank=16):
    """Like a trained LoRA: singular values i^-0.8, the first directions in common with the others, factors rotated."""
    rng, common = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    sides = []
    for size in (rows, columns):
        first = torch.randn(size, shared, generator=common)
        sides.append(torch.linalg.qr(torch.cat([first, torch.randn(size, rank - shared, generator=rng)], 1))[0])
    order = torch.randperm(rank, generator=rng)  # what is loud in one is not in the other
    root = torch.arange(1, rank + 1)[order].float() ** -0.4
    turn = torch.linalg.qr(torch.randn(rank, rank, generator=rng))[0]
    return Factors(sides[0] * root @ turn, turn.T * root @ sides[1].T, 16.0)


PEERS = [  # weights; the error of peft's linear, kohya's and PM's and supermerger's sum, kohya's --concat
    ((1, 1), 0.70, 0.70, 0.50),
    ((0.5, 0.5), 0.70, 0.58, 0.75),
    ((0.7, 0.3), 0.61, 0.47, 0.69),
    ((1, -1), 0.86, 0.86, 0.50),
]


@pytest.mark.parametrize(("weights", "peft", "kohya", "concat"), PEERS)
def test_a_sum_is_exact_and_factors_merged_by_themselves_are_far_off(weights, peft, kohya, concat):
    """What the sum of the ups times the sum of the downs costs, and an alpha that is kept while the rank doubles."""
    a, b = trained(1), trained(2)
    wanted = sum(w * true(f) for w, f in zip(weights, (a, b), strict=True))
    assert off(merged("linear", list(zip(weights, (a, b), strict=True))), wanted) <= 1e-6

    def apart(power):
        up = sum(abs(w) ** power * f.up for w, f in zip(weights, (a, b), strict=True))
        down = sum(math.copysign(abs(w) ** power, w) * f.down for w, f in zip(weights, (a, b), strict=True))
        return up @ down

    assert off(apart(0.5), wanted) == pytest.approx(peft, abs=0.05)
    assert off(apart(1), wanted) == pytest.approx(kohya, abs=0.05)
    ups = torch.cat([abs(w) * f.up for w, f in zip(weights, (a, b), strict=True)], 1)
    stacked = Factors(ups, torch.cat([w * f.down for w, f in zip(weights, (a, b), strict=True)]), a.alpha)
    assert off(true(stacked), wanted) == pytest.approx(concat, abs=0.01)


def test_mixed_ranks_alphas_dtypes_and_signs():
    assert off(merged("linear", MIXED), sum(w * true(f) for w, f in MIXED)) <= 1e-6


DENSE = [f.folded().delta() for _, f in MIXED]
WEIGHTS = torch.tensor([w for w, _ in MIXED])


@pytest.mark.parametrize("density", [0.1, 0.37, 0.5, 0.9])
@pytest.mark.parametrize("method", ["ties", "magnitude"])
def test_beside_pefts_merge_utils(method, density):
    from peft.utils import merge_utils

    reference = merge_utils.ties if method == "ties" else merge_utils.magnitude_prune
    wanted = reference([d.clone() for d in DENSE], WEIGHTS, density)
    parts = [Part(w, f.folded(), i) for i, (w, f) in enumerate(MIXED)]
    assert off(merge_values(method, parts, Pruning(density)), wanted) <= 1e-6
    assert off(merged(method, MIXED, density=density), wanted) <= 1e-5  # through full-rank factors


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_beside_pefts_with_the_same_masks(method, monkeypatch):
    from peft.utils import merge_utils

    density, pruning = 0.4, Pruning(0.4, seed=(3, QKV))
    parts = [Part(w, f.folded(), i, f"lora{i}") for i, (w, f) in enumerate(MIXED)]
    masks = iter([(elementwise.drop(p, pruning, 5)(torch.ones(24, 16)) > 0).float() for p in parts])
    monkeypatch.setattr(torch, "bernoulli", lambda chances: next(masks))
    wanted = getattr(merge_utils, method)([d.clone() for d in DENSE], WEIGHTS, density)
    assert off(merge_values(method, parts, pruning), wanted) <= 1e-6


def test_della_beside_the_formula():
    pruning = Pruning(0.5, epsilon=0.2, seed=(0, QKV))
    part = Part(1.0, factors(200, 50, seed=4).folded(), key="a")
    delta = part.factors.delta()
    found = elementwise.drop_by_rank(part, pruning, 7)(delta)
    rank = torch.stack([(row.abs()[None] < row.abs()[:, None]).sum(1) for row in delta]).double()
    chance = 0.3 + 0.4 * rank / 49
    stays = found != 0
    assert torch.allclose(found[stays].double(), (delta.double() / chance)[stays], rtol=1e-5)
    for low, high in ((0, 10), (20, 30), (40, 50)):  # 2000 draws each: within four standard deviations
        group = (rank >= low) & (rank < high)
        expected = chance[group].mean()
        assert abs(stays[group].double().mean() - expected) < 4 * (expected * (1 - expected) / group.sum()).sqrt()


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.9, 0.1), (0.2, 0.0), (0.85, 0.01)])
def test_breadcrumbs_beside_the_formula(density, gamma):
    wanted = torch.zeros(24, 16, dtype=torch.float64)
    for (w, _), delta in zip(MIXED, DENSE, strict=True):
        order = delta.abs().flatten().argsort(descending=True)
        first, count = int(gamma * delta.numel()), int(density * delta.numel())
        mask = torch.zeros(delta.numel(), dtype=torch.float64)
        mask[order[first : first + count]] = 1
        wanted += w * delta.double() * mask.reshape(delta.shape)
    assert off(merged("breadcrumbs", MIXED, density=density, gamma=gamma), wanted) <= 1e-5


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_slerp_beside_dense_float64(t):
    (wa, a), (wb, b) = MIXED[:2]
    va, vb = wa * true(a), wb * true(b)
    angle = torch.acos((va * vb).sum() / (va.norm() * vb.norm()))
    arc = (torch.sin((1 - t) * angle) * va / va.norm() + torch.sin(t * angle) * vb / vb.norm()) / torch.sin(angle)
    wanted = arc * ((1 - t) * va.norm() + t * vb.norm())
    assert off(merged("slerp", MIXED[:2], t=t), wanted) <= 1e-6


def test_knots_beside_a_dense_svd():
    from peft.utils.merge_utils import ties

    left, sigma, _ = torch.linalg.svd(torch.cat([true(f) for _, f in MIXED], 1), full_matrices=False)
    left = left[:, sigma > 1e-6]
    inside = ties([left.T @ true(f) for _, f in MIXED], WEIGHTS.double(), 0.5)
    found = merge([(str(i), w, lora_of(f)) for i, (w, f) in enumerate(MIXED)], 0, MergeOptions(method="knots_ties"))
    assert off(true(found.lora.modules[QKV]), left @ inside) <= 1e-5
    assert found.lora.modules[QKV].rank <= 12
    assert found.kept == 1.0


@pytest.mark.parametrize("combination", ["cat", "svd", "ties_svd", "magnitude_prune_svd", "linear"])
def test_beside_pefts_weighted_adapter(combination):
    """A tiny model with two adapters, merged by peft itself; its `linear` mixes the factors and is told apart."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(16, 24)), LoraConfig(r=4, lora_alpha=6, target_modules=["0"]), "a"
    )
    model.add_adapter("b", LoraConfig(r=4, lora_alpha=2, target_modules=["0"]))
    layer = model.base_model.model[0]
    parts = []
    for name, weight in (("a", 0.8), ("b", 0.5)):
        torch.nn.init.normal_(layer.lora_A[name].weight)
        torch.nn.init.normal_(layer.lora_B[name].weight)
        alpha = layer.scaling[name] * 4
        parts.append((weight, Factors(layer.lora_B[name].weight.detach(), layer.lora_A[name].weight.detach(), alpha)))
    more = dict(density=0.5) if combination in ("ties_svd", "magnitude_prune_svd") else {}
    rank = dict(svd_rank=8) if combination.endswith("svd") else {}
    model.base_model.add_weighted_adapter(["a", "b"], [0.8, 0.5], "m", combination_type=combination, **more, **rank)
    theirs = layer.get_delta_weight("m").detach()
    method = {"ties_svd": "ties", "magnitude_prune_svd": "magnitude"}.get(combination, "linear")
    ours = merged(method, parts, 8, **more)
    if combination == "linear":
        assert 0.3 <= off(theirs, ours) <= 1.2
    else:
        assert off(ours, theirs) <= 2e-5


# Laws


@pytest.mark.parametrize("method", [m for m in merge_of.USED_BY["density"] if m != "breadcrumbs"] + list(SPAN[1:4]))
def test_merge_with_itself_is_itself(method):
    one = factors(seed=5)
    half = 0.5 if method in ("magnitude", "dare_linear", "della_linear") else 1.0  # these add up; the others average
    options = dict(density=1.0) if method in ALL else {}
    assert off(merged(method, [(half, one), (half, one)], 4, **options), true(one)) <= 1e-5


@pytest.mark.parametrize("method", ["linear", "average", "negate", "orthogonal", "knots_ties", *METHODS])
def test_one_alone_at_density_one_is_itself(method):
    one = factors(seed=6)
    options = dict(density=1.0) if method in ALL else {}
    wanted = -true(one) if method == "negate" else true(one)
    assert off(merged(method, [(1.0, one)], 4, **options), wanted) <= 1e-5


@pytest.mark.parametrize("method", ["linear", "average", "negate", "knots_ties", *METHODS])
def test_order_does_not_matter(method):
    options = dict(density=0.6) if method in ALL else {}
    named = [(f"lora{i}", abs(w), lora_of(f)) for i, (w, f) in enumerate(MIXED)]
    ways = [merge(list(order), 16, MergeOptions(method=method, **options)) for order in permutations(named)]
    first = true(ways[0].lora.modules[QKV])
    assert all(off(true(way.lora.modules[QKV]), first) <= 1e-5 for way in ways[1:])


@pytest.mark.parametrize("method", ["linear", "average", "negate", "difference", "orthogonal", "knots_ties", *METHODS])
def test_a_weight_of_zero_is_absence(method):
    a, b, c = (factors(seed=seed) for seed in (7, 8, 9))
    options = dict(density=0.6) if method in ALL else {}
    with_it = merged(method, [(1.0, a), (0.5, b), (0.0, c)], 16, **options)
    assert off(with_it, merged(method, [(1.0, a), (0.5, b)], 16, **options)) <= 1e-6


def test_a_lora_and_its_negation_add_up_to_zero():
    lora = lora_of(factors(seed=1), factors(8, 8, 2, 2))
    negated = merge([("a", 1.0, lora)], 0, MergeOptions(method="negate")).lora
    found = merge([("a", 1.0, lora), ("b", 1.0, negated)])
    assert all(true(f).norm() <= 1e-6 * true(lora.modules[m]).norm() for m, f in found.lora.modules.items())
    assert found.kept == 1.0
    at_rank = merge([("a", 1.0, lora), ("b", 1.0, negated)], 2).lora.modules[QKV]
    assert torch.isfinite(at_rank.delta()).all()


def test_dare_and_della_at_density_one_are_linear():
    wanted = sum(w * true(f) for w, f in MIXED)
    for method in ("dare_linear", "della_linear", "magnitude", "breadcrumbs"):
        assert off(merged(method, MIXED, density=1.0), wanted) <= 1e-5


@pytest.mark.parametrize("method", ["slerp", "interpolate"])
def test_the_ends_are_the_loras_themselves(method):
    a, b = lora_of(factors(seed=1), factors(seed=2)), lora_of(factors(seed=3))
    for t, wanted in ((0.0, a), (1.0, b)):
        found = merge([("a", 1, a), ("b", 1, b)], 0, MergeOptions(method=method, t=t)).lora
        assert found.modules.keys() == wanted.modules.keys()
        assert all(off(true(found.modules[m]), true(wanted.modules[m])) <= 1e-6 for m in wanted.modules)


def test_slerp_of_what_has_no_arc():
    one = factors(seed=1)
    zero = Factors(torch.zeros(24, 1), torch.ones(1, 16), 1.0)
    assert off(merged("slerp", [(1, one), (3, one)], t=0.25), 1.5 * true(one)) <= 1e-6  # on one line
    assert off(merged("slerp", [(1, one), (-1, one)], t=0.25), 0.5 * true(one)) <= 1e-6  # through zero
    assert off(merged("slerp", [(1, one), (1, zero)], t=0.25), 0.75 * true(one)) <= 1e-6
    assert not merged("slerp", [(1, zero), (1, zero)]).any()
    lacking = merge([("a", 1, lora_of(one)), ("b", 1, lora_of(one, factors(seed=2)))], 0, MergeOptions(method="slerp"))
    assert off(true(lacking.lora.modules[PROJ]), 0.5 * true(factors(seed=2))) <= 1e-6


def test_slerp_keeps_the_norm_that_an_average_loses():
    a, b = factors(seed=1), factors(seed=2)
    b = Factors(b.up, b.down, b.alpha * math.sqrt(inner(a, a) / inner(b, b)))
    norm = true(a).norm()
    assert merged("slerp", [(1, a), (1, b)]).norm() == pytest.approx(norm.item(), rel=1e-6)
    assert merged("average", [(1, a), (1, b)]).norm() < 0.8 * norm


def test_what_is_added_orthogonally_leaves_the_first_one_alone():
    shared = factors(rank=2, seed=1)
    a = Factors(
        torch.cat([shared.up, factors(rank=2, seed=2).up], 1),
        torch.cat([shared.down, factors(rank=2, seed=2).down]),
        4.0,
    )
    b = Factors(
        torch.cat([shared.up, factors(rank=3, seed=3).up], 1),
        torch.cat([shared.down, factors(rank=3, seed=3).down]),
        5.0,
    )
    added = merged("orthogonal", [(1, a), (1, b)]) - true(a)
    cosine = lambda x, y: ((x * y).sum() / (x.norm() * y.norm())).item()  # noqa: E731
    assert abs(cosine(true(a), true(b))) > 0.2
    assert abs(cosine(true(a), added)) <= 1e-6
    p, q = (torch.linalg.qr(m.double())[0] for m in (a.up, a.down.T))
    assert (p.T @ added @ q).norm() <= 1e-5 * added.norm()
    assert torch.linalg.matrix_rank(added + true(a), rtol=1e-5) <= 9


def test_the_shared_basis_holds_every_delta():
    parts = [Part(1.0, f.folded(), i) for i, (_, f) in enumerate([*MIXED, MIXED[0]])]  # one of them twice
    basis, inside = shared_basis(parts)
    assert basis.shape[1] == 12
    assert torch.allclose(basis.T @ basis, torch.eye(12), atol=1e-5)
    for part, there in zip(parts, inside, strict=True):
        assert off(basis @ there.factors.delta(), part.factors.delta()) <= 1e-6


@pytest.mark.parametrize("method", merge_of.RANDOM)
def test_random_methods_are_reproducible_whatever_the_order_and_the_blocks(method, monkeypatch):
    layers = {QKV: factors(seed=1), PROJ: factors(30, 20, seed=2), SINGLE: factors(seed=3)}
    others = {name: factors(*f.delta().shape, 2, seed=9) for name, f in layers.items()}

    def run(names, seed=4):
        loras = [(n, 1.0, Lora({k: m[k] for k in names}, "kohya")) for n, m in (("a", layers), ("b", others))]
        return merge(loras, 30, MergeOptions(method=method, seed=seed)).lora.modules

    first = {name: layer.delta() for name, layer in run(layers).items()}
    monkeypatch.setattr(elementwise, "CHUNK", 64)
    again = run([SINGLE, PROJ, QKV])
    alone = run([PROJ])
    for name in layers:
        assert torch.allclose(first[name], again[name].delta(), atol=1e-4)
    assert torch.allclose(first[PROJ], alone[PROJ].delta(), atol=1e-4)
    assert not torch.allclose(first[PROJ], run([PROJ], seed=5)[PROJ].delta(), atol=1e-2)


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_what_is_dropped_at_random_is_right_on_average(method):
    one = factors(12, 8, seed=1)
    mean = sum(merged(method, [(1.0, one)], 8, seed=seed) for seed in range(400)) / 400
    assert off(mean, true(one)) < 4 / math.sqrt(400)  # density .5: each draw is off by about 1


@pytest.mark.parametrize("step", [1, 5, 100])
def test_a_threshold_is_the_exact_one(step):
    f = factors(30, 20, seed=2).folded()
    ordered = torch.cat(list(elementwise.rows_of(f, step))).abs().flatten().sort(descending=True).values
    for k in (1, 2, 299, 300, 599, 600):
        assert kth_magnitude(f, k, step) == ordered[k - 1].item()
    same = exact([[1.0, -1.0], [1.0, 0.0]])
    assert [kth_magnitude(same, k, step) for k in (1, 3, 4)] == [1.0, 1.0, 0.0]


def test_a_layer_in_blocks_of_rows_is_the_layer_at_once(monkeypatch):
    parts = [Part(w, f.folded(), i, str(i)) for i, (w, f) in enumerate(MIXED)]
    for method in METHODS:
        whole = merge_values(method, parts, Pruning(0.5, 0.1, 0.2, (0, "x")))
        monkeypatch.setattr(elementwise, "CHUNK", 3 * 16 * 5)
        assert torch.allclose(merge_values(method, parts, Pruning(0.5, 0.1, 0.2, (0, "x"))), whole, atol=1e-5), method
        monkeypatch.undo()


# What a rank costs


def decaying(rows, columns, seed=0):
    """A full-rank matrix with singular values 1, 1/2, 1/3 ..."""
    rng = torch.Generator().manual_seed(seed)
    side = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(n, side, generator=rng))[0] for n in (rows, columns))
    return (left / torch.arange(1, side + 1)) @ right.T


@pytest.mark.parametrize(("rows", "columns", "rank"), [(300, 200, 8), (200, 300, 8), (60, 50, 20), (50, 60, 20)])
def test_a_dense_change_is_cut_nearly_as_well_as_can_be(rows, columns, rank):
    delta = decaying(rows, columns)
    sigma = torch.linalg.svdvals(delta.double())
    best = (sigma[:rank].square().sum() / sigma.square().sum()).item()
    cut, cost = recompress_dense(delta, rank)
    assert cost.rank == cut.rank == rank
    assert best - 0.002 <= cost.kept <= best + 1e-6
    assert 1 - off(cut.delta(), delta) ** 2 == pytest.approx(cost.kept, abs=1e-5)  # what is told is what is true
    again, _ = recompress_dense(delta, rank)
    assert torch.equal(again.up, cut.up)


def test_a_random_stream_outside_is_left_alone():
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    recompress_dense(decaying(300, 200), 4)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_a_share_of_energy_takes_the_fewest_directions(energy):
    f = factors(60, 40, 12, 3)
    sigma = torch.linalg.svdvals(true(f))[:12]
    shares = sigma.square().cumsum(0) / sigma.square().sum()
    wanted = int((shares < energy).sum()) + 1
    for cut, cost in (recompress(f.folded(), 0, energy), recompress_dense(f.delta(), 0, energy)):
        assert cut.rank == cost.rank == wanted
        assert cost.kept == pytest.approx(shares[wanted - 1].item(), abs=1e-6)
    assert recompress(f.folded(), 2, energy)[0].rank == min(2, wanted)
    assert recompress_dense(f.delta(), 2, energy)[0].rank == min(2, wanted)


def test_the_report_says_what_each_layer_and_all_of_them_keep():
    loud, quiet = factors(64, 48, 40, 1, 400.0), factors(64, 48, 4, 2)
    found = merge([("a", 1.0, lora_of(loud, quiet))], 16)
    sigma = torch.linalg.svdvals(true(loud))
    share = (sigma[:16].square().sum() / sigma.square().sum()).item()
    assert found.layers[QKV].kept == pytest.approx(share, rel=1e-6)
    assert found.layers[PROJ].kept == 1.0
    energies = sigma.square().sum(), true(quiet).square().sum()
    assert found.kept == pytest.approx(((share * energies[0] + energies[1]) / sum(energies)).item(), rel=1e-6)
    lines = found.report().splitlines()
    assert lines[0].startswith(f"2 layers, ranks 4 to 16: {found.kept:.2%} of the energy kept")
    assert lines[1].startswith(f"at rank 16: {found.kept:.2%}, 32: ")
    assert lines[1].endswith("64: 100.00%, 128: 100.00%")
    assert lines[2].startswith(f"{QKV}: rank 16, {share:.2%} kept")  # the costliest first


def test_ties_is_not_low_rank_and_says_so():
    parts = [("a", 1.0, lora_of(factors(120, 100, 4, 1))), ("b", 1.0, lora_of(factors(120, 100, 4, 2)))]
    assert merge(parts, 8).kept == pytest.approx(1.0)
    assert 0.4 < merge(parts, 8, MergeOptions(method="ties")).kept < 0.9
    assert merge(parts, 0, MergeOptions(method="knots_ties")).kept == 1.0


# Whole LoRAs


def test_layers_that_one_lacks_and_vectors():
    a = Lora({QKV: factors(seed=1)}, "kohya", vectors={"img_in.bias": torch.tensor([1.0, -2.0])})
    b = Lora(
        {QKV: factors(seed=2), PROJ: factors(seed=3)},
        "comfy",
        vectors={"img_in.bias": torch.tensor([4.0, 4.0]), "norm.scale": torch.ones(3)},
    )
    found = merge([("a", 1.0, a), ("b", 0.5, b)]).lora
    assert torch.equal(found.vectors["img_in.bias"], torch.tensor([3.0, 0.0]))
    assert torch.equal(found.vectors["norm.scale"], 0.5 * torch.ones(3))
    assert off(true(found.modules[PROJ]), 0.5 * true(factors(seed=3))) <= 1e-6
    ties = merge([("a", 1.0, a), ("b", 0.5, b)], 4, MergeOptions(method="ties", density=1.0)).lora
    assert torch.equal(ties.vectors["img_in.bias"], torch.tensor([1.5, 2.0]))


@pytest.mark.parametrize("method", [*SPAN, *ALL])
def test_every_method_merges_vectors_and_text_encoders(method):
    vectors = {"img_in.bias": torch.arange(1.0, 6.0)}
    one = Lora({QKV: factors(seed=1), "clip_l.layer.0.q_proj": factors(seed=2)}, "kohya", vectors=vectors)
    other = Lora({QKV: factors(seed=3), "clip_l.layer.0.q_proj": factors(seed=4)}, "kohya", vectors=vectors)
    found = merge([("a", 1.0, one), ("b", 0.5, other)], 8, MergeOptions(method=method)).lora
    assert found.modules.keys() == one.modules.keys()
    assert found.vectors["img_in.bias"].shape == (5,)
    assert torch.isfinite(found.vectors["img_in.bias"]).all()


def test_each_layer_is_asked_for_once_and_an_exact_sum_is_made_when_it_is_wanted():
    asked = []
    layers = Layers({name: lambda name=name: asked.append(name) or factors(seed=1) for name in (QKV, PROJ)})
    cut = merge([("a", 1.0, Lora(layers, "kohya"))], 2)
    assert asked == [QKV, PROJ]
    assert (cut.lora.modules[QKV].rank, cut.rank) == (2, 2)
    assert asked == [QKV, PROJ]
    summed = merge([("a", 1.0, Lora(layers, "kohya")), ("b", 1.0, Lora(layers, "kohya"))])
    assert summed.rank == 8
    asked.clear()
    assert summed.lora.modules[PROJ].rank == 8
    assert asked == [PROJ, PROJ]


def test_lokr_and_loha_merge_as_what_they_do():
    rng = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    kron, hada = (
        Kron(draw(4, 2), (draw(6, 2), draw(2, 8)), 0.5),
        Hada((draw(24, 2), draw(2, 16)), (draw(24, 2), draw(2, 16)), 2.0),
    )
    found = merge([("a", 1.0, lora_of(kron)), ("b", -0.5, lora_of(hada)), ("c", 2.0, lora_of(factors()))]).lora
    wanted = kron.delta() - 0.5 * hada.delta() + 2 * factors().delta()
    assert off(true(found.modules[QKV]), wanted) <= 1e-6


def test_block_weights_scale_one_side_only():
    a, b = lora_of(factors(seed=1), factors(seed=2)), lora_of(factors(seed=3), factors(seed=4))
    text = "single = 0\nlora1: double.0 = 0.5 # half\nlora1: double.1 = -1"
    found = merge([("a", 1.0, a), ("b", 2.0, b)], 0, MergeOptions(block_weights=text)).lora
    assert off(true(found.modules[QKV]), true(a.modules[QKV]) + true(b.modules[QKV])) <= 1e-6
    assert off(true(found.modules[PROJ]), true(a.modules[PROJ]) - 2 * true(b.modules[PROJ])) <= 1e-6
    assert json.loads(found.metadata["flux_atelier.recipe"])["block_weights"] == text


def test_blocks_of_weight_zero_are_left_out():
    whole = lora_of(factors(seed=1), factors(seed=2), factors(seed=3))
    found = merge([("a", 1.0, whole)], 0, MergeOptions(block_weights="single = 0 | lora0: double.1 = 0")).lora
    assert list(found.modules) == [QKV]
    from_b = merge([("a", 1.0, whole), ("b", 1.0, lora_of(factors(seed=5), factors(seed=6), factors(seed=7)))], 0,
                   MergeOptions(block_weights="lora0: double = 0\nlora1: single = 0")).lora  # fmt: skip
    assert off(true(from_b.modules[QKV]), true(factors(seed=5))) <= 1e-6
    assert off(true(from_b.modules[SINGLE]), true(factors(seed=3))) <= 1e-6


def test_own_lines_win_over_common_ones():
    a, b = read_block_weights("lora1: double = 0.25\ndouble = 0.5", [lora_of(factors()), lora_of(factors())])
    assert (a.of(QKV), b.of(QKV), b.of(SINGLE)) == (0.5, 0.25, 1.0)


def test_the_header_has_the_recipe_of_what_was_used():
    parts = [("one", 0.8, lora_of(factors(seed=1))), ("two", 0.2, lora_of(factors(seed=2)))]
    tell = lambda **options: json.loads(merge(parts, 4, MergeOptions(**options)).lora.metadata["flux_atelier.recipe"])  # noqa: E731
    plain = {"merge": [{"name": "one", "weight": 0.8}, {"name": "two", "weight": 0.2}], "rank": 4}
    assert tell(seed=9) == plain
    assert tell(method="dare_ties", density=0.3, seed=9) == plain | {"method": "dare_ties", "density": 0.3, "seed": 9}
    assert tell(method="slerp", energy=0.9) == plain | {"method": "slerp", "t": 0.5, "energy": 0.9}


def test_progress_is_told_by_layer():
    seen = []
    merge([("a", 1.0, lora_of(factors(), factors()))], 0, None, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


# Refusals

DORA = Factors(torch.ones(24, 1), torch.ones(1, 16), 1.0, magnitude=torch.ones(24))
TWO = [("a", 1.0, lora_of(factors(seed=1))), ("b", 1.0, lora_of(factors(seed=2)))]
REFUSED = [
    ([], 0, {}, "no LoRA to merge"),
    (TWO, -1, {}, "rank is -1"),
    ([("a", math.nan, TWO[0][2])], 0, {}, "weight of a is nan"),
    (TWO, 0, dict(method="ties"), "no LoRA holds exactly. Set rank"),
    ([*TWO, *TWO], 0, dict(method="slerp"), "slerp is between two LoRAs, and there are 4"),
    ([("a", 1.0, TWO[0][2]), ("b", -1.0, TWO[1][2])], 0, dict(method="average"), "add up to 0"),
    ([("a", 0.0, TWO[0][2])], 0, {}, "All weights are 0"),
    ([("mine", 1.0, lora_of(DORA))], 0, {}, "mine is a DoRA.*Convert to Plain LoRA"),
    ([("mine", 1.0, lora_of(Rotation(torch.zeros(2, 4, 4))))], 0, {}, "mine is a OFT|mine is an OFT"),
    ([("mine", 1.0, lora_of(Dense(torch.ones(4, 4))))], 0, {}, "mine has whole differences.*Convert to Plain LoRA"),
    ([*TWO, ("sd", 1.0, Lora({QKV: factors()}, "kohya", base="sdxl"))], 0, {}, r"a \(flux1\), sd \(sdxl\)"),
    ([*TWO, ("c", 1.0, lora_of(factors(8, 16)))], 4, dict(method="ties"), "8 x 16 and 24 x 16"),
    ([("c", 1.0, lora_of(factors(8, 16))), TWO[0]], 4, dict(method="slerp"), "8 x 16 and 24 x 16"),
    (
        [("bad", 1.0, lora_of(exact([[float("nan"), 1.0]])))],
        4,
        dict(method="ties"),
        "bad has values in double_blocks.0",
    ),
    (TWO, 0, dict(block_weights="lora2: double = 0"), "name lora2, and there are 2 LoRAs"),
    (TWO, 0, dict(block_weights="lora1: duble = 0"), "no .* model has"),
]


@pytest.mark.parametrize(("loras", "rank", "options", "words"), REFUSED)
def test_what_makes_no_sense_is_told(loras, rank, options, words):
    with pytest.raises(AtelierError, match=words):
        merge(loras, rank, MergeOptions(**options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            dict(density=0.3),
            "Merge LoRAs: density is 0.3, which linear does not use. Set it to 0.5 or choose knots_ties",
        ),
        (dict(method="ties", t=0.1), "t is 0.1, which ties does not use. Set it to 0.5 or choose interpolate or slerp"),
        (dict(method="ties", gamma=0.1), "gamma is 0.1.* choose breadcrumbs"),
        (dict(method="dare_ties", epsilon=0.1), "epsilon is 0.1.* choose della or della_linear"),
        (dict(method="della", density=0.1), "density 0.1 with epsilon 0.15"),
        (dict(method="breadcrumbs", density=0.8, gamma=0.3), "more than all values"),
        (dict(method="tie"), "method is 'tie'"),
        (dict(density=0.0, method="ties"), "density is 0.0"),
        (dict(densty=0.1), "Did you mean density"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(AtelierError, match=words):
        parse(MergeOptions, options, "Merge LoRAs")
