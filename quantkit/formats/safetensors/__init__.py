"""Safetensors files: what is in one, and how one is written."""
