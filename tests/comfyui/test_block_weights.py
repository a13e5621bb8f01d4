"""Block weights and scheduled LoRAs in the real ComfyUI, on nano-flux: each step beside the LoRA loaded at that strength."""

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.blocks import parse_weights
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import read_lora
from flux_atelier.core.lora.kinds import Dense, Hada, Kron
from flux_atelier.core.lora.record import Lora
from flux_atelier.core.lora.schedule import parse_schedule

STEPS, SCHEDULE = 5, "1: 0, 0.8: 1.5, 0.3: -0.5, 0: 0.5"


def run(node, **inputs):
    """Execute a node as ComfyUI does."""
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**inputs)


@pytest.fixture(scope="module")
def record(nano):
    """A random LoRA for nano-flux's attention and modulation, strong enough to see."""
    make = torch.Generator().manual_seed(3)
    layers, inner = {}, nano[0].model.diffusion_model
    for name, layer in inner.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(("qkv", "linear1", "linear2", "lin", "img_mlp.0")):
            up = torch.randn(layer.out_features, 4, generator=make) * 0.05
            layers[name] = Factors(up, torch.randn(4, layer.in_features, generator=make) * 0.2, 2.0)
    return Lora(layers, "kohya")


def wire(record):
    from flux_atelier.nodes.wire import to_wire

    return to_wire(record)


@pytest.fixture(scope="module")
def prompt(nano):
    from flux_atelier.nodes import host

    with torch.inference_mode():
        return host.condition(nano[1], "a red circle", 3.5)


def draw(model, prompt):
    from flux_atelier.nodes import host

    with torch.inference_mode():
        return host.sample(model, prompt, torch.zeros(1, 16, 8, 8), 5, STEPS)


def watched(model, prompt, forced=None, only=None):
    """What the model answers at each step: input, sigma, answer; `forced` gives the inputs, `only` the step that counts."""
    seen = []

    def wrapper(apply, args):
        x = forced[len(seen)][0] if forced else args["input"]
        out = apply(x, args["timestep"], **args["c"]) if only in (None, len(seen)) else torch.zeros_like(x)
        seen.append((x.clone(), float(args["timestep"][0]), out.clone()))
        return out

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    draw(model, prompt)
    return seen


def weights_of(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def assert_untouched(model, before, picture, prompt):
    """The weights are what they were, no hook is left, and a plain generation gives the same bytes as before."""
    after = weights_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(layer._forward_hooks for layer in model.model.modules())
    assert torch.equal(draw(model, prompt), picture)


def farthest(model, tensors, prompt, plain, schedule, seen):
    """The largest difference of a step's velocity from that of the LoRA loaded into the weights at its strength."""
    from flux_atelier.nodes import host

    worst = []
    for step, (_, sigma, out) in enumerate(seen):
        with torch.inference_mode():
            loaded = host.with_lora(model, tensors, schedule.at(sigma))
        truth = watched(loaded, plain, seen, step)[step][2]
        worst.append(((out - truth) / sigma).abs().max().item())
    return max(worst)


def test_each_step_is_that_of_the_lora_at_its_strength(nano, record, prompt):
    from flux_atelier.nodes import block_weights

    model = nano[0]
    picture = draw(model, prompt)  # which takes out what a test before has loaded
    before = weights_of(model)
    scheduled = run(
        block_weights.ScheduleLora, model=model, lora=wire(record), schedule=SCHEDULE, interpolation="smooth"
    ).args[0]
    seen = watched(scheduled, prompt)
    assert_untouched(model, before, picture, prompt)
    base = watched(model, prompt, seen)
    moved = max((a[2] - b[2]).abs().max().item() for a, b in zip(seen, base, strict=True))
    assert moved > 1e-2
    assert torch.equal(seen[0][2], base[0][2])  # strength 0 at sigma 1
    assert farthest(model, wire(record), prompt, prompt, parse_schedule(SCHEDULE, "smooth"), seen) <= 1e-4


def test_hooks_on_a_prompt_do_the_same(nano, record, prompt):
    import comfy.hooks

    from flux_atelier.nodes import block_weights

    model = nano[0]
    picture = draw(model, prompt)  # which takes out what a test before has loaded
    before = weights_of(model)
    hooks = run(block_weights.ScheduledLoraHooks, lora=wire(record), schedule=SCHEDULE, interpolation="linear").args[0]
    hooked = comfy.hooks.set_hooks_for_conditioning(prompt, hooks)
    seen = watched(model, hooked)
    assert_untouched(model, before, picture, prompt)
    assert farthest(model, wire(record), prompt, prompt, parse_schedule(SCHEDULE), seen) <= 1e-4


def test_hooks_are_added_to_others_and_run_twice_alike(nano, record, prompt):
    import comfy.hooks

    from flux_atelier.nodes import block_weights

    node, tensors = block_weights.ScheduledLoraHooks, wire(record)
    first = run(node, lora=tensors, schedule="0.4", interpolation="linear").args[0]
    both = run(node, lora=tensors, schedule="1: 0, 0: 0.6", interpolation="linear", prev_hooks=first).args[0]
    assert (len(first), len(both)) == (1, 2)
    hooked = comfy.hooks.set_hooks_for_conditioning(prompt, both)
    seen = watched(nano[0], hooked)
    schedule = parse_schedule("1: 0.4, 0: 1.0")
    assert farthest(nano[0], tensors, hooked, prompt, schedule, seen) <= 1e-4
    again = watched(nano[0], hooked)
    assert all(torch.equal(a[2], b[2]) for a, b in zip(seen, again, strict=True))


def test_two_schedules_on_one_model_add_up(nano, record, prompt):
    from flux_atelier.nodes import block_weights

    model, tensors = nano[0], wire(record)
    for schedule in ("1: 0, 0: 1", "1: 0.5, 0: 0"):
        model = run(
            block_weights.ScheduleLora, model=model, lora=tensors, schedule=schedule, interpolation="linear"
        ).args[0]
    seen = watched(model, prompt)
    assert farthest(nano[0], tensors, prompt, prompt, parse_schedule("1: 0.5, 0: 1"), seen) <= 1e-4


def test_per_cents_are_the_models_own(nano, record, prompt):
    from flux_atelier.nodes.host.hooks import by_sigma

    sampling = nano[0].model.model_sampling
    turned = by_sigma(parse_schedule("0%: 0, 40%: 1, 100%: 0"), sampling)
    assert turned.points[0][0] == pytest.approx(1.0)
    assert turned.points[1][0] == pytest.approx(float(sampling.percent_to_sigma(0.4)))
    assert turned.points[2][0] == 0


def test_every_kind_that_adds_works_beside_the_layer(nano, prompt):
    from flux_atelier.nodes import block_weights

    make = torch.Generator().manual_seed(1)
    inner = nano[0].model.diffusion_model
    out, width = inner.double_blocks[0].img_attn.proj.weight.shape
    wide = len(inner.double_blocks[0].img_mlp[0].weight)
    layers = {
        "double_blocks.0.img_attn.proj": Kron(
            torch.randn(2, 2, generator=make) * 0.1, (torch.randn(out // 2, width // 2, generator=make) * 0.1,), 1.0
        ),
        "double_blocks.0.txt_attn.proj": Hada(
            (torch.randn(out, 2, generator=make) * 0.2, torch.randn(2, width, generator=make) * 0.2),
            (torch.randn(out, 2, generator=make), torch.randn(2, width, generator=make)),
            0.5,
        ),
        "double_blocks.0.img_mlp.0": Dense(torch.randn(wide, width, generator=make) * 0.02),
        "single_blocks.0.modulation.lin": Factors(
            torch.randn(3 * width, 2, generator=make) * 0.1, torch.randn(2, width, generator=make), 2.0
        ),
    }
    record = Lora(layers, "kohya", vectors={"double_blocks.0.img_mlp.0.bias": torch.randn(wide, generator=make)})
    scheduled = run(
        block_weights.ScheduleLora, model=nano[0], lora=wire(record), schedule=SCHEDULE, interpolation="linear"
    ).args[0]
    seen = watched(scheduled, prompt)
    base = watched(nano[0], prompt, seen)
    assert max((a[2] - b[2]).abs().max().item() for a, b in zip(seen, base, strict=True)) > 1e-2
    assert farthest(nano[0], wire(record), prompt, prompt, parse_schedule(SCHEDULE), seen) <= 1e-4


def test_what_only_works_in_the_weights_is_refused(nano, record):
    from flux_atelier.nodes.host.hooks import schedule_lora

    name, layer = next(iter(record.modules.items()))
    dora = Lora({name: Factors(layer.up, layer.down, 2.0, dora_scale=torch.ones(len(layer.up)))}, "kohya")
    for lora, words in (
        (dora, "is a DoRA, which only works in the weights"),
        (Lora({"double_blocks.90.img_attn.qkv": layer}, "kohya"), "no layer that the MODEL has"),
        (Lora({name: Factors(layer.up[:5], layer.down, 2.0)}, "kohya"), "Choose a LoRA for this model"),
    ):
        with pytest.raises(AtelierError, match=words):
            schedule_lora(nano[0], lora, parse_schedule("1"))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("only_bias", [False, True])
def test_convolutions_are_refused(kernel, only_bias):
    from types import SimpleNamespace

    from flux_atelier.nodes.host.hooks import schedule_lora

    inner = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(4, 4, kernel)})
    layer = Factors(torch.ones(4, 1), torch.ones(1, 4 * kernel**2), 1.0, kernel=(kernel, kernel))
    lora = Lora(
        {} if only_bias else {"conv": layer}, "kohya", vectors={"conv.bias": torch.ones(4)} if only_bias else {}
    )
    with pytest.raises(AtelierError, match=r"conv is a Conv2d .* Use LoRA Hooks with Schedule"):
        schedule_lora(SimpleNamespace(model=SimpleNamespace(diffusion_model=inner)), lora, parse_schedule("1"))


def test_a_failed_step_leaves_no_hook_behind(nano, record, prompt):
    from flux_atelier.nodes.host.hooks import schedule_lora

    scheduled = schedule_lora(nano[0], record, parse_schedule("1")).clone()

    def fail(apply, args):
        raise RuntimeError("a step failed")

    inner = nano[0].model.diffusion_model
    fails = inner.final_layer.register_forward_hook(lambda *_: fail(None, None))
    try:
        with pytest.raises(RuntimeError, match="a step failed"):
            draw(scheduled, prompt)
    finally:
        fails.remove()
    assert not any(layer._forward_hooks for layer in nano[0].model.modules())


# --- block weights ---------------------------------------------------------------------------------------------------


def test_weights_are_applied_and_written(nano, record, folders):
    from flux_atelier.nodes import block_weights
    from flux_atelier.nodes.wire import from_wire

    text = run(block_weights.BlockWeights, base="flux1", weights="double = 0.5\nsingle.0.linear1 = 0").args[0]
    lora = run(block_weights.ApplyBlockWeights, lora=wire(record), weights=text, name="halved").args[0]
    out, weights = from_wire(lora, "out"), parse_weights(text)
    assert set(out.modules) == set(record.modules) - {"single_blocks.0.linear1"}
    written = read_lora(folders / "output" / "loras" / "halved.safetensors")
    for name, layer in out.modules.items():
        assert torch.allclose(layer.delta(), weights.of(name) * record.modules[name].delta(), atol=1e-6)
        assert torch.allclose(written.modules[name].delta(), layer.delta(), atol=2e-3)
    assert "double = 0.5" in written.metadata["flux_atelier.recipe"]


def test_no_name_writes_no_file(nano, record, folders):
    from flux_atelier.nodes import block_weights

    before = set((folders / "output").rglob("*"))
    run(block_weights.ApplyBlockWeights, lora=wire(record), weights="", name=" ")
    assert set((folders / "output").rglob("*")) == before


@pytest.mark.parametrize(
    ("node", "inputs", "words"),
    [
        ("BlockWeights", {"base": "flux1", "weights": "duble = 1"}, "nearest name is double"),
        ("BlockWeights", {"base": "sd3", "weights": "joint.3 = 1"}, True),
        ("BlockWeights", {"base": "flux1", "weights": None}, True),
        ("ApplyBlockWeights", {"name": "", "weights": "1, 2"}, "vector of 2 numbers"),
        ("ApplyBlockWeights", {"name": "../x", "weights": ""}, "leads out"),
        ("ApplyBlockWeights", {"name": "", "weights": "joint.3 = 1"}, True),
        ("ScheduleLora", {"schedule": "1: a"}, "no point"),
        ("ScheduledLoraHooks", {"schedule": "1: 0, 0: 1"}, True),
    ],
)
def test_mistakes_are_told_before_the_queue(comfyui, node, inputs, words):
    from flux_atelier.nodes import block_weights

    told = getattr(block_weights, node).validate_inputs(**inputs)
    assert told is True if words is True else words in told


def test_a_grid_takes_the_blocks_of_any_model_and_knows_its_loras(comfyui):
    from flux_atelier.core.evaluation.cells import Patch
    from flux_atelier.nodes import lora_grid

    base = dict.fromkeys(("x_axis", "y_axis", "z_axis"), "none") | dict.fromkeys(
        ("x_values", "y_values", "z_values"), ""
    )
    given = base | {"name": "grid", "prompts": "a house", "blocks": "single.40 = 0"}  # of Flux.2
    assert lora_grid.LoraGrid.validate_inputs(**given) is True
    assert "sinlge" in lora_grid.LoraGrid.validate_inputs(**given | {"blocks": "sinlge = 0"})
    layer = Factors(torch.ones(12, 1), torch.ones(1, 4), 1.0)
    shelf = lora_grid.Shelf({"lora0": wire(Lora({"double_blocks.0.img_attn.qkv": layer}, "kohya"))}, {"lora0"})
    shelf.check([Patch(shelf.digests["lora0"], 1.0, "single.30 = 0"), Patch(shelf.digests["lora0"], 1.0, "")])
    with pytest.raises(AtelierError, match=r"Flux\.1 has single_blocks 0 to 37"):
        shelf.check([Patch(shelf.digests["lora0"], 1.0, "single.40 = 0")])
