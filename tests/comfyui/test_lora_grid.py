"""The test bench in the real ComfyUI: what is drawn, what is not drawn again, and what a cancel leaves."""

import json

import pytest
import torch
from PIL import Image

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import write_tensors

SIZE = 64


def made_lora(seed: int, module: str = "double_blocks_0_img_attn_qkv", out: int = 0, width: int = 0):
    """A random LoRA on one or two layers of nano-flux."""
    rng = torch.Generator().manual_seed(seed)
    sizes = {module: (out, width)}
    lora = {}
    for name, (rows, columns) in sizes.items():
        lora[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows, 4, generator=rng) * 0.1
        lora[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, columns, generator=rng) * 0.3
        lora[f"lora_unet_{name}.alpha"] = torch.tensor(4.0)
    return lora


@pytest.fixture(scope="module")
def loras(nano):
    """Two LoRAs: on a double block, and on a double and a single block."""
    inner = nano[0].model.diffusion_model
    qkv, linear1 = inner.double_blocks[0].img_attn.qkv, inner.single_blocks[0].linear1
    first = made_lora(1, out=qkv.out_features, width=qkv.in_features)
    other = made_lora(2, "single_blocks_0_linear1", linear1.out_features, linear1.in_features)
    return {"lora0": first, "lora1": other | made_lora(3, out=qkv.out_features, width=qkv.in_features)}


BASE = dict(
    x_axis="none", x_values="", y_axis="none", y_values="", z_axis="none", z_values="", prompts="a red house",
    strength=1.0, blocks="", seed=5, steps=2, guidance=3.5, width=SIZE, height=SIZE, sampler="euler",
    scheduler="simple", name="bench",
)  # fmt: skip


def grid(nano, loras=None, **changes):
    """Execute the node as ComfyUI does; gives its outputs."""
    from flux_atelier.nodes import lora_grid

    model, clip, vae = nano
    with torch.inference_mode():
        prepared = lora_grid.LoraGrid.PREPARE_CLASS_CLONE(None)
        return prepared.execute(model=model, clip=clip, vae=vae, loras=loras or {}, **BASE | changes).args


@pytest.fixture
def drawn(monkeypatch, nano):
    """Counts of what is sampled, encoded and patched."""
    import comfy.sample
    import comfy.sd

    counts = {"sampled": [], "encoded": [], "patched": 0}
    sample, encode, patch = (
        comfy.sample.sample,
        comfy.sd.CLIP.encode_from_tokens_scheduled,
        comfy.sd.load_lora_for_models,
    )

    def counted_sample(model, noise, steps, *args, **more):
        counts["sampled"].append(model)
        return sample(model, noise, steps, *args, **more)

    def counted_encode(self, tokens, *args, **more):
        counts["encoded"].append(tokens)
        return encode(self, tokens, *args, **more)

    def counted_patch(*args):
        counts["patched"] += 1
        return patch(*args)

    monkeypatch.setattr(comfy.sample, "sample", counted_sample)
    monkeypatch.setattr(comfy.sd.CLIP, "encode_from_tokens_scheduled", counted_encode)
    monkeypatch.setattr(comfy.sd, "load_lora_for_models", counted_patch)
    return counts


@pytest.fixture
def empty(folders):
    """No picture is kept from another test."""
    import shutil

    shutil.rmtree(folders / "output" / "flux_atelier", ignore_errors=True)
    return folders / "output" / "flux_atelier"


THREE = dict(
    x_axis="prompt", x_values="a red house\na blue tree", y_axis="strength", y_values="0..1 step 0.5", z_axis="seed",
    z_values="1, 2",
)  # fmt: skip


def test_the_first_run_draws_and_the_second_draws_nothing(nano, loras, drawn, empty):
    sheets, pictures, report = grid(nano, loras, **THREE)
    assert len(drawn["sampled"]) == 12
    assert len(drawn["encoded"]) == 2  # once for each prompt
    assert drawn["patched"] == 4  # two LoRAs at two strengths; strength 0 lays on nothing
    swaps = sum(a is not b for a, b in zip(drawn["sampled"], drawn["sampled"][1:], strict=False))
    assert swaps == 2  # each strength is laid on once, not once a prompt or seed
    assert pictures.shape == (12, SIZE, SIZE, 3)
    assert "12 cells: 12 drawn now" in report
    again, same, report = grid(nano, loras, **THREE)
    assert len(drawn["sampled"]) == 12 and len(drawn["encoded"]) == 2
    assert torch.equal(sheets, again) and torch.equal(pictures, same)
    assert "12 cells: 0 drawn now, 12 were there" in report
    assert len(list((empty / "cells").rglob("*.png"))) == 12


def test_what_is_written_says_what_was_drawn(nano, loras, empty):
    sheets, pictures, _ = grid(nano, loras, **THREE)
    table = json.loads((empty / "grids" / "bench.json").read_text())
    assert [axis["labels"] for axis in table["axes"]] == [
        ["a red house", "a blue tree"], ["strength 0", "strength 0.5", "strength 1"], ["seed 1", "seed 2"],
    ]  # fmt: skip
    assert len(table["cells"]) == 12 and len({cell["key"] for cell in table["cells"]}) == 12
    for n, cell in enumerate(table["cells"]):
        kept = Image.open(cell["file"])
        assert torch.equal(
            torch.frombuffer(bytearray(kept.tobytes()), dtype=torch.uint8), (pictures[n] * 255).round().byte().flatten()
        )
    for page, name in zip(sheets, table["sheets"], strict=True):
        assert Image.open(empty / "grids" / name).size == (page.shape[1], page.shape[0])


def test_a_cell_is_what_comfyui_draws(nano, loras, empty):
    """Beside the graph a person would build: apply the LoRA, encode, set guidance, sample, decode."""
    from flux_atelier.nodes import host

    _, pictures, _ = grid(nano, {"lora0": loras["lora0"]}, strength=0.7)
    model, clip, vae = nano
    with torch.inference_mode():
        patched = host.with_lora(model, loras["lora0"], 0.7)
        latent = host.sample(patched, host.condition(clip, "a red house", 3.5), torch.zeros(1, 16, 8, 8), 5, 2)
        expected = vae.decode(latent)[0].clamp(0, 1)
    assert (pictures[0] - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_a_changed_value_draws_only_its_cells(nano, loras, drawn, empty):
    grid(nano, loras, x_axis="seed", x_values="1, 2, 3")
    grid(nano, loras, x_axis="seed", x_values="2, 3, 4", y_axis="steps", y_values="2")
    assert len(drawn["sampled"]) == 4
    changed = {name: {k: v.clone() for k, v in lora.items()} for name, lora in loras.items()}
    changed["lora1"]["lora_unet_single_blocks_0_linear1.lora_up.weight"][0, 0] += 1e-3
    grid(nano, changed, x_axis="seed", x_values="4")
    assert len(drawn["sampled"]) == 5
    grid(nano, loras, x_axis="seed", x_values="4", sampler="heun")
    grid(nano, loras, x_axis="seed", x_values="4", scheduler="normal")
    grid(nano, loras, x_axis="seed", x_values="4", width=80)
    assert len(drawn["sampled"]) == 8


def test_what_nodes_before_have_set_on_the_model_counts(nano, drawn, empty):
    """A shift or an attention patch changes every picture and no weight."""
    model, clip, vae = nano
    shifted, patched = model.clone(), model.clone()
    sampling = type(model.get_model_object("model_sampling"))(model.model.model_config)
    sampling.set_parameters(shift=3.0)
    shifted.add_object_patch("model_sampling", sampling)

    def scaled_by(factor):
        return lambda args: args["denoised"] * factor

    patched.set_model_sampler_post_cfg_function(scaled_by(0.9))
    weaker = model.clone()
    weaker.set_model_sampler_post_cfg_function(scaled_by(0.8))
    for wanted, changed in enumerate((model, shifted, patched, weaker), 1):
        for _ in range(2):
            grid((changed, clip, vae))
        assert len(drawn["sampled"]) == wanted


def test_a_damaged_picture_is_drawn_again_and_alone(nano, loras, drawn, empty):
    _, pictures, _ = grid(nano, loras, x_axis="seed", x_values="1..3")
    files = [cell["file"] for cell in json.loads((empty / "grids" / "bench.json").read_text())["cells"]]
    with open(files[1], "r+b") as opened:
        opened.truncate(200)
    _, again, report = grid(nano, loras, x_axis="seed", x_values="1..3")
    assert len(drawn["sampled"]) == 4 and "1 drawn now" in report
    assert torch.equal(pictures, again)


def test_cancel_keeps_what_is_drawn_and_the_next_run_goes_on(nano, loras, drawn, empty, monkeypatch):
    import comfy.model_management as memory

    from flux_atelier.nodes import host

    original = host.Progress.at

    def cancel_after_five(self, value, picture=None):
        if value == 5:
            memory.interrupt_current_processing()
        original(self, value, picture)

    monkeypatch.setattr(host.Progress, "at", cancel_after_five)
    with pytest.raises(memory.InterruptProcessingException):
        grid(nano, loras, **THREE)
    assert len(drawn["sampled"]) == 5
    table = json.loads((empty / "grids" / "bench.json").read_text())
    assert sum(cell["file"] is not None for cell in table["cells"]) == 5
    assert (empty / "grids" / "bench-1.png").is_file()
    monkeypatch.setattr(host.Progress, "at", original)
    _, resumed, report = grid(nano, loras, **THREE)
    assert len(drawn["sampled"]) == 12 and "7 drawn now" in report
    import shutil

    shutil.rmtree(empty)
    assert torch.equal(grid(nano, loras, **THREE)[1], resumed)


def test_cancel_in_the_middle_of_sampling_stops_at_once(nano, loras, drawn, empty, monkeypatch):
    import comfy.model_management as memory

    from flux_atelier.nodes.host import cells

    calls = []

    def cancel_at_step_three():
        calls.append(0)
        if len(calls) == 3:
            memory.interrupt_current_processing()
        memory.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(cells, "check_cancel", cancel_at_step_three)
    with pytest.raises(memory.InterruptProcessingException):
        grid(nano, loras, x_axis="seed", x_values="1..3")
    assert len(list((empty / "cells").rglob("*.png"))) == 1


def test_loras_come_by_socket_and_by_file(nano, loras, drawn, empty, folders):
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(folders / "loras"))
    (folders / "loras" / "sub").mkdir(parents=True)
    write_tensors(folders / "loras" / "sub" / "one.safetensors", loras["lora0"])
    values = "none\nlora0\nsub/one.safetensors\nsub/one=0.5 + lora1\n"
    _, pictures, _ = grid(nano, loras, x_axis="lora", x_values=values)
    base, socket, file, both = pictures
    assert torch.equal(socket, file)
    assert not torch.equal(base, socket) and not torch.equal(both, socket)
    labels = json.loads((empty / "grids" / "bench.json").read_text())["axes"][0]["labels"]
    assert labels == ["no LoRA", "lora0", "sub/one", "sub/one=0.5 + lora1"]


def test_an_empty_lora_axis_takes_each_socket(nano, loras, empty):
    _, each, _ = grid(nano, loras, x_axis="lora")
    _, first, _ = grid(nano, {"lora0": loras["lora0"]})
    assert len(each) == 2 and torch.equal(each[0], first[0])


def test_block_weights_are_laid_on(nano, loras, drawn, empty):
    lora = {"lora0": loras["lora1"]}
    _, pictures, _ = grid(nano, lora, x_axis="blocks", x_values="all\ndouble = 0\nsingle = 0, double = 0\ndouble = 1")
    whole, single, nothing, also = pictures
    only = {k: v for k, v in loras["lora1"].items() if "single" in k}
    assert torch.equal(single, grid(nano, {"lora0": only})[1][0])
    assert torch.equal(nothing, grid(nano)[1][0])
    assert torch.equal(whole, also)
    assert not torch.equal(whole, single)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(x_axis="strength", x_values="", y_axis="none"), "has no values"),
        (dict(x_axis="seed", x_values="1", y_axis="seed", y_values="2"), "Two axes are seed"),
        (dict(x_axis="seed", x_values="1..401"), "401 x 1 x 1 = 401 cells|a wider step"),
        (dict(x_axis="seed", x_values="1..30", y_axis="steps", y_values="1..30"), "= 900 cells"),
        (dict(x_axis="strength", x_values="0, a"), "no number"),
        (dict(prompts="one\ntwo"), "2 prompts and no axis is prompt"),
        (dict(prompts=" \n"), "no prompt"),
        (dict(x_axis="lora", x_values="lora0\nlora7"), "names lora7, but the connected LoRAs are lora0, lora1"),
        (dict(x_axis="lora", x_values="nowhere.safetensors"), "no LoRA nowhere.safetensors"),
        (dict(x_axis="lora", x_values="../../secret"), "no LoRA"),
        (dict(x_axis="blocks", x_values="triple.3 = 1"), "triple.3"),
        (dict(name="../out"), "leads out of"),
        (dict(name=" "), "Give the grid a name"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_is(nano, loras, drawn, empty, changes, words):
    with pytest.raises(AtelierError, match=words):
        grid(nano, loras, **changes)
    assert not drawn["sampled"] and not empty.exists()


def test_axes_of_a_lora_need_one(nano, drawn, empty):
    with pytest.raises(AtelierError, match="An axis is strength, but there is no LoRA"):
        grid(nano, x_axis="strength", x_values="1, 2")


def test_a_lora_of_another_model_is_told(nano, drawn, empty):
    alien = {"lora0": {f"lora_te1_x.lora_{part}.weight": torch.ones(4, 4) for part in ("up", "down")}}
    with pytest.raises(AtelierError, match="no LoRA layer of Flux"):
        grid(nano, alien)


def test_wrong_values_are_told_before_the_queue_starts(comfyui):
    from flux_atelier.nodes.lora_grid import LoraGrid

    names = ("name", "x_axis", "x_values", "y_axis", "y_values", "z_axis", "z_values", "prompts", "blocks")
    given = {name: BASE[name] for name in names}
    assert LoraGrid.validate_inputs(**given) is True
    assert LoraGrid.validate_inputs(**given, loras={"lora0": None}) is True  # as the server calls it
    assert LoraGrid.validate_inputs(**given | {"x_axis": "lora", "x_values": "lora3"}) is True  # sockets are not known
    assert LoraGrid.validate_inputs(**given | {"x_axis": "strength", "x_values": None}) is True  # comes by wire
    for some in ({"lora0": None}, {"lora0": None, "lora1": None}):
        told = LoraGrid.validate_inputs(**given | {"x_axis": "lora", "x_values": "lora3"}, loras=some)
        assert f"names lora3, but the connected LoRAs are {', '.join(some)}." in told
    assert "no LoRA" in LoraGrid.validate_inputs(**given | {"x_axis": "strength", "x_values": "0, 1"}, loras={})
    assert LoraGrid.validate_inputs(**given, width=64, height=None) is True
    for wrong in (65, 48, 5000):
        for side in ("width", "height"):
            told = LoraGrid.validate_inputs(**given, **{side: wrong})
            assert told == f"The {side} is {wrong}. Choose a multiple of 16, 64 to 4096."
    assert "no values" in LoraGrid.validate_inputs(**given | {"x_axis": "seed"})
    assert "leads out of" in LoraGrid.validate_inputs(**given | {"name": "../x"})


def test_a_changed_file_is_noticed_by_the_executor(nano, loras, folders):
    import folder_paths

    from flux_atelier.nodes.lora_grid import LoraGrid

    folder_paths.add_model_folder_path("loras", str(folders / "loras"))
    path = folders / "loras" / "changing.safetensors"
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, loras["lora0"])
    given = BASE | {"x_axis": "lora", "x_values": "changing\nlora0"}
    before = LoraGrid.fingerprint_inputs(**given)
    assert before and LoraGrid.fingerprint_inputs(**given) == before
    write_tensors(path, loras["lora1"])
    assert LoraGrid.fingerprint_inputs(**given) != before
