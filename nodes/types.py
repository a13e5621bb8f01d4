"""The pack's own sockets, for frozen records only, and core's that carry more than one node's meaning."""

from comfy_api.latest import io

Dataset = io.Custom("FLUX_ATELIER_DATASET")
Config = io.Custom("FLUX_ATELIER_CONFIG")
Run = io.Custom("FLUX_ATELIER_RUN")
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")

MOST_LORAS = 16  # sockets of a merge
