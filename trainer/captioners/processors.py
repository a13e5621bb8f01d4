"""A folder's processor: pictures and texts become what a model reads."""

from pathlib import Path
from typing import Any

from ...core.errors import AtelierError


def load_processor(folder: Path, model_type: str) -> Any:
    """Open the processor of a model folder.

    Raises AtelierError if a package that it needs is missing.
    """
    from transformers import AutoProcessor

    try:
        # False, not the default: that asks on the terminal before it runs what lies in the folder.
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        if not model_type.startswith("qwen"):
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise AtelierError(
                f"The processor of {folder.name} needs a package that is missing ({reason}). Install that package."
            ) from None
        processor = StillProcessor(folder)  # only its video part needs torchvision
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


class StillProcessor:
    """Qwen-VL's processor without its video part, for where torchvision is absent."""

    image_token = "<|image_pad|>"

    def __init__(self, folder: Path):
        from transformers import AutoImageProcessor, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.image_processor = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        template = folder / "chat_template.jinja"
        self.chat_template = template.read_text(encoding="utf-8") if template.is_file() else None
        self.batch_decode = self.tokenizer.batch_decode

    def apply_chat_template(self, messages: list[dict], **options) -> str:
        return self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **options)

    def __call__(self, text: list[str], images: list[list], **options) -> Any:
        seen = self.image_processor(images=[picture for group in images for picture in group], return_tensors="pt")
        counts = (seen["image_grid_thw"].prod(1) // self.image_processor.merge_size**2).tolist()
        spread = [t.replace(self.image_token, self.image_token * n, 1) for t, n in zip(text, counts, strict=True)]
        batch = self.tokenizer(spread, **options)
        batch.pop("token_type_ids", None)
        batch.update(seen)
        image = self.tokenizer.convert_tokens_to_ids(self.image_token)
        batch["mm_token_type_ids"] = (batch["input_ids"] == image).int()
        return batch
