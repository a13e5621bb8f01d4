"""The ComfyUI nodes: adapters, one file per shelf of the menu."""
