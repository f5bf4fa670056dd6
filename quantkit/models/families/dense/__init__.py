"""Decoders whose layers are attention and one MLP."""
