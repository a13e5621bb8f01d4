"""Our forward, encoders and LoRA files beside ComfyUI's own, on the MODEL that ComfyUI loaded."""

import hashlib

import pytest
import torch

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import to_layout
from flux_atelier.core.lora.record import Lora
from flux_atelier.trainer import adapter, models
from flux_atelier.trainer.config import AdapterOptions
from flux_atelier.trainer.encoders import FileEncoder
from flux_atelier.trainer.nano import scenes

PROMPT = "a large red circle on the left, striped blue background"


def batch(count=2):
    rng = torch.Generator().manual_seed(3)
    latent = torch.randn(count, 16, 8, 6, generator=rng)
    return (
        latent, torch.rand(count, generator=rng), torch.randn(count, 11, 128, generator=rng),
        torch.randn(count, 64, generator=rng), torch.full((count,), 2.0),
    )  # fmt: skip


@torch.inference_mode()
def comfy_velocity(model, latent, sigma, text, pooled, guidance):
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    inner = model.model.diffusion_model
    return inner(latent.clone(), sigma, context=text.clone(), y=pooled, guidance=guidance).clone()


def float32_model(dtype=torch.float32):
    import comfy.sd

    from flux_atelier.trainer.nano import files

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(files.TRANSFORMER), model_options={"dtype": dtype})


def test_forward_equals_comfyui():
    from flux_atelier.nodes import host

    model, given = float32_model(), batch()
    theirs = comfy_velocity(model, *given)
    with host.training(model) as view, torch.no_grad():
        ours = view(*given)
    tree = models.load_tree(models.nano().transformer).float()
    assert (ours - theirs).abs().max() <= 1e-5
    assert (tree(*given) - theirs).abs().max() <= 1e-5


def weights_digest(model) -> str:
    total = hashlib.sha256()
    for name, value in model.model.diffusion_model.state_dict().items():
        total.update(name.encode() + torch.Tensor(value).contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_trains_on_inference_tensors_of_any_precision_and_leaves_them(dtype):
    from flux_atelier.nodes import host

    model = float32_model(dtype)
    before, names = weights_digest(model), [n for n, _ in model.model.diffusion_model.named_modules()]
    latent, sigma, text, pooled, guidance = batch()
    with torch.inference_mode(), host.training(model) as view:
        parameters = adapter.inject(view, AdapterOptions(rank=4), 0)
        losses, saved = [], []
        optimizer = torch.optim.AdamW(parameters, 5e-3)
        given = [t.clone() for t in (latent, sigma, text, pooled, guidance)]
        for _ in range(6):
            with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
                loss = view(*given).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert all(p.dtype == torch.float32 for p in parameters)
    assert losses[-1] < 0.9 * losses[0]
    assert weights_digest(model) == before
    assert [n for n, _ in model.model.diffusion_model.named_modules()] == names
    kept_weights = {
        tuple(v.shape) for k, v in model.model.diffusion_model.state_dict().items() if k.endswith("linear1.weight")
    }
    assert not kept_weights & set(saved)


def some_lora(seed=0) -> Lora:
    """A LoRA with rank 4, alpha 6 on layers of every kind."""
    rng = torch.Generator().manual_seed(seed)
    tree = models.load_tree(models.nano().transformer)
    names = (
        "double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.proj", "double_blocks.0.img_mlp.0",
        "double_blocks.0.txt_mlp.2", "double_blocks.0.img_mod.lin", "single_blocks.1.linear1", "single_blocks.2.linear2",
        "single_blocks.0.modulation.lin",
    )  # fmt: skip
    modules = {}
    for name in names:
        layer = tree.get_submodule(name)
        up = torch.randn(layer.out_features, 4, generator=rng) * 0.05
        modules[name] = Factors(up, torch.randn(4, layer.in_features, generator=rng) * 0.05, 6.0)
    return Lora(modules, "kohya")


def trainer_velocity(lora: Lora, given):
    from flux_atelier.trainer.draw import apply_lora

    tree = models.load_tree(models.nano().transformer).float()
    apply_lora(tree, lora)
    with torch.no_grad():
        return tree(*given)


@pytest.mark.parametrize("layout", ["kohya", "comfy", "diffusers"])
@pytest.mark.parametrize("loader", ["load_lora_for_models", "load_bypass_lora_for_models"])
def test_one_lora_gives_the_same_velocity_everywhere(layout, loader, caplog):
    import comfy.sd

    if (layout, loader) == ("diffusers", "load_bypass_lora_for_models"):
        pytest.skip("ComfyUI's bypass loader drops the slices of split keys; kohya and comfy layouts are whole there")
    lora, given, model = some_lora(), batch(), float32_model()
    state = to_layout(lora, layout, torch.float32)
    with torch.inference_mode():
        patched = getattr(comfy.sd, loader)(model, None, state, 1.0, 0)[0]
        theirs = comfy_velocity(patched, *given)
    ours = trainer_velocity(lora, given)
    plain = trainer_velocity(Lora({}, "kohya"), given)
    assert "not loaded" not in caplog.text
    assert (ours - plain).abs().max() > 0.01
    assert (ours - theirs).abs().max() <= 1e-5


def test_one_lora_gives_the_same_velocity_in_diffusers():
    from tiny import diffusers_velocity

    from flux_atelier.trainer.draw import flux_pipeline

    lora, given = some_lora(), batch()
    encoder = FileEncoder(models.nano(), torch.device("cpu"))
    pipe = flux_pipeline(models.nano(), encoder, lora, 1.0)
    latent, sigma, text, pooled, guidance = given
    with torch.no_grad():
        theirs = diffusers_velocity(pipe.transformer, latent, sigma, text, pooled, guidance)
    assert (trainer_velocity(lora, given) - theirs).abs().max() <= 1e-5


def test_both_encoders_agree(nano):
    from flux_atelier.nodes import host

    graph, files = host.GraphEncoder(*nano), FileEncoder(models.nano(), torch.device("cpu"))
    pixels = scenes.draw(scenes.draw_prompts(3, 0), 0) * 2 - 1
    assert (graph.encode_pixels(pixels) - files.encode_pixels(pixels)).abs().max() <= 2e-2
    latents = files.encode_pixels(pixels)
    assert (graph.decode(latents) - files.decode(latents)).abs().max() <= 1e-2
    for prompt in (PROMPT, "", "a zebra in a very long sentence that goes on beyond sixteen tokens for sure, and on"):
        ours, theirs = files.encode_text(prompt), graph.encode_text(prompt)
        assert ours[0].shape == theirs[0].shape
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).abs().max() <= 4e-3 * a.abs().max()


def test_a_wrong_model_is_named(nano):
    from flux_atelier.nodes import host

    class Other:
        class model:
            diffusion_model = torch.nn.Linear(2, 2)

    with pytest.raises(AtelierError, match=r"not Flux\.1"):
        host.flux_shape(Other())


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", "a/../../b", ""])
def test_names_cannot_lead_out_of_the_folders(name):
    from flux_atelier.nodes import host

    for place in (host.lora_file, host.run_folder, host.picture_folder):
        with pytest.raises(AtelierError):
            place(name)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "lokr", "loha"])
@pytest.mark.parametrize("layout", ["kohya", "comfy"])
def test_every_kind_of_adapter_is_what_comfyui_makes_of_its_file(kind, layout, caplog):
    import comfy.sd

    from flux_atelier.nodes import host

    given, model = batch(), float32_model()
    rules = "double_blocks.0.img_attn.qkv: rank=6 alpha=3\nsingle_blocks.0.*: rank=0"
    chosen = AdapterOptions(rank=4, alpha=6.0, adapter_type=kind, layer_rules=rules)
    rng = torch.Generator().manual_seed(0)
    with torch.inference_mode(), host.training(model) as view:
        for parameter in adapter.inject(view, chosen, 0):
            parameter.data += torch.randn(parameter.shape, generator=rng) * 0.05
        with torch.no_grad():
            ours = view(*(t.clone() for t in given))
        state = to_layout(Lora(adapter.layers(view), "kohya"), layout, torch.float16)
    with torch.inference_mode():
        patched = comfy.sd.load_lora_for_models(model, None, state, 1.0, 0)[0]
        theirs = comfy_velocity(patched, *given)
        plain = comfy_velocity(model, *given)
    assert "not loaded" not in caplog.text
    assert (ours - plain).norm() / plain.norm() > 0.01
    assert (ours - theirs).norm() / theirs.norm() <= 1e-3


def test_kontext_is_computed_as_comfyui_and_diffusers_do():
    from diffusers import FluxPipeline
    from tiny import diffusers_twin

    from flux_atelier.nodes import host

    latent, sigma, text, pooled, guidance = batch(1)
    reference = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(5))
    model = float32_model()
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        inner = model.model.diffusion_model
        theirs = inner(
            latent.clone(), sigma, context=text.clone(), y=pooled, guidance=guidance, ref_latents=[reference.clone()]
        )
    with host.training(model) as view, torch.no_grad():
        ours = view(latent, sigma, text, pooled, guidance, reference=reference)
    assert (ours - theirs).abs().max() <= 1e-5
    twin = diffusers_twin(models.load_tree(models.nano().transformer).float())
    packed, ids = [], []
    for index, picture in enumerate((latent, reference)):
        b, c, h, w = picture.shape
        packed.append(FluxPipeline._pack_latents(picture, b, c, h, w))
        place = FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32)
        place[:, 0] = index
        ids.append(place)
    with torch.no_grad():
        out = twin(
            hidden_states=torch.cat(packed, 1), encoder_hidden_states=text, pooled_projections=pooled, timestep=sigma,
            guidance=guidance, img_ids=torch.cat(ids), txt_ids=torch.zeros(text.shape[1], 3), return_dict=False,
        )[0][:, : packed[0].shape[1]]  # fmt: skip
    h, w = latent.shape[-2:]
    assert (FluxPipeline._unpack_latents(out, h * 8, w * 8, 8) - ours).abs().max() <= 1e-5


def test_a_lora_of_another_model_is_refused_before_anything_is_drawn():
    from flux_atelier.nodes import host

    wide = Lora({"double_blocks.0.img_attn.qkv": Factors(torch.ones(9216, 2), torch.ones(2, 3072), 2.0)}, "kohya")
    other = Lora({"input_blocks.4.1.proj_in": Factors(torch.ones(64, 2), torch.ones(2, 64), 2.0)}, "kohya", base="sdxl")
    model = float32_model()
    for lora, words in ((wide, "is 768 x 256 in the MODEL, and 9216 x 3072"), (other, "is for SDXL")):
        with pytest.raises(AtelierError, match=words):
            host.with_lora(model, to_layout(lora, "kohya", torch.float32), 1.0)
