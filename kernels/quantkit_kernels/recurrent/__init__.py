"""Layers that keep a state per sequence and advance it token after token."""
