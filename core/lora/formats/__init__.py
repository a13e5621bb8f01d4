"""One reader and one writer for LoRA files: layouts.py lists the layouts, tables.py the base models."""

from .names import module_name as module_name
from .reading import parse_lora as parse_lora
from .reading import read_lora as read_lora
from .writing import to_layout as to_layout
from .writing import write_lora as write_lora
