"""Extracting and baking in the real ComfyUI: its own loaders and its own LoRA application are what decides."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_extract import layers_of_every_kind, normal
from test_host import batch, comfy_velocity, float32_model, some_lora
from test_nodes import run

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import read_tensors, write_tensors
from flux_atelier.core.flux.checkpoint import read
from flux_atelier.core.lora.bake import BakeOptions, bake
from flux_atelier.core.lora.extract import ExtractOptions, extract
from flux_atelier.core.lora.factors import Factors
from flux_atelier.core.lora.formats import read_lora, to_layout
from flux_atelier.core.lora.record import Lora
from flux_atelier.trainer.nano import files

QKV = "double_blocks.0.img_attn.qkv"


def apart(ours, theirs) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.fixture(scope="module")
def models(folders):
    """A folder of ComfyUI's diffusion models with nano-flux in bf16 and in scaled fp8."""
    import folder_paths

    for kind in ("diffusion_models", "checkpoints"):
        folder = folders / "output" / kind
        folder.mkdir(exist_ok=True)
        folder_paths.add_model_folder_path(kind, str(folder))
    folder = folders / "output" / "diffusion_models"
    state = {k: v.bfloat16() for k, v in read_tensors(files.TRANSFORMER)[0].items()}
    write_tensors(folder / "nano-bf16.safetensors", state)
    nothing = Lora({QKV: layer_of_zeros()}, "kohya")
    list(
        bake(
            folder / "nano-bf16.safetensors", folder / "nano-fp8.safetensors", nothing, options=BakeOptions(dtype="fp8")
        )
    )
    return folder


def layer_of_zeros():
    return Factors(torch.zeros(768, 1), torch.zeros(1, 256), 1.0)


def load(path, **options):
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(path), model_options=options)


def with_lora(model, tensors, strength=1.0):
    """ComfyUI's own loader of LoRAs."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)[0]


def wire(lora):
    return to_layout(lora, "kohya", torch.float32)


def test_baked_in_bf16_it_moves_as_base_and_lora_do(models):
    from flux_atelier.nodes import checkpoints

    lora = some_lora()
    name, report = run(
        checkpoints.BakeLora, checkpoint="nano-bf16.safetensors", lora=wire(lora), strength=0.7, block_weights="",
        dtype="same", name="moved",
    ).args  # fmt: skip
    assert name == "moved.safetensors"
    assert "8 layers" in report
    given = batch()
    base = comfy_velocity(load(models / "nano-bf16.safetensors", dtype=torch.float32), *given)
    theirs = comfy_velocity(
        with_lora(load(models / "nano-bf16.safetensors", dtype=torch.float32), wire(lora), 0.7), *given
    )
    ours = comfy_velocity(load(models / name, dtype=torch.float32), *given)
    assert apart(base, theirs) > 0.05
    assert apart(ours, theirs) < 0.01
    # In bfloat16 the file is what ComfyUI's patches come to, but for its dithered rounding.
    state = read_tensors(models / name)[0]
    patched = with_lora(load(models / "nano-bf16.safetensors", dtype=torch.bfloat16), wire(lora), 0.7)
    with torch.inference_mode():
        for module in lora.modules:
            key = f"diffusion_model.{module}.weight"
            theirs = patched.patch_weight_to_device(key, torch.device("cpu"), return_weight=True)
            assert apart(state[f"{module}.weight"].float(), theirs.float()) < 0.004


@pytest.mark.parametrize("kind", ["DoRA of ComfyUI", "LoKr", "LoHa", "difference", "OFT", "BOFT"])
def test_every_kind_is_baked_as_comfyui_applies_it(models, tmp_path, kind):
    """One weight of every kind, in float32: ComfyUI's own calculation beside ours.

    Rotations at strength 1: at others ComfyUI multiplies by the strength twice, LyCORIS and we once.
    """
    strength = 1.0 if "OFT" in kind else 0.6
    import comfy.lora
    import comfy.lora_convert

    weight = normal(64, 48, seed=30)
    state = {
        "img_in.weight": weight, "txt_in.weight": torch.ones(64, 8), "vector_in.in_layer.weight": torch.ones(64, 8),
        "double_blocks.0.img_mlp.0.weight": torch.ones(256, 64),
    }  # fmt: skip
    lora = Lora({"img_in": layers_of_every_kind()[kind]}, "kohya")
    source, out = write_tensors(tmp_path / "b.safetensors", state), tmp_path / "o.safetensors"
    list(bake(source, out, lora, options=BakeOptions(strength=strength)))
    key = "diffusion_model.img_in.weight"
    tensors = comfy.lora_convert.convert_lora(wire(lora))
    patches = comfy.lora.load_lora(tensors, {"lora_unet_img_in": key, "diffusion_model.img_in": key})
    theirs = comfy.lora.calculate_weight([(strength, patches[key], 1.0, None, None)], weight.clone(), key)
    assert apart(read_tensors(out)[0]["img_in.weight"], theirs) < 1e-5


def test_baked_in_scaled_fp8_comfyui_reads_the_scales(models):
    lora, out = some_lora(), models / "packed.safetensors"
    list(bake(models / "nano-bf16.safetensors", out, lora, options=BakeOptions(dtype="fp8")))
    given = batch()
    theirs = comfy_velocity(with_lora(float32_model(), wire(lora)), *given)
    ours = comfy_velocity(load(out), *given)
    assert ours.isfinite().all()
    assert apart(ours.float(), theirs) < 0.15  # fp8 itself; without its scales it would be above 1


@pytest.mark.parametrize("file", ["nano-bf16.safetensors", "nano-fp8.safetensors"])
def test_a_models_weights_are_read_with_its_patches_and_left_alone(models, file):
    from flux_atelier.core.flux.checkpoint import Checkpoint
    from flux_atelier.core.tensor_stream import open_tensors
    from flux_atelier.nodes.host.weights import ModelWeights

    lora, model = some_lora(), load(models / file, **({"dtype": torch.bfloat16} if "bf16" in file else {}))
    patched = with_lora(model, wire(lora), 0.5)
    comfy_velocity(patched, *(v.bfloat16() for v in batch()))  # its patches are in the weights now
    base, tuned = ModelWeights(model, "base"), ModelWeights(patched, "tuned")
    assert base.precision == ("BF16" if "bf16" in file else "float8_e4m3fn")
    with open_tensors(models / file) as opened:
        checkpoint = Checkpoint(opened)
        assert base.shapes == checkpoint.shapes
        for name in base.shapes:
            held = read(checkpoint, name)
            assert torch.equal(read(base, name), held)
            layer = lora.modules.get(name.removesuffix(".weight"))
            expected = held if layer is None else held + 0.5 * layer.delta()
            assert torch.allclose(read(tuned, name), expected, atol=1e-6)


def test_the_lora_of_a_graph_comes_out_again(models):
    from flux_atelier.nodes import checkpoints

    lora = some_lora()
    model = load(models / "nano-bf16.safetensors")
    made, name, report = run(
        checkpoints.ExtractLora, model_tuned=with_lora(model, wire(lora), 0.5), model_base=model, rank=4, energy=0.0,
        method="exact", layers="", name="out",
    ).args  # fmt: skip
    written = read_lora(models.parent / "loras" / name)
    assert set(written.modules) == set(lora.modules)
    assert "8 layers, rank 4" in report
    for module, layer in lora.modules.items():
        assert apart(made[f"lora_unet_{module.replace('.', '_')}.lora_up.weight"] @ made[
            f"lora_unet_{module.replace('.', '_')}.lora_down.weight"], 0.5 * layer.delta()) < 1e-4  # fmt: skip
        assert apart(written.modules[module].delta(), 0.5 * layer.delta()) < 2e-3
    given = batch()
    theirs = comfy_velocity(with_lora(float32_model(), wire(lora), 0.5), *given)
    assert apart(comfy_velocity(with_lora(float32_model(), made), *given), theirs) < 1e-3


def test_two_files_give_the_lora_that_was_baked(models):
    from flux_atelier.nodes import checkpoints

    lora = some_lora()
    run(
        checkpoints.BakeLora, checkpoint="nano-bf16.safetensors", lora=wire(lora), strength=1.0, block_weights="single = 0",
        dtype="fp32", name="exact",
    )  # fmt: skip
    made, _, report = run(
        checkpoints.ExtractLoraFromFiles, tuned_file="exact.safetensors", base_file="nano-bf16.safetensors", rank=4, energy=0.0,
        method="fast", layers="double", name="files",
    ).args  # fmt: skip
    assert "exact.safetensors is in F32 and nano-bf16.safetensors in BF16" in report
    key = f"lora_unet_{QKV.replace('.', '_')}"
    delta = made[f"{key}.lora_up.weight"] @ made[f"{key}.lora_down.weight"]
    assert apart(delta, lora.modules[QKV].delta()) < 1e-4
    assert not any("single" in k for k in made)


def test_a_dora_becomes_plain_with_its_base(models):
    from flux_atelier.nodes import checkpoints

    model = load(models / "nano-bf16.safetensors")
    plain = some_lora().modules[QKV]
    norms = read_tensors(models / "nano-bf16.safetensors")[0][f"{QKV}.weight"].float().norm(dim=1) * 1.1
    dora = wire(Lora({QKV: replace(plain, dora_scale=norms)}, "kohya"))
    options = {"rank": 256, "energy": 0.0, "method": "exact", "layers": "", "name": "plain"}
    with pytest.raises(AtelierError, match="base model is needed"):
        run(checkpoints.ConvertToLora, lora=dora, **options)
    made = run(checkpoints.ConvertToLora, lora=dora, model_base=model, **options).args[0]
    given = batch()
    theirs = comfy_velocity(with_lora(load(models / "nano-bf16.safetensors", dtype=torch.float32), dora), *given)
    ours = comfy_velocity(with_lora(load(models / "nano-bf16.safetensors", dtype=torch.float32), made), *given)
    base = comfy_velocity(load(models / "nano-bf16.safetensors", dtype=torch.float32), *given)
    assert apart(base, theirs) > 1e-3
    assert apart(ours, theirs) < 1e-4


def test_out_of_the_file_it_came_into(models):
    from flux_atelier.nodes import checkpoints

    lora = wire(some_lora())
    run(
        checkpoints.BakeLora, checkpoint="nano-bf16.safetensors", lora=lora, strength=0.7, block_weights="", dtype="same",
        name="in",
    )  # fmt: skip
    options = {"anyway": False, "strength": 1.0, "block_weights": "", "name": "out"}
    name, report = run(
        checkpoints.UnbakeLora, checkpoint="in.safetensors", lora=lora, base_file="nano-bf16.safetensors", **options
    ).args
    assert "beside the base" in report
    ours, theirs = (read_tensors(models / n)[0] for n in (name, "nano-bf16.safetensors"))
    assert all(apart(ours[k].float(), theirs[k].float()) < 0.005 for k in theirs)
    with pytest.raises(AtelierError, match="does not say that a LoRA is in it"):
        run(checkpoints.UnbakeLora, checkpoint="nano-bf16.safetensors", lora=lora, base_file="none", **options)


def test_a_cancel_leaves_no_file(models):
    import comfy.model_management as memory

    from flux_atelier.nodes import checkpoints, host

    original, seen = host.Progress.at, []

    def cancel(self, value, picture=None):
        if value == 20 and not seen:
            seen.append(value)
            memory.interrupt_current_processing()
        original(self, value, picture)

    host.Progress.at = cancel
    try:
        with pytest.raises(memory.InterruptProcessingException):
            run(
                checkpoints.BakeLora, checkpoint="nano-bf16.safetensors", lora=wire(some_lora()), strength=1.0,
                block_weights="", dtype="same", name="cancelled",
            )  # fmt: skip
    finally:
        host.Progress.at = original
    assert seen
    assert not [p for p in models.iterdir() if "cancelled" in p.name]


def test_files_are_listed_and_names_stay_inside(models):
    from flux_atelier.nodes import checkpoints
    from flux_atelier.nodes.host.weights import checkpoint_file, checkpoint_names, checkpoint_path

    (models / "small.gguf").write_bytes(b"x")
    (models / "old.ckpt").write_bytes(b"x")
    bundle = models.parent / "checkpoints" / "bundle.safetensors"
    write_tensors(bundle, {"a": torch.ones(1)})
    names = checkpoint_names()
    assert {"nano-bf16.safetensors", "small.gguf", "bundle.safetensors"} <= set(names)
    assert "old.ckpt" not in names
    assert checkpoint_path("bundle.safetensors") == bundle
    assert checkpoint_file("x", "bundle.safetensors").parent == bundle.parent
    assert checkpoint_file("x", "nano-bf16.safetensors").parent == models
    with pytest.raises(AtelierError, match="no model file"):
        checkpoint_path("gone.safetensors")
    for name, words in (("../x", "leads out"), (" ", "Give the model a name")):
        assert words in checkpoints.BakeLora.validate_inputs(name, "")
        assert words in checkpoints.UnbakeLora.validate_inputs(name, "")
    assert "no entry" in checkpoints.BakeLora.validate_inputs("x", "nonsense")
    assert checkpoints.BakeLora.validate_inputs("x", "single = 0.5") is True
    assert "no Flux.1 model has" in checkpoints.ExtractLora.validate_inputs("x", "sinlge")
    for node in (checkpoints.BakeLora, checkpoints.UnbakeLora):
        assert node.validate_inputs("x", "single.40 = 0") is True  # of Flux.2
    for node in (checkpoints.ExtractLora, checkpoints.ExtractLoraFromFiles):
        assert node.validate_inputs("x", "single.40") is True
    assert checkpoints.ExtractLora.validate_inputs("x", "single.7-20, attention") is True


def test_linked_models_and_folders_are_used(models, tmp_path, monkeypatch):
    import folder_paths

    from flux_atelier.nodes import host
    from flux_atelier.nodes.host.weights import checkpoint_file, checkpoint_names, checkpoint_path

    store = tmp_path / "store"
    store.mkdir()
    target = write_tensors(store / "kept.safetensors", {"a": torch.ones(1)})
    output = tmp_path / "output"
    (output / "diffusion_models").mkdir(parents=True)
    (output / "loras").symlink_to(store)
    (output / "diffusion_models" / "linked.safetensors").symlink_to(target)
    (output / "diffusion_models" / "disk").symlink_to(store)
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda _: [str(output / "diffusion_models")])
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(output))
    assert {"linked.safetensors", "disk/kept.safetensors"} <= set(checkpoint_names())
    for name in ("linked.safetensors", "disk/kept.safetensors"):
        assert checkpoint_path(name) == output / "diffusion_models" / name
        assert checkpoint_path(name).samefile(target)
    assert checkpoint_file("disk/x") == output / "diffusion_models" / "disk" / "x.safetensors"
    assert host.lora_file("sub/x") == output / "loras" / "sub" / "x.safetensors"
    assert host.lora_name_of(host.lora_file("sub/x")) == "sub/x.safetensors"
    for name in ("../x", "disk/../../x", str(store / "x"), "/etc/x"):
        for place in (host.lora_file, checkpoint_file, host.run_folder):
            with pytest.raises(AtelierError, match="leads out"):
                place(name)
    with pytest.raises(AtelierError, match="leads out"):
        checkpoint_path(str(target))
    with pytest.raises(AtelierError, match="leads out"):
        checkpoint_path("../../store/kept.safetensors")


def test_a_picture_folder_is_found_only_where_it_really_lies(folders, tmp_path):
    from flux_atelier.nodes import host

    (tmp_path / "pictures").mkdir()
    link = folders / "input" / "away"
    link.symlink_to(tmp_path / "pictures")
    try:
        for name in ("away", str(link), str(tmp_path / "pictures")):
            with pytest.raises(AtelierError, match="no folder"):
                host.picture_folder(name)
    finally:
        link.unlink()


def test_names_in_subfolders_are_those_of_the_lists(models):
    from flux_atelier.nodes import checkpoints

    lora = wire(some_lora())
    name = run(
        checkpoints.BakeLora, checkpoint="nano-bf16.safetensors", lora=lora, strength=1.0, block_weights="",
        dtype="same", name="sub/baked",
    ).args[0]  # fmt: skip
    assert name == "sub/baked.safetensors"
    options = dict(rank=2, energy=0.0, method="exact", layers="single", name="sub/plain")
    assert run(checkpoints.ConvertToLora, lora=lora, **options).args[1] == "sub/plain.safetensors"


def test_a_model_that_shows_no_weights_is_told(models):
    from flux_atelier.nodes.host.weights import ModelWeights

    model = load(models / "nano-bf16.safetensors").clone()
    model.injections["bypass_lora"] = []
    with pytest.raises(AtelierError, match="bypass mode"):
        ModelWeights(model, "model_tuned")


def test_models_that_are_the_same_do_not_differ(models):
    from flux_atelier.nodes.host.weights import ModelWeights

    model = load(models / "nano-bf16.safetensors")
    with pytest.raises(AtelierError, match="one and other do not differ"):
        list(extract(ModelWeights(model, "one"), ModelWeights(model, "other"), ExtractOptions()))


def test_every_node_tells_its_inputs():
    from flux_atelier.nodes import checkpoints

    docs = Path(__file__).parents[2] / "web" / "docs"
    for node in checkpoints.NODES:
        schema = node.GET_SCHEMA()
        text = (docs / f"{schema.node_id}.md").read_text()
        assert all(f"`{item.id}`" in text and item.tooltip for item in schema.inputs)
