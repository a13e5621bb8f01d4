"""Every kind of adapter: peft's own numbers without its dense matrices, files that say what was trained, and back."""

import pytest
import torch
from tiny import SHAPE, diffusers_twin, diffusers_velocity, tiny_batch, tiny_tree

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import parse_lora, to_layout
from flux_atelier.core.lora.kinds import Hada, Kron, plain
from flux_atelier.core.lora.merge import merge
from flux_atelier.core.lora.record import Lora
from flux_atelier.trainer import adapter, targets
from flux_atelier.trainer.config import AdapterOptions
from flux_atelier.trainer.draw import apply_lora
from flux_atelier.trainer.flux.view import TrainView, cast_plain
from flux_atelier.trainer.lean import LeanDora

KINDS = ("lora", "rslora", "dora", "lokr", "loha")
RULES = "double_blocks.0.img_attn.qkv: rank=7 alpha=3\nsingle_blocks.1.*: rank=0"


def view_of(tree=None) -> TrainView:
    return TrainView(tree or tiny_tree(), SHAPE, cast_plain, torch.device("cpu"))


def trained_view(kind: str, tree=None, **changes) -> TrainView:
    """A view whose adapter has random values everywhere, as after a training."""
    view = view_of(tree)
    chosen = AdapterOptions(**{"rank": 4, "alpha": 6.0, "adapter_type": kind} | changes)
    rng = torch.Generator().manual_seed(1)
    for parameter in adapter.inject(view, chosen, 0):
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.05)
    return view


def velocity(view):
    latent, _, sigma, text, pooled, guidance = tiny_batch()
    with torch.no_grad():
        return view(latent, sigma, text, pooled, guidance)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_starts_as_the_model_itself(kind):
    view = view_of()
    before = velocity(view)
    adapter.inject(view, AdapterOptions(rank=4, adapter_type=kind), 0)
    assert torch.allclose(velocity(view), before, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_with_its_file_is_the_model_that_was_trained(kind):
    view = trained_view(kind, layer_rules=RULES)
    ours = velocity(view)
    assert (ours - velocity(view_of())).abs().max() > 0.02
    drawn = view_of()
    for layout in ("kohya", "comfy"):
        lora = Lora(adapter.layers(view), "kohya")
        apply_lora(drawn := view_of(), parse_lora(to_layout(lora, layout, torch.float32), {}, layout))
        assert (velocity(drawn) - ours).abs().max() <= 2e-5 * ours.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_draws_what_was_trained(kind):
    tree = tiny_tree()
    view = trained_view(kind, tree, layer_rules=RULES)
    twin = diffusers_twin(tree)
    twin.load_lora_adapter(to_layout(Lora(adapter.layers(view), "kohya"), "diffusers", torch.float32))
    latent, _, sigma, text, pooled, guidance = tiny_batch()
    with torch.no_grad():
        theirs = diffusers_velocity(twin, latent, sigma, text, pooled, guidance)
    ours = velocity(view)
    assert (ours - theirs).norm() / theirs.norm() <= 1e-4
    assert (ours - velocity(view_of(tree))).norm() / theirs.norm() > 0.01


def peft_layer(kind: str):
    """The same adapter in peft's own dense layers, over a plain Linear."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model

    configs = {
        "dora": lambda: LoraConfig(r=4, lora_alpha=6, target_modules=["x"], use_dora=True),
        "lokr": lambda: LoKrConfig(r=4, alpha=6, decompose_factor=8, target_modules=["x"]),
        "loha": lambda: LoHaConfig(r=4, alpha=6, target_modules=["x"]),
    }
    holder = torch.nn.Module()
    holder.x = torch.nn.Linear(256, 768)
    inject_adapter_in_model(configs[kind](), holder)
    return holder


@pytest.mark.parametrize("kind", ["dora", "lokr", "loha"])
def test_lean_layers_compute_and_learn_as_peft_does(kind):
    view = trained_view(kind)
    ours = view.get_submodule("double_blocks.0.img_attn.qkv")
    holder = peft_layer(kind)
    source = tiny_tree().get_submodule("double_blocks.0.img_attn.qkv")
    theirs = holder.x
    theirs.get_base_layer().load_state_dict(source.state_dict())
    twins = [(a, b) for a, b in zip(adapted(ours), adapted(theirs), strict=True)]
    with torch.no_grad():
        for mine, other in twins:
            other.copy_(mine)
    holder.eval()
    x = torch.randn(2, 5, 256)
    outs = []
    for layer in (ours, theirs):
        out = layer(x)
        out.square().mean().backward()
        outs.append(out.detach())
    assert torch.allclose(outs[0], outs[1], atol=1e-5)
    for mine, other in twins:
        assert torch.allclose(mine.grad, other.grad, atol=1e-6, rtol=1e-4)


def adapted(module) -> list[torch.nn.Parameter]:
    return [p for n, p in sorted(module.named_parameters()) if "base_layer" not in n]


def test_lean_layers_keep_no_dense_matrix():
    kept = []
    for kind in KINDS:
        layer, x = trained_view(kind).get_submodule("double_blocks.0.img_attn.qkv"), torch.randn(1, 3, 256)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            layer(x)
    assert 0 < max(kept) < 256 * 768 / 4


def test_dora_norms_are_those_of_the_dense_matrix():
    view = trained_view("dora")
    layer = view.get_submodule("single_blocks.0.linear2")
    a, b, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    dora = layer.lora_magnitude_vector["default"]
    assert isinstance(dora, LeanDora)
    weight = tiny_tree().get_submodule("single_blocks.0.linear2").weight
    exact = (weight + scale * b @ a).norm(dim=1)
    assert torch.allclose(dora.norms(layer.get_base_layer(), a, b, scale), exact, rtol=1e-5)


def test_dora_is_scaled_for_comfyui_by_the_plain_weights_norm():
    view = trained_view("dora")
    name = "double_blocks.1.txt_mlp.0"
    made = adapter.layers(view)[name]
    weight = tiny_tree().get_submodule(name).weight
    changed = weight + made.delta()
    paper = made.magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)
    comfy = made.dora_scale[:, None] * changed / weight.norm(dim=1, keepdim=True)
    assert torch.allclose(paper, comfy, atol=1e-5)


def test_kronecker_and_hadamard_layers_are_plain_factors():
    rng = torch.Generator().manual_seed(0)
    kron = Kron(
        torch.randn(4, 3, generator=rng), (torch.randn(6, 2, generator=rng), torch.randn(2, 5, generator=rng)), 0.7
    )
    parts = [torch.randn(*size, generator=rng) for size in ((8, 2), (2, 6), (8, 3), (3, 6))]
    hada = Hada((parts[0], parts[1]), (parts[2], parts[3]), 1.3)
    for layer, rank in ((kron, 6), (hada, 6)):
        assert layer.factors().rank == rank
        assert torch.allclose(layer.factors().delta(), layer.delta(), atol=1e-5)
    by_hand = 1.3 * (parts[0] @ parts[1]) * (parts[2] @ parts[3])
    assert torch.allclose(hada.delta(), by_hand, atol=1e-5)


def test_lokr_and_loha_merge_like_what_they_do():
    for kind in ("lokr", "loha"):
        lora = Lora(adapter.layers(trained_view(kind)), "kohya")
        merged = merge([("a", 0.5, lora), ("b", 0.5, lora)]).lora
        for name, layer in lora.modules.items():
            assert torch.allclose(merged.modules[name].delta(), layer.delta(), atol=1e-5)


def test_a_dora_does_not_merge():
    with pytest.raises(AtelierError, match="DoRA"):
        merge([("a", 1.0, Lora(adapter.layers(trained_view("dora")), "kohya"))])


@pytest.mark.parametrize("layout", ["kohya", "comfy", "diffusers"])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 6.0), (2, 1.0), (4, 32.0)])
def test_going_on_from_a_lora_starts_where_it_was(layout, rank, alpha):
    before = trained_view("lora", rank=rank, alpha=alpha)
    file = parse_lora(to_layout(Lora(adapter.layers(before), "kohya"), layout, torch.float32), {}, "a")
    after = view_of()
    adapter.inject(after, AdapterOptions(rank=4, alpha=8.0), 3)
    adapter.start_from(after, file.modules)
    assert torch.allclose(velocity(after), velocity(before), atol=2e-5)


def test_going_on_from_a_higher_rank_takes_its_best_part():
    layers = adapter.layers(trained_view("lora", rank=8))
    after = view_of()
    adapter.inject(after, AdapterOptions(rank=4), 3)
    adapter.start_from(after, layers)
    name = "double_blocks.0.img_mlp.2"
    left, sigma, right = torch.linalg.svd(layers[name].delta())
    best = left[:, :4] @ torch.diag(sigma[:4]) @ right[:4]
    assert torch.allclose(adapter.layers(after)[name].delta(), best, atol=1e-5)


@pytest.mark.parametrize("given", ["lora", "dora"])
def test_a_dora_goes_on_from_either(given):
    before = trained_view(given)
    after = view_of()
    adapter.inject(after, AdapterOptions(rank=4, adapter_type="dora"), 3)
    adapter.start_from(after, adapter.layers(before))
    assert torch.allclose(velocity(after), velocity(before), atol=1e-4)


def test_going_on_from_other_layers_is_refused():
    layers = adapter.layers(trained_view("lora", targets="all"))
    after = view_of()
    adapter.inject(after, AdapterOptions(rank=4, targets="attention"), 0)
    with pytest.raises(AtelierError, match=r"layers that are not trained here, such as .*attention\+mlp or all"):
        adapter.start_from(after, layers)


def test_rules_set_rank_alpha_and_rate_by_layer():
    chosen = AdapterOptions(
        rank=8, alpha=4.0,
        layer_rules="# likeness\nsingle_blocks.1.*: rank=16 rate=0.5\n*.txt_mlp.*: rank=0\nimg_in: alpha=2",
    )  # fmt: skip
    found = {t.name: t for t in targets.choose(view_of(), chosen)}
    assert (found["single_blocks.1.linear1"].rank, found["single_blocks.1.linear1"].rate) == (16, 0.5)
    assert found["single_blocks.1.linear1"].alpha == 8.0  # the scale stays
    assert found["single_blocks.0.linear1"].rank == 8
    assert found["img_in"].alpha == 2.0  # a rule may add what the preset leaves out
    assert not any("txt_mlp" in name for name in found)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("double_blox.*: rank=3", "matches no layer"),
        ("single_blocks.*: ranks=3", "has 'ranks=3'"),
        ("single_blocks.*: rank=3.5", "not complete"),
        ("single_blocks.*", "has .single_blocks"),
        ("single_(: rank=2", "no pattern"),
        (".*: rank=0", "leave no layer"),
        ("single_blocks.*: rate=0", "has a zero"),
    ],
)
def test_rules_that_cannot_be_meant_are_told(rules, words):
    with pytest.raises(AtelierError, match=words):
        targets.choose(view_of(), AdapterOptions(layer_rules=rules))


@pytest.mark.parametrize(
    ("preset", "count"),
    [("attention", 10), ("attention+mlp", 20), ("all", 26), ("style blocks", 2), ("subject blocks", 4)],
)
def test_presets_name_their_layers(preset, count):
    assert len(targets.choose(view_of(), AdapterOptions(targets=preset))) == count


def test_rates_make_groups():
    view = view_of()
    chosen = AdapterOptions(rank=2, layer_rules="single_blocks.*: rate=0.25")
    layers = targets.choose(view, chosen)
    parameters = adapter.inject(view, chosen, 0)
    groups = adapter.groups(view, layers)
    assert [g["rate"] for g in groups] == [1.0, 0.25]
    assert sum(len(g["params"]) for g in groups) == len(parameters)


def test_without_its_adapter_the_model_is_the_base():
    view = trained_view("lora")
    changed = velocity(view)
    with adapter.disabled(view):
        assert torch.equal(velocity(view), velocity(view_of()))
    assert torch.equal(velocity(view), changed)
    assert all(p.requires_grad for n, p in view.named_parameters() if adapter.trained(n))


def test_an_assistant_lies_under_the_training_and_not_in_the_file():
    helper = Lora(adapter.layers(trained_view("lora")), "kohya")
    view = view_of()
    adapter.inject(view, AdapterOptions(rank=4), 0)
    plain_velocity = velocity(view)
    view.assist({name: plain(layer) for name, layer in helper.modules.items()})
    drawn = view_of()
    apply_lora(drawn, helper)
    assert torch.allclose(velocity(view), velocity(drawn), atol=1e-5)
    assert all(isinstance(f, Factors) and not f.up.any() for f in adapter.layers(view).values())
    view.assist({})
    assert torch.equal(velocity(view), plain_velocity)
