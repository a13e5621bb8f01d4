"""The analysis nodes in ComfyUI, on nano-flux: figures, pictures, parts, and what blocks do to the output."""

import json

import pytest
import torch
from test_host import batch, comfy_velocity, some_lora

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.blocks import parse_weights
from flux_atelier.core.lora.formats import to_layout
from flux_atelier.core.lora.record import Lora

DRAW = dict(seed=0, steps=2, guidance=3.5, width=64, height=64)


def run(node, **inputs):
    """Execute a node as ComfyUI does."""
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**inputs)


@pytest.fixture(scope="module")
def lora():
    with torch.inference_mode():
        return to_layout(some_lora(), "kohya", torch.float32)


def velocity_of(model, tensors, given):
    from flux_atelier.nodes import host

    with torch.inference_mode():
        return comfy_velocity(host.with_lora(model, dict(tensors), 1.0), *given)


def test_analyse_writes_a_page_and_tells_norms_relative_to_the_model(nano, lora, folders):
    from flux_atelier.nodes import analysis

    heat, spectra, report = run(analysis.AnalyseLora, lora=lora, name="one", model=nano[0]).args
    assert heat.shape[0] == spectra.shape[0] == 1
    folder = folders / "output" / "flux_atelier" / "analysis" / "one"
    assert report.endswith(str(folder / "index.html"))
    figures = json.loads((folder / "figures.json").read_text())["layers"]
    weights = dict(nano[0].model.diffusion_model.named_parameters())
    assert len(figures) == len(some_lora().modules)
    for row in figures:
        wanted = weights[f"{row['module']}.weight"].float().norm().item()
        assert row["base_norm"] == pytest.approx(wanted, rel=1e-3)
    assert "relative" in (folder / "layers.csv").read_text()


@pytest.mark.parametrize("name", ["../x", "..", ""])
def test_a_name_cannot_lead_out(comfyui, name):
    from flux_atelier.nodes import analysis

    assert isinstance(analysis.AnalyseLora.validate_inputs(name), str)
    assert analysis.AnalyseLora.validate_inputs("fine") is True


def test_similarity_of_a_lora_with_itself(lora, folders):
    from flux_atelier.nodes import analysis

    other = to_layout(some_lora(1), "kohya", torch.float32)
    image, report = run(
        analysis.LoraSimilarity, loras={"lora0": lora, "lora1": lora, "lora2": other}, names="mine", name="s", seed=0
    ).args
    assert image.shape[0] == 1
    found = json.loads((folders / "output" / "flux_atelier" / "analysis" / "s" / "similarity.json").read_text())
    assert found["names"] == ["mine", "lora1", "lora2"]
    assert found["cosine"][0][1] == pytest.approx(1)
    assert abs(found["cosine"][0][2]) < 0.5
    assert "mine and lora1: cosine 1.0000" in report


def test_velocities_are_what_the_model_puts_out(nano):
    from flux_atelier.nodes import host
    from flux_atelier.nodes.host.velocity import velocities

    model, clip, _ = nano
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = host.condition(clip, "a red circle", 3.5)
    with torch.inference_mode():
        found = velocities(model, condition, latent, 3, [0.9, 0.5])
        import comfy.sample

        noise = comfy.sample.prepare_noise(latent, 3)
        clean = model.model.process_latent_in(latent)
        text, extra = condition[0]
        for one, sigma in zip(found, (0.9, 0.5), strict=True):
            noisy = sigma * noise + (1 - sigma) * clean
            wanted = comfy_velocity(
                model, noisy, torch.tensor([sigma]), text, extra["pooled_output"], torch.tensor([3.5])
            )
            assert (one - wanted.float()).abs().max() <= 1e-2 * wanted.abs().max()


def test_importance_gives_block_weights_and_a_block_that_does_nothing_gets_none(nano, lora):
    from flux_atelier.nodes import analysis

    model, clip, _ = nano
    silent = {k: (v * 0 if "single_blocks_2" in k and "up" in k else v) for k, v in lora.items()}
    heat, weights, report = run(
        analysis.LoraImportance, model=model, clip=clip, lora=silent, prompts="a red circle\na blue square",
        sigmas="0.9, 0.4", way="without", least=0.01, **DRAW,
    ).args  # fmt: skip
    assert heat.shape[0] == 1
    read = parse_weights(weights)
    assert read.of("single_blocks.2.linear2") == 0
    assert read.of("double_blocks.0.img_attn.qkv") == 1
    assert report.splitlines()[-1] == "single.2: 0.00%"
    assert not report.splitlines()[1].endswith(" 0.00%")


def test_nodes_show_their_report_under_their_pictures(nano, lora, folders):
    from flux_atelier.nodes import analysis, lora_parts

    model, clip, vae = nano
    drawn = dict(model=model, clip=clip, lora=lora)
    found = [
        run(analysis.AnalyseLora, lora=lora, name="shown"),
        run(analysis.LoraSimilarity, loras={"lora0": lora, "lora1": lora}, names="", name="shown", seed=0),
        run(analysis.LoraImportance, **drawn, prompts="a", sigmas="0.5", way="alone", least=0.1, **DRAW),
    ]
    strip = run(
        lora_parts.DirectionStrip, **drawn, vae=vae, by="direction", part=2, strengths="1", rest=0.5, prompt="a", **DRAW
    )
    for output, pictures in zip(found, (2, 1, 1), strict=True):
        assert output.ui["text"] == [output.args[-1]]
        assert len(output.ui["images"]) == pictures
        assert all(one["type"] == "temp" for one in output.ui["images"])
    assert strip.ui["text"][0].startswith("direction 2 of 4, ")
    assert strip.ui["text"][0].endswith("all other parts at 0.5")


def test_a_lora_that_does_not_fit_the_model_is_told(nano, lora, folders):
    from flux_atelier.nodes import analysis

    key = "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"
    wide = dict(lora) | {key: torch.cat([lora[key], lora[key]], 1)}
    with pytest.raises(
        AtelierError, match=r"double_blocks\.0\.img_attn\.qkv is \d+ x \d+ in The MODEL, and \d+ x \d+ in"
    ):
        run(analysis.AnalyseLora, lora=wide, name="misfit", model=nano[0])
    assert not (folders / "output" / "flux_atelier" / "analysis" / "misfit").exists()


def test_wrong_text_is_told_before_the_queue(comfyui):
    from flux_atelier.nodes import analysis, lora_parts

    assert "noise level is 1.5" in analysis.LoraImportance.validate_inputs("0.5, 1.5")
    assert "width is 65" in analysis.LoraImportance.validate_inputs("0.5", width=65)
    assert "height is 65" in lora_parts.DirectionStrip.validate_inputs("1", height=65)
    assert "no numbers" in lora_parts.DirectionStrip.validate_inputs("a")
    assert "no part" in lora_parts.SplitLora.validate_inputs("one")
    assert lora_parts.SplitLora.validate_inputs("-1") is True
    assert lora_parts.SplitLora.validate_inputs(None) is True


def test_split_halves_do_together_what_the_lora_does(nano, lora):
    from flux_atelier.nodes import host, lora_parts

    given = batch()
    one, rest, report = run(lora_parts.SplitLora, lora=lora, by="direction", parts="1-2").args
    assert report.startswith("2 of 4 parts are on")
    with torch.inference_mode():
        both = host.with_lora(nano[0], dict(rest), 1.0)
    whole, together = velocity_of(nano[0], lora, given), velocity_of(both, one, given)
    assert (whole - together).abs().max() <= 2e-2 * whole.abs().max()
    assert (whole - velocity_of(nano[0], one, given)).abs().max() > 5e-2 * whole.abs().max()


def test_shared_with_itself_is_all(lora):
    from flux_atelier.nodes import lora_parts

    shared, private, report = run(lora_parts.SharedPart, lora=lora, others={"other0": lora}, energy=1.0).args
    assert report.startswith("100.00% of the energy is shared")
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    delta = [
        t[f"{key}.lora_up.weight"] @ t[f"{key}.lora_down.weight"] * (t[f"{key}.alpha"] / len(t[f"{key}.lora_down.weight"]))
        for t in (shared, lora, private)
    ]  # fmt: skip
    assert (delta[0] - delta[1]).norm() <= 1e-5 * delta[1].norm()
    assert delta[2].norm() <= 1e-5 * delta[1].norm()


def test_a_strip_is_the_base_in_the_middle_and_a_row_for_each_prompt(nano, lora):
    from flux_atelier.nodes import lora_parts

    model, clip, vae = nano
    strip, pictures = run(
        lora_parts.DirectionStrip, model=model, clip=clip, vae=vae, lora=lora, by="direction", part=1,
        strengths="-1, 0, 1", rest=0.0, prompt="a red circle\na blue square", **DRAW,
    ).args  # fmt: skip
    assert strip.shape[0] == 1
    assert pictures.shape == (6, 64, 64, 3)
    from flux_atelier.nodes import host

    with torch.inference_mode():
        latent = host.sample(model, host.condition(clip, "a red circle", 3.5), torch.zeros(1, 16, 8, 8), 0, 2)
        base = vae.decode(latent)[0].float()
    assert torch.equal(pictures[1], base)
    assert (pictures[0] - base).abs().max() > 0.01
    assert (pictures[2] - base).abs().max() > 0.01


def test_a_part_that_is_not_there_is_told(nano, lora):
    from flux_atelier.nodes import lora_parts

    with pytest.raises(AtelierError, match="parts 1 to 4"):
        run(
            lora_parts.DirectionStrip, model=nano[0], clip=nano[1], vae=nano[2], lora=lora, by="direction", part=9,
            strengths="1", rest=0.0, prompt="a", **DRAW,
        )  # fmt: skip


def test_headers_travel_through_a_split(lora):
    from flux_atelier.nodes import lora_parts
    from flux_atelier.nodes.wire import to_wire

    with torch.inference_mode():
        wired = to_wire(Lora(some_lora().modules, "kohya", {"modelspec.trigger_phrase": "ohwx"}))
    one = run(lora_parts.SplitLora, lora=wired, by="direction", parts="1").args[0]
    assert one.metadata["modelspec.trigger_phrase"] == "ohwx"
