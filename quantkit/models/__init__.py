"""Architectures: from a `config.json` to a recorded program.

`registry.py` is the way in. It reads the config (`config/`, `rope.py`), of multimodal models that of the text
(`wrappers.py`), and lets a family (`families/`) record its forward pass (`recorder/`), put together from the parts in
`decoder/`. What its checkpoints store in another way is said in the words of `stored.py`, how GGUF names and orders it
in `gguf/`; what could never run, in `refused.py`.
"""
