"""Safetensors files: what is in one, how one is written, and the checkpoint folders that hold them."""
