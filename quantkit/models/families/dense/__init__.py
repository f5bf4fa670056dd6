"""Decoders in the line of Llama: RMSNorms, heads that are rotated, and one gated MLP."""
