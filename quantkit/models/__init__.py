"""Architectures: from a `config.json` to a recorded program.

`registry.py` is the way in. It reads the config (`config.py`, `fields.py`, `rope.py`) and lets a family (`families/`)
record its forward pass (`recorder.py`), put together from the parts in `decoder.py`.
"""
