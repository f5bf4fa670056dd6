"""Quantization: from a checkpoint to a packed folder and back."""
