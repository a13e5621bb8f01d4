"""Models in folders: each family beside transformers' own way, batches beside single pictures, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import tiny_captioners
import torch
from PIL import Image

from flux_atelier.core.errors import AtelierError
from flux_atelier.trainer.captioners.chat import ChatTexts
from flux_atelier.trainer.captioners.families import read_family
from flux_atelier.trainer.captioners.options import VisionOptions
from flux_atelier.trainer.captioners.processors import StillProcessor, load_processor
from flux_atelier.trainer.captioners.prompts import Ask
from flux_atelier.trainer.captioners.vision import VisionCaptioner

CPU = torch.device("cpu")
PROTOCOLS = {
    "llava": "chat", "qwen3_vl": "chat", "internvl": "chat", "florence2": "task", "blip-2": "prefix", "blip": "prefix",
    "git": "prefix",
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name: str):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny_captioners.FAMILIES[name](made[name])
        return made[name]

    return folder


def pictures(count: int = 8) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray((rng.random((20 + 9 * i, 60 - 5 * i, 3)) * (80 + 20 * i)).astype("uint8")) for i in range(count)
    ]


def open_captioner(folder, **options) -> VisionCaptioner:
    return VisionCaptioner(folder, VisionOptions(max_tokens=12, **options), CPU)


def asks_for(captioner: VisionCaptioner) -> list[Ask]:
    """Eight different asks where the family takes them, two turns where it takes turns."""
    if captioner.family.protocol == "task":
        return [Ask((captioner.prompt,))] * 8
    texts = ["describe" + " the image" * (i % 3) for i in range(8)]
    if captioner.family.protocol == "prefix":
        return [Ask((text,)) for text in texts]
    return [Ask((text, "and in detail"), "you see") for text in texts]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_batch_of_eight_is_eight_batches_of_one(name, folders):
    captioner = open_captioner(folders(name))
    assert captioner.family.protocol == PROTOCOLS[name]
    asks = asks_for(captioner)
    together = captioner.caption(pictures(), asks)
    alone = [captioner.caption([p], [ask])[0] for p, ask in zip(pictures(), asks, strict=True)]
    assert together == alone
    assert len(set(together)) >= 3  # a captioner that does not look could not fail above


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "internvl"])
def test_chat_answers_are_those_of_transformers_own_way(name, folders):
    import transformers

    folder = folders(name)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    captioner = open_captioner(folder)
    for picture in pictures(3):
        asked = {"type": "text", "text": "the image"}
        said = [{"role": "user", "content": [{"type": "image", "image": picture}, asked]}]
        first = _answer(model, processor, said)
        assert captioner.caption([picture], [Ask(("the image",))]) == [first]
        said.append({"role": "assistant", "content": [{"type": "text", "text": first}]})
        said.append({"role": "user", "content": [{"type": "text", "text": "in detail"}]})
        second = _answer(model, processor, said)
        assert captioner.caption([picture], [Ask(("the image", "in detail"))]) == [second]


def _answer(model, processor, said: list[dict]) -> str:
    batch = processor.apply_chat_template(
        said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    written = model.generate(**batch, max_new_tokens=12, do_sample=False)
    return processor.decode(written[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", ["blip-2", "blip", "git"])
def test_answers_to_no_prompt_are_those_of_transformers_own_way(name, folders):
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(folders(name)).eval()
    processor = transformers.AutoProcessor.from_pretrained(folders(name))
    captioner = open_captioner(folders(name))
    batch = processor(images=pictures(), return_tensors="pt")
    written = model.generate(**batch, max_new_tokens=12, do_sample=False)
    expected = [text.strip() for text in processor.batch_decode(written, skip_special_tokens=True)]
    assert captioner.caption(pictures(), [Ask(("",))] * 8) == expected


def test_git_goes_on_from_a_prompt_without_an_end_token(folders):
    """As transformers' page on GIT asks a question: the first token, the words, no end token."""
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(folders("git")).eval()
    processor = transformers.AutoProcessor.from_pretrained(folders("git"))
    words = processor.tokenizer("a garden", add_special_tokens=False).input_ids
    ids = torch.tensor([[processor.tokenizer.cls_token_id, *words]])
    pixels = processor(images=pictures(1), return_tensors="pt").pixel_values
    written = model.generate(pixel_values=pixels, input_ids=ids, max_new_tokens=12, do_sample=False)
    expected = processor.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert open_captioner(folders("git")).caption(pictures(1), [Ask(("a garden",))]) == [expected]


def test_the_prompt_is_no_part_of_the_caption(folders):
    for name in ("blip-2", "blip", "git", "llava"):
        prompt = "describe the image in detail"
        for answer in open_captioner(folders(name)).caption(pictures(4), [Ask((prompt,))] * 4):
            assert prompt not in answer


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing(folders, monkeypatch):
    captioner = open_captioner(folders("llava"))
    asks = asks_for(captioner)
    expected = captioner.caption(pictures(), asks)
    sizes, generate = [], captioner.model.generate

    def short(input_ids, **rest):
        sizes.append(len(input_ids))
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(input_ids=input_ids, **rest)

    monkeypatch.setattr(captioner.model, "generate", short)
    assert captioner.caption(pictures(), asks) == expected
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]  # two turns; what was learnt holds

    def never(**batch):
        raise RuntimeError("MPS backend out of memory")

    monkeypatch.setattr(captioner.model, "generate", never)
    with pytest.raises(AtelierError, match="more memory for one picture"):
        captioner.caption(pictures(), asks)

    def broken(**batch):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(captioner.model, "generate", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        captioner.caption(pictures(), asks)


def test_drawn_answers_follow_the_seed_and_leave_torchs_seed_alone(folders):
    folder = folders("llava")
    asks = [Ask(("the image",))] * 4
    state = torch.get_rng_state()
    first, again, other = (
        open_captioner(folder, temperature=1.5, seed=seed).caption(pictures(4), asks) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(state, torch.get_rng_state())


class Watched:
    """A processor that remembers the pictures it was given."""

    def __init__(self, processor):
        self.inner, self.seen = processor, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, images, **given):
        self.seen += [picture for group in images for picture in group]
        return self.inner(images=images, **given)


def test_long_pictures_are_made_smaller(folders):
    noise = np.random.default_rng(0).integers(0, 256, (140, 280, 3), dtype=np.uint8)
    wide, low = Image.fromarray(noise), Image.fromarray(noise[:20, :28])
    small = wide.copy()
    small.thumbnail((28, 28), Image.Resampling.LANCZOS)
    answers = {}
    for longest, given in {28: [small, low], 0: [wide, low], 280: [wide, low]}.items():
        captioner = open_captioner(folders("qwen3_vl"), longest_side=longest)
        captioner.processor = Watched(captioner.processor)
        answers[longest] = captioner.caption([wide, low], [Ask(("the image",))] * 2)
        assert [p.size for p in captioner.processor.seen] == [p.size for p in given]
        assert [p.tobytes() for p in captioner.processor.seen] == [p.tobytes() for p in given]
    assert answers[28] == captioner.caption([small, low], [Ask(("the image",))] * 2)
    assert answers[28][0] != answers[0][0] == answers[280][0]  # so the size of what is seen matters
    assert wide.tobytes() == noise.tobytes()


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (tiny_captioners.CHAT.replace("IMAGE", "<image>"), "parts"),
        (tiny_captioners.CHAT_OF_TEXT, "text"),
        (tiny_captioners.CHAT_OF_TEXT.replace("<image>", ""), "token"),
    ],
    ids=["parts", "text", "token"],
)
def test_templates_of_three_forms_place_one_picture(template, form, tmp_path):
    tiny_captioners.llava(tmp_path, template)
    chat = ChatTexts(load_processor(tmp_path, "llava"), "x")
    assert chat.form == form
    text = chat.text(Ask(("what is it <image>", "go on"), "you see"), ("a garden",))
    assert text.count("<image>") == 1
    places = [text.index(word) for word in ("you see", "<image>", "what is it", "a garden", "go on")]
    assert places == sorted(places)
    assert "go on" not in chat.text(Ask(("what is it", "go on")))


def test_a_template_without_a_place_for_a_picture_is_refused(tmp_path):
    tiny_captioners.llava(tmp_path, "{% for m in messages %}hello{% endfor %}")
    with pytest.raises(AtelierError, match="no place for a picture"):
        open_captioner(tmp_path)


def test_qwens_processor_without_torchvision_reads_the_same(folders):
    folder = folders("qwen3_vl")
    whole, still = load_processor(folder, "qwen3_vl"), StillProcessor(folder)
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the image"}]}]
    texts = [whole.apply_chat_template(said, add_generation_prompt=True, tokenize=False)] * 3
    assert still.apply_chat_template(said, add_generation_prompt=True, tokenize=False) == texts[0]
    groups = [[picture] for picture in pictures(3)]
    whole.tokenizer.padding_side = still.tokenizer.padding_side = "left"
    expected = whole(text=texts, images=groups, return_tensors="pt", padding=True)
    found = still(text=texts, images=groups, return_tensors="pt", padding=True)
    for key in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids"):
        assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(expected[key])), key


def test_a_processor_that_cannot_be_imported_is_told_or_stood_in_for(folders, monkeypatch):
    import transformers

    def absent(*args, **options):
        raise ImportError("Package `num2words` is required.")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", absent)
    assert isinstance(load_processor(folders("qwen3_vl"), "qwen3_vl"), StillProcessor)
    with pytest.raises(AtelierError, match="num2words"):
        load_processor(folders("llava"), "smolvlm")


def test_what_a_family_cannot_be_asked(folders):
    florence, git = read_family(folders("florence2")), read_family(folders("git"))
    florence.check(Ask(("<OCR>",)))
    git.check(Ask(("a painting of",)))
    with pytest.raises(AtelierError, match="task token alone"):
        florence.check(Ask(("<CAPTION> please",)))
    with pytest.raises(AtelierError, match="not 2"):
        git.check(Ask(("a", "b")))
    with pytest.raises(AtelierError, match="no system text"):
        git.check(Ask(("a",), "be kind"))
    read_family(folders("llava")).check(Ask(("a", "b"), "be kind"))


@pytest.fixture
def copied(folders, tmp_path):
    return shutil.copytree(folders("llava"), tmp_path / "model")


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("processor_config.json", "no image processor"),
        ("model.safetensors", "no .safetensors file"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_a_missing_file_is_named(copied, gone, told):
    (copied / gone).unlink()
    with pytest.raises(AtelierError, match=told):
        open_captioner(copied)


def test_a_missing_or_short_shard_is_named(copied):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AtelierError, match=r"lacks model-2.safetensors"):
        read_family(copied)
    (copied / "model-2.safetensors").write_bytes((copied / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(AtelierError, match="not a whole safetensors file"):
        read_family(copied)


def test_weights_that_lack_a_layer_are_not_filled_with_noise(copied):
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    lost = next(key for key in weights if "q_proj" in key)
    save_file({k: v for k, v in weights.items() if k != lost}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(AtelierError, match="lack 1 that the model needs"):
        open_captioner(copied)


def test_a_model_with_code_of_its_own_is_refused_and_its_code_not_run(copied):
    ran = copied / "ran"
    config = {"model_type": "cogvlm", "auto_map": {"AutoModelForCausalLM": "modeling_cogvlm.CogVLM"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "modeling_cogvlm.py").write_text(f"open({str(ran)!r}, 'w')")
    with pytest.raises(AtelierError, match="Python code of its own, which this pack does not run"):
        open_captioner(copied)
    assert not ran.exists()


def test_code_beside_a_known_model_is_not_run(copied, folders):
    """Many folders carry code from before transformers knew them; they open without it."""
    ran = copied / "ran"
    for name, key in (("config.json", "AutoModelForImageTextToText"), ("processor_config.json", "AutoProcessor")):
        values = json.loads((copied / name).read_text()) | {"auto_map": {key: "own.Own"}}
        (copied / name).write_text(json.dumps(values))
    (copied / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass")
    asks = [Ask(("the image",))] * 2
    assert open_captioner(copied).caption(pictures(2), asks) == open_captioner(folders("llava")).caption(
        pictures(2), asks
    )
    assert not ran.exists()


def test_a_text_model_is_refused(copied):
    (copied / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(AtelierError, match="does not caption with"):
        open_captioner(copied)
