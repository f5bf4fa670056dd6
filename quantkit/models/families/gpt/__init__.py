"""Decoders in the line of GPT: LayerNorms with biases and, in most of them, an MLP without a gate."""
