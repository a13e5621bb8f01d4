"""Ranks by hand, beside dense float64 decompositions, and the size of real files."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.budget import MIB, Budget, resize_to_size
from flux_atelier.core.lora.factors import Factors, singular_factors
from flux_atelier.core.lora.formats import read_lora, write_lora
from flux_atelier.core.lora.kinds import Dense, Hada, Kron
from flux_atelier.core.lora.prune import Pruning, prune
from flux_atelier.core.lora.record import Layers, Lora
from flux_atelier.core.lora.resize import Rule, layer_energy, parse_rules, resize
from flux_atelier.core.lora.svd import energy_of, gram, pieces, svd_of

QKV, PROJ, ONE, MODULATION = (
    "double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.proj", "single_blocks.3.linear1",
    "single_blocks.3.modulation.lin",
)  # fmt: skip


def diagonal(*sigma, alpha=None):
    """A layer whose singular values are plain to see: up is the identity, down has them on its diagonal."""
    rank = len(sigma)
    down = torch.zeros(rank, 8)
    down[range(rank), range(rank)] = torch.tensor(sigma, dtype=torch.float32)
    return Factors(torch.eye(8)[:, :rank].contiguous(), down, float(alpha or rank))


def spectral(out, width, rank, power, seed=0, alpha=16.0):
    """A layer with singular values proportional to i^-power, its factors mixed."""
    rng = torch.Generator().manual_seed(seed)
    left, right, mix = (
        torch.linalg.qr(torch.randn(n, rank, generator=rng, dtype=torch.float64))[0] for n in (out, width, rank)
    )
    root = torch.arange(1, rank + 1, dtype=torch.float64) ** (-power / 2)
    return Factors((left * root @ mix).float(), (mix.T @ (root[:, None] * right.T)).float(), alpha)


def lora_of(**changes):
    """Two double and two single layers of small, different shapes and strengths."""
    modules = {
        QKV: spectral(192, 64, 16, 0.8, 1),
        PROJ: spectral(64, 64, 8, 0.3, 2),
        ONE: spectral(448, 64, 16, 1.5, 3, 4.0),
        MODULATION: spectral(192, 64, 4, 0.1, 4, 0.5),
    }
    return Lora(modules | changes, "kohya")


def dense(layer):
    return layer.scale * layer.up.double() @ layer.down.double()


def relative(one, two):
    return ((one - two).norm() / two.norm()).item()


@pytest.mark.parametrize(
    ("rule", "rank"),
    [
        (Rule("rank", 2), 2),
        (Rule("rank", 9), 4),
        (Rule("rank", 0), 0),
        (Rule("energy", 0.5), 1),  # squares 16 4 4 1 of 25: 0.64, 0.8, 0.96, 1
        (Rule("energy", 0.8), 2),
        (Rule("energy", 0.81), 3),
        (Rule("energy", 1.0), 4),
        (Rule("frobenius", 0.8), 1),  # root of 0.64
        (Rule("frobenius", 0.9), 3),  # its square, 0.81
        (Rule("cumulative", 0.44), 1),  # 4 2 2 1 of 9
        (Rule("cumulative", 0.5), 2),
        (Rule("ratio", 1), 1),
        (Rule("ratio", 2), 3),
        (Rule("ratio", 4), 4),
        (Rule("energy", 0.5, least=3), 3),
        (Rule("energy", 1.0, most=2), 2),
        (Rule("energy", 0.5, least=9), 4),
        (Rule("ratio", 1.0, least=0), 1),
    ],
)
def test_ranks_by_hand(rule, rank):
    assert rule.rank(torch.tensor([4.0, 2.0, 2.0, 1.0], dtype=torch.float64)) == rank


def test_a_zero_layer_has_one_direction():
    sigma = svd_of(torch.zeros(8, 3), torch.ones(3, 5)).sigma
    assert [Rule(m, 0.9).rank(sigma) for m in ("energy", "frobenius", "cumulative")] == [1, 1, 1]
    assert Rule("ratio", 2).rank(sigma) == 1
    resized = resize(Lora({PROJ: Factors(torch.zeros(8, 3), torch.ones(3, 5), 3.0)}, "kohya"), Rule("energy", 0.5))
    assert not resized.lora.modules[PROJ].delta().any()
    assert resized.kept == 1.0


@pytest.mark.parametrize(
    ("method", "value"), [("rank", -1), ("rank", 2.5), ("rank", float("inf")), ("rank", float("nan")), ("energy", 0),
                          ("energy", 1.01), ("frobenius", -0.1), ("cumulative", 2), ("ratio", 0.5), ("ratio", float("nan"))],
)  # fmt: skip
def test_values_out_of_range_are_told(method, value):
    with pytest.raises(AtelierError, match=method):
        Rule(method, value)


@pytest.mark.parametrize("limits", [{"least": -1}, {"most": -1}, {"least": 4, "most": 2}])
def test_limits_that_contradict_are_told(limits):
    with pytest.raises(AtelierError, match="lowest rank"):
        Rule("energy", 0.5, **limits)
    with pytest.raises(AtelierError, match="lowest rank"):
        Budget(1.0, **limits)


@pytest.mark.parametrize(("out", "width", "rank"), [(192, 64, 16), (64, 192, 8), (5, 7, 9), (40000, 3, 2), (2, 1, 1)])
def test_decomposition_equals_the_dense_one(out, width, rank):
    rng = torch.Generator().manual_seed(0)
    layer = Factors(torch.randn(out, rank, generator=rng), torch.randn(rank, width, generator=rng), -3.0)
    svd = svd_of(layer.up, layer.down, layer.scale)
    exact = dense(layer)
    assert torch.allclose(svd.sigma, torch.linalg.svdvals(exact)[: len(svd.sigma)], rtol=1e-9)
    whole = svd.balanced(rank)
    made = whole.left(layer.up, torch.float64) @ whole.right(layer.down, torch.float64)
    assert relative(made, exact) <= 1e-9
    assert energy_of(layer.up, layer.down, layer.scale) == pytest.approx(exact.square().sum().item(), rel=1e-12)
    left = replace(svd, to_right=svd.to_right).left(layer.up, torch.float64)
    assert torch.allclose(left.T @ left, torch.eye(len(svd.sigma), dtype=torch.float64), atol=1e-9)


def test_pieces_are_the_whole():
    tall = torch.randn(5000, 32)
    assert len(list(pieces(tall, 0))) > 1
    assert torch.allclose(gram(tall), tall.double().T @ tall.double(), rtol=1e-12)
    other = torch.randn(5000, 3)
    assert torch.allclose(gram(tall, other), tall.double().T @ other.double(), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_resized_layer_is_the_dense_optimum(rank, dtype):
    layer = spectral(192, 64, 8, 0.8)
    layer = replace(layer, up=layer.up.to(dtype), down=layer.down.to(dtype))
    left, sigma, right = torch.linalg.svd(dense(layer), full_matrices=False)
    best = (left[:, :rank] * sigma[:rank]) @ right[:rank]
    resized = resize(Lora({PROJ: layer}, "kohya"), Rule("rank", rank))
    made = resized.lora.modules[PROJ]
    assert made.rank == rank
    assert relative(dense(made), best) <= 1e-6
    (cut,) = resized.layers
    assert cut.sigma == pytest.approx((sigma[rank - 1].item(), sigma[rank].item()), rel=1e-6)


@pytest.mark.parametrize(
    "rule", [Rule("rank", 3), Rule("energy", 0.8), Rule("frobenius", 0.8), Rule("cumulative", 0.6), Rule("ratio", 3)]
)
def test_what_is_told_is_what_is_there(rule):
    lora = lora_of()
    resized = resize(lora, rule)
    lost = total = 0.0
    for cut in resized.layers:
        before, after = dense(lora.modules[cut.name]), dense(resized.lora.modules[cut.name])
        assert resized.lora.modules[cut.name].rank == cut.rank
        assert cut.energy == pytest.approx(before.square().sum().item(), rel=1e-6)
        assert cut.kept == pytest.approx(1 - ((before - after).norm() / before.norm()).item() ** 2, abs=1e-6)
        lost, total = lost + (before - after).square().sum().item(), total + before.square().sum().item()
    assert resized.kept == pytest.approx(1 - lost / total, abs=1e-6)
    # Inputs that favour no direction: the outputs' error is the predicted one.
    name = QKV
    cut = next(c for c in resized.layers if c.name == name)
    x = torch.randn(64, 40000, dtype=torch.float64)
    before, after = (dense(m.modules[name]) @ x for m in (lora, resized.lora))
    assert relative(after, before) == pytest.approx((1 - cut.kept) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("power", "cap"), [(0.3, 8), (0.5, 16)])
def test_energy_is_of_the_whole_spectrum(power, cap):
    """A randomised decomposition of 2 * cap values, taken for all there are, tells 69 % where 35 % is true, or 82 and 70."""
    layer = spectral(192, 128, 64, power)
    sigma = torch.linalg.svdvals(dense(layer))
    seen = torch.svd_lowrank(layer.delta(), q=2 * cap, niter=8)[1].double()
    wanted = min(cap, int((seen.square().cumsum(0).div(seen.square().sum()).sqrt() < 0.9).sum()) + 1)
    theirs = (seen[:wanted].square().sum() / seen.square().sum()).item()
    really = (sigma[:wanted].square().sum() / sigma.square().sum()).item()
    ours = resize(Lora({PROJ: layer}, "kohya"), Rule("frobenius", 0.9, most=cap))
    kept = (sigma[:cap].square().sum() / sigma.square().sum()).item()
    assert theirs - really > 0.1  # the fault is there
    assert ours.layers[0].rank == cap
    assert ours.kept == pytest.approx(kept, abs=1e-6)
    free = resize(Lora({PROJ: layer}, "kohya"), Rule("frobenius", 0.9))
    assert free.kept >= 0.81 > free.kept - (sigma[free.layers[0].rank - 1] ** 2 / sigma.square().sum()).item()


@pytest.mark.parametrize("rule", [Rule("rank", 16), Rule("rank", 999), Rule("energy", 1.0), Rule("ratio", 1e9)])
def test_full_rank_is_the_identity(rule):
    lora = lora_of()
    resized = resize(lora, rule)
    assert resized.kept == 1.0
    for name, layer in lora.modules.items():
        assert resized.lora.modules[name] is layer


def test_resizing_twice_is_resizing_once():
    once = resize(lora_of(), Rule("rank", 4)).lora
    twice = resize(resize(lora_of(), Rule("rank", 7)).lora, Rule("rank", 4)).lora
    for name in once.modules:
        assert relative(dense(twice.modules[name]), dense(once.modules[name])) <= 1e-6


def test_rank_beside_nothing_shrinks_without_loss():
    """Twice the same directions: rank 8 in the file, 4 in truth."""
    layer = spectral(64, 64, 4, 0.5)
    double = Factors(torch.cat([layer.up, layer.up], 1), torch.cat([layer.down, layer.down]), 8.0)
    resized = resize(Lora({PROJ: double}, "kohya"), Rule("rank", 6))
    assert resized.lora.modules[PROJ].rank == 4
    assert relative(dense(resized.lora.modules[PROJ]), dense(double)) <= 1e-6


RULES = """
single: rank=2          # all single blocks
*.img_attn.proj: keep
single.3.modulation: drop
attention: energy=0.5 least=2 most=3
double.0.img_attn.proj: keep
"""


def test_rules_for_some_layers():
    lora = replace(lora_of(), vectors={f"{MODULATION}.bias": torch.ones(192), f"{PROJ}.bias": torch.ones(64)})
    resized = resize(lora, Rule("rank", 5), parse_rules(RULES))
    ranks = {cut.name: cut.rank for cut in resized.layers}
    assert ranks == {QKV: 2, PROJ: 8, ONE: 2, MODULATION: 0}
    assert list(resized.lora.modules) == [QKV, PROJ, ONE]
    assert list(resized.lora.vectors) == [f"{PROJ}.bias"]
    assert resized.lora.modules[PROJ] is lora.modules[PROJ]
    assert "1 dropped" in resized.summary
    assert "8" in resized.table


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("single", "Write pattern"), ("single:", "Write pattern"), ("single: rank", "Write pattern"),
        ("single: rank=x", "Write pattern"), ("single: rank=4 energy=0.5", "Write pattern"),
        ("single: size=4", "Write pattern"), ("single: energy=0.5 least=1.5", "Write pattern"),
        ("single: energy=2", "energy"), ("sinlge: rank=4", "no Flux"), ("single: rank=4 most=2", "fixed rank"),
        ("single.3: keep drop", "Write pattern"),
    ],
)  # fmt: skip
def test_rules_that_are_none_are_told(text, words):
    with pytest.raises(AtelierError, match=words):
        parse_rules(text)


def test_a_rule_about_nothing_is_told():
    with pytest.raises(AtelierError, match=r"double\.7: drop"):
        resize(lora_of(), Rule("rank", 4), parse_rules("double.7: drop"))


def test_what_has_no_spectrum_is_told_and_may_be_kept():
    dora = replace(spectral(64, 64, 8, 0.3), magnitude=torch.ones(64))
    for odd, words in ((dora, "DoRA"), (Dense(torch.ones(64, 64)), "differences")):
        lora = lora_of(**{PROJ: odd})
        with pytest.raises(AtelierError, match=words):
            resize(lora, Rule("rank", 4))
        kept = resize(lora, Rule("rank", 4), parse_rules("double.0.img_attn.proj: keep"))
        assert kept.lora.modules[PROJ] is odd
    with pytest.raises(AtelierError, match="Nothing is left"):
        resize(Lora({PROJ: dora}, "kohya"), Rule("rank", 4), parse_rules("double: drop"))


def test_lokr_and_loha_become_plain():
    rng = torch.Generator().manual_seed(0)
    kron = Kron(
        torch.randn(4, 4, generator=rng), (torch.randn(16, 2, generator=rng), torch.randn(2, 16, generator=rng)), 0.5
    )
    hada = Hada(
        (torch.randn(48, 2, generator=rng), torch.randn(2, 64, generator=rng)),
        (torch.randn(48, 2, generator=rng), torch.randn(2, 64, generator=rng)),
        0.5,
    )  # fmt: skip
    for layer, full in ((kron, 8), (hada, 4)):
        exact = layer.delta().double()
        lora = Lora({PROJ: layer, "clip_l.text_model.encoder.layers.0.mlp.fc1": layer}, "kohya")
        resized = resize(lora, Rule("rank", 3))
        left, sigma, right = torch.linalg.svd(exact, full_matrices=False)
        for name in lora.modules:
            assert relative(dense(resized.lora.modules[name]), (left[:, :3] * sigma[:3]) @ right[:3]) <= 1e-6
        assert resized.layers[0].before == full
        assert resize(lora, Rule("rank", full)).lora.modules[PROJ] is layer
        assert layer_energy(layer) == pytest.approx(exact.square().sum().item(), rel=1e-6)


def test_a_convolution_keeps_its_kernel():
    layer = replace(spectral(32, 72, 6, 0.5), kernel=(3, 3))
    assert resize(Lora({"input_blocks.1.0": layer}, "kohya", base="sdxl"), Rule("rank", 2)).lora.modules[
        "input_blocks.1.0"
    ].kernel == (3, 3)


def test_layers_are_made_when_asked_for():
    asked = []
    modules = lora_of().modules

    def maker(name):
        return lambda: asked.append(name) or modules[name]

    lora = Lora(Layers({name: maker(name) for name in modules}), "kohya")
    seen = []
    resized = resize(lora, Rule("rank", 2), watch=seen.append)
    assert asked == list(modules)
    assert seen == [1, 2, 3, 4]
    assert resized.lora.modules[QKV].rank == 2
    assert asked == [*modules, QKV]


def test_the_header_tells_what_was_done(tmp_path):
    lora = replace(lora_of(), metadata={"modelspec.trigger_phrase": "ohwx", "sshs_model_hash": "x"}, unknown=("odd",))
    resized = resize(lora, Rule("energy", 0.9), parse_rules("single: rank=2"))
    metadata = read_lora(write_lora(tmp_path / "a.safetensors", resized.lora)).metadata
    assert metadata["modelspec.trigger_phrase"] == "ohwx"
    assert "sshs_model_hash" not in metadata
    told = json.loads(metadata["flux_atelier.recipe"])["resize"]
    assert told["method"] == "energy"
    assert told["rules"] == ["single: rank=2"]
    assert "1 tensor " in resized.summary


# --- to a size ---------------------------------------------------------------------------------------------------------


def wide(**changes):
    """Layers of Flux's shapes at a width of 512, rank 32, their strengths far apart."""
    shapes = {QKV: (1536, 512), PROJ: (512, 512), ONE: (3584, 512), MODULATION: (1536, 512)}
    made = {n: spectral(o, i, 32, 0.6, k, 4.0 ** (2 - k)) for k, (n, (o, i)) in enumerate(shapes.items())}
    return Lora(made | changes, "kohya")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("layout", ["kohya", "comfy", "diffusers"])
@pytest.mark.parametrize("mib", [0.1, 0.2, 0.5])
def test_a_size_is_met(tmp_path, mib, layout, dtype):
    if dtype == torch.float32:
        mib *= 2
    resized = resize_to_size(wide(), Budget(mib, layout=layout, dtype=dtype))
    path = write_lora(tmp_path / "a.safetensors", resized.lora, layout, dtype)
    assert 0.98 * mib * MIB <= path.stat().st_size <= mib * MIB
    assert {name: layer.rank for name, layer in read_lora(path).modules.items()} == {
        cut.name: cut.rank for cut in resized.layers
    }


def with_directions(lora, count, **budget):
    """The LoRA at the smallest size that holds so many directions; one takes 32 bytes or more."""
    for size in range(500, 16000, 32):
        try:
            resized = resize_to_size(lora, Budget(size / MIB, **budget))
        except AtelierError:
            continue
        if sum(cut.rank for cut in resized.layers) >= count:
            return resized
    raise AssertionError("no size holds so many directions")


def test_a_size_is_spent_where_energy_per_byte_is_highest():
    lora = Lora({QKV: diagonal(4, 3, 0.5), PROJ: diagonal(2, 1, 0.1)}, "kohya")
    norm = {QKV: 100.0, PROJ: 1.0}.__getitem__
    for count, plain, weighed in ((2, [1, 1], [1, 1]), (3, [2, 1], [1, 2]), (4, [2, 2], [1, 3]), (5, [3, 2], [2, 3])):
        assert [cut.rank for cut in with_directions(lora, count).layers] == plain
        assert [cut.rank for cut in with_directions(lora, count, norm=norm).layers] == weighed


def test_no_other_share_of_the_size_keeps_more():
    """Beside every way to give four layers of one shape ten directions."""
    names = [f"double_blocks.{n}.img_attn.proj" for n in range(4)]
    lora = Lora({name: spectral(32, 32, 5, 0.3 * n, n, 5.0 / (n + 1)) for n, name in enumerate(names)}, "kohya")
    spectra = [singular_factors(layer)[1].square() for layer in lora.modules.values()]
    ranks = [ranks for ranks in product(range(1, 6), repeat=4) if sum(ranks) == 10]
    best = max(sum(s[:r].sum().item() for s, r in zip(spectra, rank, strict=True)) for rank in ranks)
    found = with_directions(lora, 10)
    assert sum(cut.energy * cut.kept for cut in found.layers) == pytest.approx(best, rel=1e-9)


def test_limits_and_rules_hold_in_a_size():
    resized = resize_to_size(wide(), Budget(0.3, least=2, most=9), parse_rules("single.3.linear1: rank=3"))
    ranks = {cut.name: cut.rank for cut in resized.layers}
    assert ranks[ONE] == 3
    assert all(2 <= rank <= 9 for rank in ranks.values())
    assert ranks[QKV] == 9


def test_a_size_below_the_lowest_ranks_is_told_and_zero_lets_layers_go():
    lora = wide()
    with pytest.raises(AtelierError, match=r"0\.0\d MiB"):
        resize_to_size(lora, Budget(0.01))
    resized = resize_to_size(lora, Budget(0.01, least=0))
    assert [cut.name for cut in resized.layers if cut.rank] == [QKV]
    with pytest.raises(AtelierError, match="Nothing is left"):
        resize_to_size(lora, Budget(0.001, least=0))
    with pytest.raises(AtelierError, match="0 MiB"):
        Budget(0)


# --- pruning -----------------------------------------------------------------------------------------------------------


def test_pruning_by_hand():
    lora = Lora(
        {QKV: diagonal(4, 3), PROJ: diagonal(2, 0.5), ONE: diagonal(1, 0.1)}, "kohya"
    )  # energies 25, 4.25, 1.01
    named = prune(lora, Pruning("double.0.img_attn.qkv, single"))
    assert list(named.lora.modules) == [PROJ]
    assert named.kept == pytest.approx(4.25 / 30.26)
    assert named.lora.modules[PROJ] is lora.modules[PROJ]
    assert list(prune(lora, Pruning(share=0.1)).lora.modules) == [QKV, PROJ]
    assert list(prune(lora, Pruning(share=0.2)).lora.modules) == [QKV]
    small = prune(lora, Pruning(threshold=0.2))  # of 4
    assert {cut.name: cut.rank for cut in small.layers} == {QKV: 2, PROJ: 1, ONE: 1}
    assert small.kept == pytest.approx((25 + 4 + 1) / 30.26)
    assert list(prune(lora, Pruning(threshold=0.6)).lora.modules) == [QKV]
    both = prune(lora, Pruning("single", 0.15, 0.9))
    assert {cut.name: cut.rank for cut in both.layers} == {QKV: 1, PROJ: 0, ONE: 0}


def test_pruning_by_name_asks_nothing_of_a_layers_kind():
    dora = replace(spectral(64, 64, 8, 0.3), magnitude=torch.ones(64))
    lora = replace(lora_of(**{PROJ: dora}), vectors={f"{ONE}.bias": torch.ones(448)})
    pruned = prune(lora, Pruning("single")).lora
    assert list(pruned.modules) == [QKV, PROJ]
    assert not pruned.vectors
    assert list(prune(lora, Pruning("double")).lora.modules) == [ONE, MODULATION]
    for pruning in (Pruning(share=0.1), Pruning(threshold=0.1)):
        with pytest.raises(AtelierError, match="DoRA"):
            prune(lora, pruning)


@pytest.mark.parametrize(
    ("pruning", "words"),
    [
        (lambda: Pruning(), "nothing to prune"),
        (lambda: Pruning(share=1.0), "share"),
        (lambda: Pruning(threshold=-0.1), "threshold"),
        (lambda: prune(lora_of(), Pruning("single.9")), r"single\.9"),
        (lambda: prune(lora_of(), Pruning("singel")), "no Flux"),
        (lambda: prune(lora_of(), Pruning("single, double")), "Nothing is left"),
    ],
)
def test_pruning_mistakes_are_told(pruning, words):
    with pytest.raises(AtelierError, match=words):
        pruning()
