"""What a LoRA is made of, beside dense float64: spectra, comparisons, splits, directions, importance; and the page."""

import csv
import io
import json
import math
import re

import pytest
import torch
from PIL import Image, ImageDraw

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.evaluation.grid import FAINT, INK
from flux_atelier.core.evaluation.lora_page import TITLES, WORDS, Study, study_of, write_study
from flux_atelier.core.evaluation.lora_plots import (
    DEEP,
    PAPER,
    WARM,
    Scale,
    _cell,
    heat_map,
    matrix_picture,
    panels,
    short_names,
    signed,
    spectra_picture,
    ticks,
)
from flux_atelier.core.lora.compare import compare, cosine, principal_angles, told
from flux_atelier.core.lora.directions import choose, divide, name_of, rank_directions, ranked, select
from flux_atelier.core.lora.factors import Factors, weighted_sum
from flux_atelier.core.lora.formats import read_lora, write_lora
from flux_atelier.core.lora.importance import blocks_of, importance, only
from flux_atelier.core.lora.kinds import Dense, Hada, Kron, Rotation
from flux_atelier.core.lora.places import component_of, place_of
from flux_atelier.core.lora.record import Layers, Lora
from flux_atelier.core.lora.shared import split_shared
from flux_atelier.core.lora.spectrum import LayerSpectrum, measure, measure_layer, singular_values

H = 24
SIZES = {
    "double_blocks.0.img_attn.qkv": (3 * H, H), "double_blocks.0.txt_mlp.2": (H, 4 * H), "double_blocks.1.img_mod.lin": (6 * H, H),
    "single_blocks.0.linear1": (7 * H, H), "single_blocks.3.linear2": (H, 5 * H), "final_layer.linear": (16, H),
}  # fmt: skip


def factors(out, width, rank, alpha, seed):
    rng = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(out, rank, generator=rng), torch.randn(rank, width, generator=rng), alpha)


def some_lora(seed=0, rank=4, sizes=SIZES):
    return Lora({n: factors(o, i, rank, 6.0, seed * 100 + k) for k, (n, (o, i)) in enumerate(sizes.items())}, "kohya")


def dense(layer):
    if isinstance(layer, Factors):
        return layer.scale * layer.up.double() @ layer.down.double()
    return layer.delta().double()


def stacked_delta(lora):
    """The whole change as one vector."""
    return torch.cat([dense(layer).flatten() for layer in lora.modules.values()])


def diagonal(*sigma):
    return Factors(torch.diag(torch.tensor(sigma)), torch.eye(len(sigma)), float(len(sigma)))


# spectrum


def test_a_layer_by_hand():
    layer = measure_layer("double_blocks.0.img_mlp.0", diagonal(4.0, 2.0, 2.0, 1.0))
    assert layer.sigma == pytest.approx((4, 2, 2, 1))
    assert layer.frobenius == pytest.approx(5)
    assert layer.spectral == pytest.approx(4)
    assert layer.stable_rank == pytest.approx(25 / 16)
    assert layer.first_share == pytest.approx(16 / 25)
    assert [layer.kept(r) for r in (0, 1, 2, 3, 4, 9)] == pytest.approx([0, 16 / 25, 20 / 25, 24 / 25, 1, 1])
    assert [layer.rank_for(s) for s in (0, 0.64, 0.65, 0.9, 0.99, 1)] == [0, 1, 2, 3, 4, 4]
    p = [4 / 9, 2 / 9, 2 / 9, 1 / 9]
    assert layer.effective_rank == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))


def test_equal_directions_have_the_effective_rank_of_their_number():
    layer = measure_layer("img_in", diagonal(3.0, 3.0, 3.0))
    assert layer.effective_rank == pytest.approx(3)
    assert layer.stable_rank == pytest.approx(3)


def test_a_zero_change_is_all_zeros():
    layer = measure_layer("img_in", Factors(torch.zeros(5, 2), torch.zeros(2, 4), 2.0))
    assert (layer.frobenius, layer.stable_rank, layer.effective_rank, layer.first_share) == (0, 0, 0, 0)
    assert layer.rank_for(0.9) == 0
    assert layer.kept(1) == 1


@pytest.mark.parametrize(
    "layer",
    [
        factors(40, 30, 6, 3.0, 1),
        factors(40, 30, 6, -3.0, 1),
        Kron(torch.randn(3, 2), (torch.randn(5, 2), torch.randn(2, 7)), -0.5),
        Kron(torch.randn(3, 2), (torch.randn(5, 7),), 0.5),
        Hada((torch.randn(20, 2), torch.randn(2, 12)), (torch.randn(20, 3), torch.randn(3, 12)), 0.5),
        Dense(torch.randn(12, 30)),
        Dense(torch.randn(30, 12)),
    ],
    ids=["lora", "negative", "lokr", "whole lokr", "loha", "wide", "tall"],
)
def test_singular_values_are_those_of_the_dense_delta(layer):
    wanted = torch.linalg.svdvals(dense(layer))
    found = torch.tensor(singular_values(layer), dtype=torch.float64)
    assert len(found) <= len(wanted)
    assert (found - wanted[: len(found)]).abs().max() <= 1e-6 * wanted[0]
    assert wanted[len(found) :].norm() <= 1e-6 * wanted[0]


def test_a_dora_and_a_rotation_need_the_base_and_get_it():
    weight = torch.randn(12, 8)
    dora = Factors(torch.randn(12, 2), torch.randn(2, 8), 2.0, dora_scale=weight.norm(dim=1) * 1.1)
    for layer, words in ((dora, "DoRA"), (Rotation(torch.randn(3, 4, 4) * 0.1), "OFT")):
        with pytest.raises(AtelierError, match=words):
            measure_layer("img_in", layer)
        assert measure_layer("img_in", layer, weight).frobenius > 0
    turned = measure_layer("img_in", Rotation(torch.randn(3, 4, 4) * 0.1), weight)
    assert len(turned.sigma) <= 8
    assert turned.base_norm == pytest.approx(weight.norm().item())


def test_parts_of_fused_layers_are_those_of_the_dense_delta():
    lora = some_lora()
    by_name = {layer.module: layer for layer in measure(lora).layers}
    first = dense(lora.modules["single_blocks.0.linear1"])
    second = dense(lora.modules["single_blocks.3.linear2"])
    for name, attention, mlp in (
        ("single_blocks.0.linear1", first[: 3 * H], first[3 * H :]),
        ("single_blocks.3.linear2", second[:, :H], second[:, H:]),
    ):
        assert by_name[name].parts["attention"] == pytest.approx(attention.square().sum().item(), rel=1e-6)
        assert by_name[name].parts["mlp"] == pytest.approx(mlp.square().sum().item(), rel=1e-6)
        as_whole = measure_layer(name, Dense(dense(lora.modules[name]))).parts
        assert as_whole == pytest.approx(by_name[name].parts, rel=1e-6)


def test_sums_over_blocks_and_components_are_the_whole():
    lora = some_lora()
    spectrum = measure(lora)
    assert spectrum.energy == pytest.approx(stacked_delta(lora).square().sum().item(), rel=1e-6)
    assert sum(spectrum.blocks().values()) == pytest.approx(spectrum.energy)
    assert sum(spectrum.components().values()) == pytest.approx(spectrum.energy)
    assert list(spectrum.blocks()) == ["double.0", "double.1", "single.0", "single.3", "others"]
    assert {"img attention", "txt mlp", "img modulation", "single attention", "single mlp"} <= set(
        spectrum.components()
    )
    assert spectrum.kept(4) == pytest.approx(1)


class Base:
    """Weights of ones, for norms relative to them."""

    name = "base"
    shapes = {f"{name}.weight": size for name, size in SIZES.items() if name != "final_layer.linear"}

    def rows(self, name, start, stop):
        return torch.ones(self.shapes[name])[start:stop]


def test_norms_relative_to_the_base():
    rows = {row["module"]: row for row in measure(some_lora(), Base()).rows()}
    row = rows["single_blocks.0.linear1"]
    assert row["base_norm"] == pytest.approx(math.sqrt(7 * H * H))
    assert row["relative"] == pytest.approx(row["frobenius"] / row["base_norm"])
    assert rows["final_layer.linear"]["relative"] is None


def test_a_spike_is_told_and_an_even_lora_has_none():
    assert measure(some_lora()).spikes() == []
    lora = some_lora()
    loud = lora.modules["double_blocks.0.img_attn.qkv"]
    loud.up[:, 0] *= 100
    assert [la.module for la in measure(lora).spikes()] == ["double_blocks.0.img_attn.qkv"]


def test_each_layer_is_asked_for_once():
    lora, asked = some_lora(), []
    layers = {n: (lambda n=n: asked.append(n) or lora.modules[n]) for n in lora.modules}
    measure(Lora(Layers(layers), "kohya"))
    assert asked == list(lora.modules)


def test_json_and_csv_say_the_same():
    spectrum = measure(some_lora())
    as_json = json.loads(json.dumps(spectrum.as_dict()))
    lines = list(csv.DictReader(io.StringIO(spectrum.as_csv())))
    assert [line["module"] for line in lines] == [layer["module"] for layer in as_json["layers"]] == list(SIZES)
    assert float(lines[0]["frobenius"]) == as_json["layers"][0]["frobenius"]


def test_an_empty_lora_is_told():
    with pytest.raises(AtelierError, match="changes no layer"):
        measure(Lora({}, "kohya"))


@pytest.mark.parametrize(
    ("module", "block", "stream", "component"),
    [
        ("double_blocks.0.img_attn.qkv", "double.0", "img", "attention"),
        ("double_blocks.18.txt_mlp.2", "double.18", "txt", "mlp"),
        ("double_blocks.3.txt_mod.lin", "double.3", "txt", "modulation"),
        ("single_blocks.37.linear1", "single.37", "single", "attention+mlp"),
        ("single_blocks.2.modulation.lin", "single.2", "single", "modulation"),
        ("final_layer.adaLN_modulation.1", "others", "others", "modulation"),
        ("img_in", "others", "others", "other"),
        ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "input.4", "input", "attention"),
        ("middle_block.1.transformer_blocks.0.ff.net.2", "middle.1", "middle", "mlp"),
        ("joint_blocks.7.x_block.attn.qkv", "joint.7", "joint", "attention"),
        ("joint_blocks.7.x_block.adaLN_modulation.1", "joint.7", "joint", "modulation"),
    ],
)
def test_places(module, block, stream, component):
    assert place_of(module).block == block
    assert place_of(module).stream == stream
    assert component_of(module) == component


# compare


def test_a_comparison_by_hand():
    a = Lora({"img_in": Factors(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0]]), 2.0)}, "kohya")  # 2 e1 e1
    b = Lora({"img_in": Factors(torch.tensor([[3.0], [3.0]]), torch.tensor([[1.0, 0.0]]), 1.0)}, "kohya")
    found = compare([("a", a), ("b", b)])
    assert found.cosine[0, 1].item() == pytest.approx(1 / math.sqrt(2))
    assert found.norms == pytest.approx((2, math.sqrt(18)))
    assert found.shared[0, 1].item() == pytest.approx(0.5)
    assert found.left[0, 1].item() == pytest.approx(0.5)
    assert found.right[0, 1].item() == pytest.approx(1)
    angles = principal_angles(a.modules["img_in"], b.modules["img_in"])
    assert angles[0].tolist() == pytest.approx([math.pi / 4])
    assert angles[1].tolist() == pytest.approx([0], abs=1e-7)


def test_cosines_are_those_of_the_dense_deltas():
    loras = [some_lora(0), some_lora(1, 7), some_lora(2, 2)]
    loras[2] = Lora(
        {n: weighted_sum([(1.0, f), (0.5, loras[0].modules[n])]) for n, f in loras[2].modules.items()}, "kohya"
    )
    found = compare([(str(i), lora) for i, lora in enumerate(loras)])
    whole = torch.stack([stacked_delta(lora) for lora in loras])
    unit = whole / whole.norm(dim=1, keepdim=True)
    assert (found.cosine - unit @ unit.T).abs().max() <= 1e-6
    block = torch.stack([dense(lora.modules["single_blocks.0.linear1"]).flatten() for lora in loras])
    unit = block / block.norm(dim=1, keepdim=True)
    assert (found.blocks["single.0"] - unit @ unit.T).abs().max() <= 1e-6


def test_identical_is_one_and_negated_is_minus_one():
    lora = some_lora()
    negated = Lora({n: Factors(-f.up, f.down, f.alpha) for n, f in lora.modules.items()}, "kohya")
    found = compare([("a", lora), ("b", lora), ("c", negated)])
    wanted = torch.tensor([[1, 1, -1], [1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    assert (found.cosine - wanted).abs().max() <= 1e-9
    assert (found.conflict - (wanted < 0).double()).abs().max() <= 1e-9
    assert (found.shared - 1).abs().max() <= 1e-9
    assert cosine(lora, negated) == pytest.approx(-1)
    assert "100.00%" in told(found)


def test_the_sign_conflict_is_near_the_true_share():
    a, b = some_lora(0), some_lora(1)
    b = Lora({n: weighted_sum([(1.0, f), (0.7, a.modules[n])]) for n, f in b.modules.items()}, "kohya")
    true = (stacked_delta(a) * stacked_delta(b) < 0).double().mean().item()
    found = [compare([("a", a), ("b", b)], seed).conflict[0, 1].item() for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert all(abs(f - true) <= 0.04 for f in found)


def test_angles_and_shared_energy_are_those_of_dense_subspaces():
    a, b = factors(30, 20, 5, 5.0, 0), factors(30, 20, 3, 3.0, 1)
    left, right = principal_angles(a, b)
    (ua, _, va), (ub, _, vb) = (torch.linalg.svd(dense(f), full_matrices=False) for f in (a, b))
    ua, va, ub, vb = ua[:, :5], va[:5], ub[:, :3], vb[:3]
    assert torch.allclose(left.cos(), torch.linalg.svdvals(ua.T @ ub), atol=1e-6)
    assert torch.allclose(right.cos(), torch.linalg.svdvals(va @ vb.T), atol=1e-6)
    inside = ub @ ub.T @ dense(a) @ vb.T @ vb
    found = compare([(n, Lora({"img_in": f}, "kohya")) for n, f in (("a", a), ("b", b))])
    assert found.shared[0, 1].item() == pytest.approx((inside.norm() / dense(a).norm()).item() ** 2, abs=1e-6)


def test_a_layer_that_one_lacks_counts_as_no_change():
    whole = some_lora()
    part = Lora({"img_in": factors(H, 8, 4, 4.0, 9), **dict(list(whole.modules.items())[:2])}, "kohya")
    found = compare([("whole", whole), ("part", part)])
    common = sum(dense(f).square().sum().item() for f in list(whole.modules.values())[:2])
    assert found.cosine[0, 1].item() == pytest.approx(common / found.norms[0] / found.norms[1])
    assert found.common[0, 1] == 2
    nothing = Lora({n: Factors(f.up * 0, f.down, f.alpha) for n, f in whole.modules.items()}, "kohya")
    assert compare([("whole", whole), ("nothing", nothing)]).cosine[0, 1] == 0


def test_what_cannot_be_compared_is_told():
    with pytest.raises(AtelierError, match="two or more"):
        compare([("a", some_lora())])
    with pytest.raises(AtelierError, match="img_in is 4 x 8 in a and 5 x 8 in b"):
        compare([(n, Lora({"img_in": factors(o, 8, 2, 2.0, 0)}, "kohya")) for n, o in (("a", 4), ("b", 5))])
    with pytest.raises(AtelierError, match="sdxl"):
        compare([("a", some_lora()), ("b", Lora(some_lora().modules, "kohya", base="sdxl"))])


# shared and private


@pytest.mark.parametrize("energy", [1.0, 0.7])
def test_shared_and_private_add_up_and_are_at_right_angles(energy):
    lora, others = some_lora(0), [some_lora(1, 3), some_lora(2, 2)]
    split = split_shared(lora, others, energy)
    for name, layer in lora.modules.items():
        shared, private = dense(split.shared.modules[name]), dense(split.private.modules[name])
        assert (shared + private - dense(layer)).norm() <= 1e-6 * dense(layer).norm()
        assert (shared * private).sum().abs() <= 1e-6 * dense(layer).norm() ** 2
    part = stacked_delta(split.shared).norm() / stacked_delta(lora).norm()
    assert split.share == pytest.approx(part.item() ** 2, abs=1e-6)


def test_shared_is_the_dense_projection():
    lora, other = some_lora(0), some_lora(1, 3)
    for name, layer in lora.modules.items():
        left, _, right = torch.linalg.svd(dense(other.modules[name]), full_matrices=False)
        left, right = left[:, :3], right[:3]
        wanted = left @ left.T @ dense(layer) @ right.T @ right
        found = dense(split_shared(lora, [other]).shared.modules[name])
        assert (found - wanted).norm() <= 1e-6 * dense(layer).norm()


def test_with_itself_all_is_shared_and_with_a_stranger_nothing():
    lora = some_lora()
    split = split_shared(lora, [some_lora(3), lora, lora])
    assert split.share == pytest.approx(1)
    assert stacked_delta(split.private).norm() <= 1e-5 * stacked_delta(lora).norm()
    stranger = Lora({"img_in": factors(H, 8, 4, 4.0, 9)}, "kohya")
    alone = split_shared(lora, [stranger])
    assert (alone.share, len(alone.shared.modules), len(alone.private.modules)) == (0, 0, len(lora.modules))


def test_vectors_are_private_and_no_other_is_told():
    lora = Lora(some_lora().modules, "kohya", vectors={"img_in.bias": torch.ones(3)})
    split = split_shared(lora, [some_lora(1)])
    assert (len(split.shared.vectors), len(split.private.vectors)) == (0, 1)
    with pytest.raises(AtelierError, match="no other LoRA"):
        split_shared(lora, [])


# directions


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1", {1}), ("1-3, 5", {1, 2, 3, 5}), ("-1", {2, 3, 4, 5, 6}), ("-2-4", {1, 5, 6}), ("4-", {4, 5, 6}),
        ("1-4, -2", {1, 3, 4}), ("2;3 5", {2, 3, 5}), ("-1, -6", {2, 3, 4, 5}),
    ],
)  # fmt: skip
def test_parts_are_read(text, wanted):
    assert choose(text, 6) == wanted


@pytest.mark.parametrize("text", ["", "a", "0", "7", "3-2", "1-9", "1, -1", "-1-6", "1.5", "--1"])
def test_wrong_parts_are_told(text):
    with pytest.raises(AtelierError, match="part"):
        choose(text, 6)


def test_parts_by_hand():
    directions = ranked({"a": (4.0, 1.0), "b": (3.0, 2.0)})
    assert [(d.module, d.number) for d in directions] == [("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert [d.share for d in directions] == pytest.approx([16 / 30, 9 / 30, 4 / 30, 1 / 30])
    assert divide(directions, "direction").numbers == {"a": (1, 2), "b": (1, 2)}
    assert divide(directions, "direction").shares == pytest.approx((25 / 30, 5 / 30))
    assert divide(directions, "pair").numbers == {"a": (1, 4), "b": (2, 3)}
    # Their middles lie at 8, 20.5, 27 and 29.5 of 30.
    assert divide(directions, "energy").numbers == {"a": (3, 10), "b": (7, 10)}


@pytest.mark.parametrize("by", ["direction", "pair", "energy"])
@pytest.mark.parametrize("text", ["1", "-1", "1-3"])
def test_chosen_and_rest_add_up(by, text):
    lora = some_lora()
    found = select(lora, text, by)
    for name, layer in lora.modules.items():
        halves = [dense(half.modules[name]) for half in (found.lora, found.rest) if name in half.modules]
        assert (sum(halves) - dense(layer)).norm() <= 1e-6 * dense(layer).norm()
    energy = sum(dense(f).square().sum().item() for f in found.lora.modules.values())
    assert found.share == pytest.approx(energy / stacked_delta(lora).square().sum().item(), rel=1e-5)


def test_the_kth_part_is_the_dense_kth_direction():
    lora = some_lora()
    found = select(lora, "2").lora
    for name, layer in lora.modules.items():
        left, sigma, right = torch.linalg.svd(dense(layer), full_matrices=False)
        wanted = sigma[1] * torch.outer(left[:, 1], right[1])
        assert (dense(found.modules[name]) - wanted).norm() <= 1e-6 * wanted.norm()


def test_the_first_pairs_are_the_best_that_so_many_can_be():
    lora = some_lora()
    strongest = sorted((s.item() for f in lora.modules.values() for s in torch.linalg.svdvals(dense(f))), reverse=True)
    assert [d.sigma for d in rank_directions(lora)][:20] == pytest.approx(strongest[:20], rel=1e-6)
    kept = stacked_delta(select(lora, "1-5", "pair").lora).square().sum().item()
    assert kept == pytest.approx(sum(s * s for s in strongest[:5]), rel=1e-5)


def test_parts_by_energy_hold_about_a_tenth_each():
    shares = divide(rank_directions(some_lora(0, 12)), "energy").shares
    assert len(shares) == 10
    assert all(0.04 < share < 0.16 for share in shares)


def test_vectors_stay_in_the_rest_and_headers_tell():
    lora = Lora(
        some_lora().modules, "kohya", {"modelspec.trigger_phrase": "ohwx"}, vectors={"img_in.bias": torch.ones(3)}
    )
    found = select(lora, "1")
    assert (len(found.lora.vectors), len(found.rest.vectors)) == (0, 1)
    assert found.lora.metadata["modelspec.trigger_phrase"] == "ohwx"
    assert json.loads(found.lora.metadata["flux_atelier.recipe"]) == {"parts": "1", "by": "direction"}


def test_a_dora_has_no_directions():
    dora = Lora({"img_in": Factors(torch.randn(4, 2), torch.randn(2, 3), 2.0, dora_scale=torch.ones(4))}, "kohya")
    with pytest.raises(AtelierError, match="DoRA"):
        select(dora, "1")


# importance


def linear_velocity(lora, sigmas):
    """A model whose output is 10 and, for each layer, what its change sums to, times the noise level."""
    change = sum((dense(layer).sum() for layer in lora.modules.values()), torch.tensor(0.0)) if lora else 0.0
    return torch.stack([torch.full((1, 4), 10.0, dtype=torch.float64) + sigma * change for sigma in sigmas])


def ones(value):
    return Factors(torch.tensor([[value]]), torch.ones(1, 1), 1.0)


def test_importance_by_hand():
    lora = Lora(
        {"double_blocks.0.img_mlp.0": ones(3.0), "double_blocks.0.txt_mlp.0": ones(1.0), "single_blocks.2.linear1": ones(1.0), "img_in": ones(0.0)},
        "kohya",
    )  # fmt: skip
    calls = []
    alone = importance(lora, linear_velocity, [1.0, 0.5], "alone", calls.append)
    assert alone.whole == pytest.approx((0.5 + 0.25) / 2)
    assert dict(alone.blocks) == pytest.approx({"double.0": 0.3, "single.2": 0.075, "others": 0})
    assert alone.levels["double.0"] == pytest.approx((0.4, 0.2))
    assert calls == [1, 2, 3, 4, 5]
    without = importance(lora, linear_velocity, [1.0], "without")
    assert without.blocks["double.0"] == pytest.approx(4 / 15)
    assert without.blocks["single.2"] == pytest.approx(1 / 15)
    assert without.weights(0.3) == "single.2 = 0\nother = 0"
    assert without.weights(0.0) == ""


def test_its_weights_are_block_weights():
    from flux_atelier.core.lora.blocks import parse_weights

    lora = Lora(
        {"double_blocks.0.img_mlp.0": ones(3.0), "img_in": ones(0.1), "single_blocks.7.linear1": ones(0.1)}, "kohya"
    )
    weights = parse_weights(importance(lora, linear_velocity, [0.5]).weights(0.5))
    assert [weights.of(name) for name in lora.modules] == [1, 0, 0]


def test_a_lora_of_one_block_is_important():
    lora = Lora(
        {"double_blocks.0.img_mlp.0": ones(3.0)}, "kohya", vectors={"double_blocks.0.img_mlp.0.bias": torch.ones(1)}
    )
    found = importance(lora, linear_velocity, [1.0])
    assert found.blocks["double.0"] == pytest.approx(3 / 13)
    assert blocks_of(lora) == ["double.0"]
    assert not only(lora, set()).vectors


def test_text_encoders_are_no_blocks_of_the_model():
    from flux_atelier.core.lora.blocks import parse_weights

    text = "clip_l.text_model.encoder.layers.0.self_attn.q_proj"
    lora = Lora(
        {"double_blocks.0.img_mlp.0": ones(3.0), text: ones(0.0), "t5xxl.encoder.block.0.layer.0.SelfAttention.q": ones(0.0)},
        "kohya",
        vectors={"clip_l.text_model.final_layer_norm.bias": torch.ones(1)},
    )  # fmt: skip
    found = importance(lora, linear_velocity, [1.0])
    assert blocks_of(lora) == list(found.blocks) == ["double.0"]
    assert found.weights(1.0) == ""
    parse_weights(found.weights(1.0))
    with pytest.raises(AtelierError, match="text encoders alone"):
        importance(Lora({text: ones(1.0)}, "kohya"), linear_velocity, [1.0])


@pytest.mark.parametrize("sigmas", [[], [0.0], [0.5, 1.2], [float("nan")]])
def test_wrong_noise_levels_are_told(sigmas):
    with pytest.raises(AtelierError, match="noise level"):
        importance(some_lora(), linear_velocity, sigmas)


# pictures and the page


def test_a_heat_map_has_a_cell_for_each_layer():
    values = {"double_blocks.0.img_mlp.0": 1.0, "double_blocks.2.img_mlp.0": 0.5, "single_blocks.1.linear1": 0.0}
    double, single = panels(values)
    assert (double.columns, double.rows) == (("0", "2"), ("img_mlp.0",))
    assert (single.title, single.columns) == ("single blocks", ("1",))
    colors = [color for _, color in heat_map(values, "title").getcolors(1 << 20)]
    assert DEEP in colors


def test_a_matrix_shows_signs_by_colour():
    picture = matrix_picture(["a", "b"], [[1.0, -1.0], [-1.0, 1.0]], "cosine")
    counts = {color: count for count, color in picture.getcolors(1 << 20)}
    assert counts[DEEP] > 5000
    assert counts[WARM] > 5000
    assert (signed(0.0), signed(1.0), signed(-1.0)) == (PAPER, DEEP, WARM)


def test_the_page_stands_alone(tmp_path):
    lora = some_lora()
    lora.modules["double_blocks.0.img_attn.qkv"].up[:, 0] *= 100
    page = write_study(tmp_path / "study", Study("a <b> & c", measure(lora)))
    text = page.read_text()
    assert "a &lt;b&gt; &amp; c" in text
    assert "<b>" not in text
    assert not any(word in text for word in ("http", 'src="/', "<script", "url("))
    assert text.count("data:image/png;base64,") == 2
    assert all(name in text for name in SIZES)
    assert "far above" in text
    assert sorted(p.name for p in page.parent.iterdir()) == [
        "figures.json", "heat_map.png", "index.html", "layers.csv", "spectra.png"
    ]  # fmt: skip
    assert len(json.loads((page.parent / "figures.json").read_text())["spikes"]) == 1


def test_a_study_tells_relative_norms_where_all_are_known():
    layer = LayerSpectrum("img_in", "LoRA", 1, (2.0,), {"other": 4.0}, 4.0)
    from flux_atelier.core.lora.spectrum import Spectrum

    assert Study("x", Spectrum((layer,))).values == {"img_in": 0.5}


# the command line


def command(name, *words):
    import argparse

    from flux_atelier.trainer.commands.analysis import COMMANDS

    _, add, run = COMMANDS[name]
    parser = argparse.ArgumentParser()
    add(parser)
    return list(run(parser.parse_args([str(word) for word in words])))


def test_the_commands(tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for seed, path in enumerate((a, b)):
        write_lora(path, some_lora(seed), dtype=torch.float32)
    assert command("analyse", a, "--out", tmp_path / "study")[-1] == f"open {tmp_path / 'study' / 'index.html'}"
    assert "cosine" in command("similarity", a, b, "--out", tmp_path / "two")[0]
    assert json.loads((tmp_path / "two" / "similarity.json").read_text())["names"] == ["a", "b"]
    one, rest = tmp_path / "one.safetensors", tmp_path / "rest.safetensors"
    for how in (("--parts=-1",), ("--against", b)):
        command("split", a, "--out", one, "--rest", rest, *how, "--dtype", "float32")
        halves, whole = [read_lora(one), read_lora(rest)], read_lora(a)
        for name, layer in whole.modules.items():
            assert (sum(dense(h.modules[name]) for h in halves) - dense(layer)).norm() <= 1e-6 * dense(layer).norm()
    with pytest.raises(AtelierError, match="either --parts or --against"):
        command("split", a, "--out", one)


# what a reader of the pictures and the page must not get wrong


def test_ticks_start_at_0_and_ranks_are_whole():
    assert ticks(1.0, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.094, 5) == [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]
    assert ticks(16, 8, whole=True) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert ticks(3, 8, whole=True) == [0, 1, 2, 3]
    assert ticks(19, 8, whole=True)[-1] <= 19
    assert ticks(0.0, 5) == [0.0, 1.0]


def test_a_flat_spectrum_is_drawn_high_above_its_axis():
    flat = Lora({"double_blocks.0.img_mlp.0": Factors(torch.eye(8)[:, :4] * 0.1, torch.eye(4), 4.0)}, "kohya")
    picture = spectra_picture(measure(flat))
    low = picture.crop((0, picture.height // 2 + 40, picture.width, picture.height))
    rows = [y for y in range(low.height) if sum(low.getpixel((x, y)) == DEEP for x in range(low.width)) > 100]
    assert rows
    assert max(rows) < low.height / 2


def test_a_scale_from_minus_1_to_1_is_not_stretched():
    values = {"double.0.a": 0.002, "double.1.a": -0.002, "double.2.a": -1.0}
    scale = Scale(1.0, both=True)
    assert scale.color(1.0) == DEEP
    assert scale.color(-1.0) == scale.color(-2.0) == WARM
    assert max(abs(a - b) for a, b in zip(scale.color(0.002), PAPER, strict=True)) <= 1
    counts = {color: count for count, color in heat_map(values, "cosine", scale).getcolors(1 << 20)}
    assert counts[WARM] > 200  # one cell
    assert DEEP in counts  # the bar's end
    assert counts[DEEP] < 100


def test_a_cell_at_0_is_outlined_and_a_layer_that_is_not_there_is_crossed():
    zero, absent = Image.new("RGB", (30, 30), PAPER), Image.new("RGB", (30, 30), PAPER)
    _cell(ImageDraw.Draw(zero), (0, 0), 0.0, Scale(1.0))
    _cell(ImageDraw.Draw(absent), (0, 0), None, Scale(1.0))
    assert (zero.getpixel((0, 0)), zero.getpixel((8, 8))) == (FAINT, PAPER)
    assert (absent.getpixel((0, 0)), absent.getpixel((8, 8))) == (PAPER, INK)


def test_names_are_cut_in_their_middle():
    first, second, short = short_names(["a_style_of_the_old_masters-000010", "a_style_of_the_old_masters-000020", "b"])
    assert short == "b"
    assert first.startswith("a_style")
    assert "…" in first
    assert (first[-6:], second[-6:]) == ("000010", "000020")


def test_numbers_stand_to_the_right_and_words_are_explained(tmp_path):
    text = write_study(tmp_path / "study", Study("a", measure(some_lora()))).read_text()
    assert '<th class="number">stable rank</th>' in text
    assert "<th>layer</th>" in text
    assert all(f"<dt>{word}</dt><dd>" in text for word in WORDS)
    assert set(WORDS) <= set(TITLES.values())
    cells = re.findall(r">([\d.]+)%<", text)
    assert cells
    assert all(len(cell.split(".")[1]) == 2 for cell in cells)


def test_shares_have_two_decimals():
    shares = re.findall(r"(\S+)%", Study("a", measure(some_lora())).report())
    assert len(shares) > 5
    assert all(re.fullmatch(r"\d+\.\d\d", share.lstrip("(")) for share in shares)


@pytest.mark.parametrize("inside", [(), ("deeper",)])
def test_a_file_is_no_folder_for_a_page(tmp_path, inside):
    (tmp_path / "README.md").write_text("kept")
    with pytest.raises(AtelierError, match=r"README.md is a file"):
        write_study(tmp_path.joinpath("README.md", *inside), Study("a", measure(some_lora())))
    assert (tmp_path / "README.md").read_text() == "kept"


def test_a_lora_of_another_base_is_told_with_its_layer_and_both_sizes():
    class Wide(Base):
        name = "the model"
        shapes = Base.shapes | {"double_blocks.0.img_attn.qkv.weight": (30, 10)}

    out, width = SIZES["double_blocks.0.img_attn.qkv"]
    with pytest.raises(AtelierError, match=rf"img_attn\.qkv is 30 x 10 in the model, and {out} x {width} in the LoRA"):
        study_of("a", some_lora(), Wide())
    Wide.shapes = {"other.weight": (1, 1)}
    with pytest.raises(AtelierError, match="none of the LoRA's layers"):
        study_of("a", some_lora(), Wide())


def test_a_study_with_its_base_asks_for_each_layer_once():
    lora, asked = some_lora(), []
    counted = Lora(
        Layers({name: lambda name=name: asked.append(name) or lora.modules[name] for name in lora.modules}), "kohya"
    )
    assert study_of("a", counted, Base()).spectrum.rows() == measure(lora, Base()).rows()
    assert asked == list(lora.modules)


def test_a_part_has_a_name():
    parts = divide(ranked({"a": [3.0, 1.0], "b": [2.0]}), "pair")
    assert name_of(parts, 2, "pair") == "pair 2 of 3 (b, direction 1)"
    assert name_of(parts, 3, "pair") == "pair 3 of 3 (a, direction 2)"
    assert name_of(divide(ranked({"a": [3.0, 1.0]}), "direction"), 2, "direction") == "direction 2 of 2"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("split", "--parts", "1", "--energy", "2"), "--energy is not used"),
        (("split", "--against", "b.safetensors", "--by", "pair"), "--by is not used"),
        (("similarity",), "Give two or more LoRAs"),
    ],
)
def test_the_command_line_says_what_to_give(tmp_path, words, match):
    a = tmp_path / "a.safetensors"
    write_lora(a, some_lora(), dtype=torch.float32)
    with pytest.raises(AtelierError, match=match):
        command(words[0], a, "--out", tmp_path / "out", *words[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
