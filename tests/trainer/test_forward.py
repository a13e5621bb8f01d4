"""The training forward beside diffusers' model, and laws it must keep."""

import pytest
import torch
from tiny import SHAPE, diffusers_twin, diffusers_velocity, tiny_batch, tiny_tree

from flux_atelier.core.flux.layout import to_diffusers, to_original
from flux_atelier.trainer import adapter
from flux_atelier.trainer.config import AdapterOptions
from flux_atelier.trainer.flux.forward import plan_checkpoints
from flux_atelier.trainer.flux.view import TrainView, cast_plain
from flux_atelier.trainer.objective import add_noise, velocity_error


def train_view(tree, options=None, seed=3):
    view = TrainView(tree, tree.shape, cast_plain, torch.device("cpu"))
    parameters = adapter.inject(view, options or AdapterOptions(rank=4, alpha=8.0), seed)
    with torch.no_grad():
        torch.manual_seed(seed)
        for value in parameters:
            if value.abs().max() == 0:
                value.normal_(0, 0.05)  # B starts at zero; give it something to say
    return view, parameters


def loss_of(model, batch, checkpointed=()):
    latent, noise, sigma, text, pooled, guidance = batch
    velocity = model(add_noise(latent, noise, sigma), sigma, text, pooled, guidance, checkpointed)
    return velocity_error(velocity, latent, noise).mean()


def test_forward_equals_diffusers():
    tree = tiny_tree()
    latent, _, sigma, text, pooled, guidance = tiny_batch()
    ours = tree(latent, sigma, text, pooled, guidance)
    theirs = diffusers_velocity(diffusers_twin(tree), latent, sigma, text, pooled, guidance)
    assert (ours - theirs).abs().max() <= 1e-5


def test_view_equals_tree():
    tree = tiny_tree()
    view = TrainView(tree, SHAPE, cast_plain, torch.device("cpu"))
    latent, _, sigma, text, pooled, guidance = tiny_batch()
    assert torch.equal(view(latent, sigma, text, pooled, guidance), tree(latent, sigma, text, pooled, guidance))


def test_layouts_round_trip_bit_for_bit():
    state = tiny_tree().state_dict()
    back = to_original(to_diffusers(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)


def peft_twin(tree, view, alpha=8.0):
    """diffusers' model with peft LoRAs on its split projections that make up our fused ones."""
    from peft import LoraConfig, inject_adapter_in_model

    twin = diffusers_twin(tree)
    names = [
        n for n, _ in twin.named_modules() if n.endswith(("to_out.0", "to_add_out", "ff.net.2", "ff_context.net.2"))
    ]
    names = [n for n in names if n.startswith("transformer_blocks")]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=alpha, target_modules=names), twin)
    pairs = {}
    for name in names:
        ours = name.replace("transformer_blocks", "double_blocks").replace("attn.to_out.0", "img_attn.proj")
        ours = ours.replace("attn.to_add_out", "txt_attn.proj").replace("ff_context.net.2", "txt_mlp.2")
        pairs[name] = ours.replace("ff.net.2", "img_mlp.2")
    with torch.no_grad():
        for theirs, ours in pairs.items():
            a, b = twin.get_submodule(theirs), view.get_submodule(ours)
            a.lora_A["default"].weight.copy_(b.lora_A["default"].weight)
            a.lora_B["default"].weight.copy_(b.lora_B["default"].weight)
    return twin, pairs


def test_loss_and_gradients_equal_diffusers_with_peft():
    tree = tiny_tree()
    view, _parameters = train_view(tree)
    kept = {}
    for name, module in view.named_modules():  # only layers that both layouts have whole
        if hasattr(module, "lora_A") and not name.endswith(("proj", "mlp.2")):
            torch.nn.init.zeros_(module.lora_B["default"].weight)
    twin, pairs = peft_twin(tree, view)
    latent, noise, sigma, text, pooled, guidance = tiny_batch()
    ours = loss_of(view, (latent, noise, sigma, text, pooled, guidance))
    velocity = diffusers_velocity(twin, add_noise(latent, noise, sigma), sigma, text, pooled, guidance)
    theirs = velocity_error(velocity, latent, noise).mean()
    assert abs(ours.item() - theirs.item()) <= 1e-5 * theirs.item()
    ours.backward()
    theirs.backward()
    for name_theirs, name_ours in pairs.items():
        for half in ("lora_A", "lora_B"):
            a = getattr(twin.get_submodule(name_theirs), half)["default"].weight.grad
            b = getattr(view.get_submodule(name_ours), half)["default"].weight.grad
            kept[name_ours, half] = ((a - b).norm() / a.norm()).item()
    assert len(kept) == 16
    assert max(kept.values()) <= 1e-5, max(kept, key=kept.get)


def test_gradient_equals_a_float64_finite_difference():
    tree = tiny_tree().double()
    view = TrainView(tree, SHAPE, cast_plain, torch.device("cpu"))
    parameters = adapter.inject(view, AdapterOptions(rank=4), 0)
    rng = torch.Generator().manual_seed(5)
    for value in parameters:
        value.data = 0.1 * torch.randn(value.shape, generator=rng, dtype=torch.float64)
    batch = [t.double() for t in tiny_batch()]

    def value_of():
        latent, noise, sigma, text, pooled, guidance = batch
        velocity = view(add_noise(latent, noise, sigma), sigma, text, pooled, guidance)
        return (velocity - (noise - latent)).square().mean()

    value_of().backward()
    chosen = parameters[::7]
    direction = [torch.randn(p.shape, generator=rng, dtype=torch.float64) for p in chosen]
    slope = sum((p.grad * d).sum() for p, d in zip(chosen, direction, strict=True)).item()
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(chosen, direction, strict=True):
                p.add_(sign * step * d)
            values.append(value_of().item())
            for p, d in zip(chosen, direction, strict=True):
                p.sub_(sign * step * d)
    # The sines of the time embedding and the rotary tables stay float32 by design, equal on both sides.
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_checkpointing_changes_no_bit(share):
    view, parameters = train_view(tiny_tree())
    results = []
    for checkpointed in ((), plan_checkpoints(2, 2, share)):
        loss = loss_of(view, tiny_batch(), checkpointed)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in parameters)])
        for p in parameters:
            p.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.25, 1), (0.5, 2), (1, 4)])
def test_checkpoint_dial(share, count):
    assert len(plan_checkpoints(2, 2, share)) == count


def test_a_batch_equals_the_mean_of_its_singles():
    view, parameters = train_view(tiny_tree())
    batch = tiny_batch(count=3)
    loss_of(view, batch).backward()
    together = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    for i in range(3):
        (loss_of(view, [t[i : i + 1] for t in batch]) / 3).backward()
    for a, p in zip(together, parameters, strict=True):
        assert torch.allclose(a, p.grad, rtol=1e-4, atol=1e-7)


def test_only_the_lora_has_gradients_and_the_model_stays_as_it_was():
    tree = tiny_tree()
    before = {k: v.clone() for k, v in tree.state_dict().items()}
    names = [n for n, _ in tree.named_modules()]
    view, parameters = train_view(tree)
    loss_of(view, tiny_batch()).backward()
    assert all(p.grad is not None for p in parameters)
    assert all(p.grad is None for p in tree.parameters())
    assert all(torch.equal(before[k], v) for k, v in tree.state_dict().items())
    assert names == [n for n, _ in tree.named_modules()]


def test_no_cast_weight_is_kept_for_backward():
    """With bf16 weights, a kept float32 copy of any layer would show among the saved tensors."""
    tree = tiny_tree().to(torch.bfloat16)
    view, _ = train_view(tree)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        loss_of(view, tiny_batch())
    weights = {tuple(p.shape) for p in tree.parameters() if p.dim() == 2}
    assert saved
    assert not weights & set(saved)
