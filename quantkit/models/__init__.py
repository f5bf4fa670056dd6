"""Architectures: from a `config.json` to a recorded program.

`registry.py` is the way in. It reads the config (`config.py`, `fields.py`, `rope.py`), of multimodal models that of the
text (`wrappers.py`), and lets a family (`families/`) record its forward pass (`recorder.py`), put together from the
parts in `decoder.py`. What its checkpoints store in another way is said in the words of `stored.py`; what could never
run, in `refused.py`.
"""
