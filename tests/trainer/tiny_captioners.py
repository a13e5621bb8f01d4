"""Captioning models of a few layers with random weights, saved as transformers saves them."""

from pathlib import Path

CHAT = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{% if m['content'] is string %}{{m['content']}}{% else %}"
    "{% for c in m['content'] %}{% if c['type']=='image' %}IMAGE{% else %}{{c['text']}}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A template that takes text alone and sets the picture itself, as JoyCaption's does.
CHAT_OF_TEXT = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{% if m['role'] == 'user' and loop.index0 < 2 %}<image>\n{% endif %}"
    "{{m['content'] | trim}}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
MARKS = ["<|im_start|>", "<|im_end|>"]
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEN = SMALL | {"image_size": 28, "patch_size": 14}


def tokenizer(marks: list[str], framed: bool = False, **options):
    """A byte-level tokenizer trained on one sentence; framed texts stand between a first and a last token."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<s>", "</s>", "<unk>", *marks],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(["describe the image in detail. an impressionist painting of a garden"] * 4, trainer)
    if framed:
        inner.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    if "extra_special_tokens" not in options:
        options["additional_special_tokens"] = marks
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", **options
    )


def llava(folder: Path, template: str = CHAT.replace("IMAGE", "<image>")) -> None:
    import transformers as T

    words = tokenizer(["<image>", *MARKS])
    config = T.LlavaConfig(
        vision_config=T.SiglipVisionConfig(**SEEN),
        text_config=T.LlamaConfig(
            vocab_size=len(words), **SMALL, num_key_value_heads=2, max_position_embeddings=512, **ENDS
        ),
        image_token_id=words.convert_tokens_to_ids("<image>"), vision_feature_select_strategy="full",
        vision_feature_layer=-2,
    )  # fmt: skip
    processor = T.LlavaProcessor(
        image_processor=T.SiglipImageProcessor(size={"height": 28, "width": 28}), tokenizer=words, patch_size=14,
        vision_feature_select_strategy="full", image_token="<image>", chat_template=template,
        num_additional_image_tokens=0,
    )  # fmt: skip
    _save(folder, config, processor)


def qwen3_vl(folder: Path) -> None:
    import transformers as T

    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    words = tokenizer([*names, *MARKS])
    image, video, start, end = words.convert_tokens_to_ids(names)
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0}
    config = T.Qwen3VLConfig(
        text_config=dict(
            vocab_size=len(words), **SMALL, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
            rope_parameters=rope, **ENDS,
        ),
        vision_config=dict(
            depth=2, hidden_size=32, intermediate_size=64, num_heads=2, patch_size=14, spatial_merge_size=2,
            temporal_patch_size=2, out_hidden_size=32, num_position_embeddings=64, deepstack_visual_indexes=[0],
        ),
        image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    words.image_token, words.video_token = names[:2]
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    processor = T.Qwen3VLProcessor(
        image_processor=T.Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2, size=size),
        tokenizer=words, video_processor=Qwen3VLVideoProcessor(),
        chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    _save(folder, config, processor)


def internvl(folder: Path) -> None:
    import transformers as T

    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer([*named.values(), *MARKS], extra_special_tokens=named)
    config = T.InternVLConfig(
        vision_config=T.InternVLVisionConfig(**(SMALL | {"image_size": [28, 28], "patch_size": [7, 7]})),
        text_config=T.Qwen2Config(
            vocab_size=len(words), **SMALL, num_key_value_heads=2, max_position_embeddings=1024, **ENDS
        ),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

    size = {"height": 28, "width": 28}
    processor = T.InternVLProcessor(
        image_processor=T.GotOcr2ImageProcessor(size=size, max_patches=2), tokenizer=words,
        video_processor=InternVLVideoProcessor(size=size), image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<IMG_CONTEXT>"),
    )  # fmt: skip
    _save(folder, config, processor)


def blip2(folder: Path) -> None:
    import transformers as T

    words = tokenizer(["<image>"])
    text = T.OPTConfig(
        vocab_size=len(words), hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, word_embed_proj_dim=32, **ENDS,
    )  # fmt: skip
    config = T.Blip2Config(
        vision_config=SEEN,
        qformer_config=SMALL | dict(vocab_size=len(words), encoder_hidden_size=32, cross_attention_frequency=1),
        text_config=text.to_dict(), num_query_tokens=4, image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = T.BlipImageProcessor(size={"height": 28, "width": 28})
    _save(folder, config, T.Blip2Processor(image_processor=images, tokenizer=words, num_query_tokens=4))


def florence2(folder: Path) -> None:
    import transformers as T

    words = tokenizer(["<image>"], extra_special_tokens={"image_token": "<image>"})
    text = T.BartConfig(
        vocab_size=len(words), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=512, **ENDS,
        decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    config = T.Florence2Config(
        vision_config=dict(
            embed_dim=[16, 32], depths=[1, 1], num_heads=[2, 2], num_groups=[2, 2], window_size=4, patch_size=[7, 3],
            patch_stride=[4, 2], patch_padding=[3, 1], patch_prenorm=[False, True], projection_dim=32,
            drop_path_rate=0.0, max_temporal_embeddings=4, max_position_embeddings=20,
        ),
        text_config=text.to_dict(), image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    size = {"height": 64, "width": 64}
    images = T.CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    images.image_seq_length = 65
    _save(folder, config, T.Florence2Processor(image_processor=images, tokenizer=words, num_additional_image_tokens=1))


def blip(folder: Path) -> None:
    import transformers as T

    words = tokenizer([], framed=True)
    text = SMALL | dict(vocab_size=len(words), max_position_embeddings=256, encoder_hidden_size=32, projection_dim=32)
    config = T.BlipConfig(text_config=text | ENDS | {"sep_token_id": 2}, vision_config=SEEN, projection_dim=32)
    images = T.BlipImageProcessor(size={"height": 28, "width": 28})
    _save(folder, config, T.BlipProcessor(image_processor=images, tokenizer=words))


def git(folder: Path) -> None:
    import transformers as T

    words = tokenizer([], framed=True, cls_token="<s>")
    config = T.GitConfig(
        vision_config=SEEN, vocab_size=len(words), **SMALL, max_position_embeddings=256, **ENDS
    )  # fmt: skip
    images = T.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    _save(folder, config, T.GitProcessor(image_processor=images, tokenizer=words))


def siglip(folder: Path) -> None:
    """A model that compares pictures with words; no captioner."""
    import torch
    import transformers as T

    torch.manual_seed(0)
    words = tokenizer([], framed=True, model_max_length=64)
    text = SMALL | {"vocab_size": len(words), "max_position_embeddings": 64} | ENDS
    model = T.SiglipModel(T.SiglipConfig(text_config=text, vision_config=SEEN))
    for parameter in model.parameters():  # as drawn, all texts are alike
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    images = T.SiglipImageProcessor(size={"height": 28, "width": 28})
    T.SiglipProcessor(image_processor=images, tokenizer=words).save_pretrained(folder)


TAGS = (
    "tag_id,name,category,count\n1,blue_sky,0,9\n2,^_^,0,9\n3,reimu_(touhou),4,9\n4,general,9,9\n5,some_painter,1,9\n"
)


def tagger(folder: Path) -> None:
    """Scores are 1 / (1 + exp(-logits)): of blue for the first tag, of red for the third, constants for the others."""
    import numpy as np
    import pytest

    onnx = pytest.importorskip("onnx", reason="no onnx: taggers were not run; pip install onnx onnxruntime")
    pytest.importorskip("onnxruntime", reason="no onnxruntime: taggers were not run")
    from onnx import TensorProto, helper, numpy_helper

    weights = np.zeros((3, 5), np.float32)
    weights[0, 0] = weights[2, 2] = 8 / 255  # channel 0 is blue where pictures go in as BGR
    bias = np.array([-4, 0, -4, 2, 4], np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["in"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["mean", "w", "b"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    (folder / "selected_tags.csv").write_text(TAGS)


def _save(folder: Path, config, processor) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():  # as drawn, all pictures get one caption; this far apart they differ
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


FAMILIES = {
    "llava": llava, "qwen3_vl": qwen3_vl, "internvl": internvl, "blip-2": blip2, "florence2": florence2, "blip": blip,
    "git": git,
}  # fmt: skip
