"""Architectures: from a `config.json` to a recorded program.

`registry/` is the way in. It refuses what could never run (`refused.py`), takes of multimodal models the text
(`wrappers.py`), reads the config (`config/`, `rope.py`), and lets a family (`families/`) record its forward pass
(`recorder/`), put together from the parts in `decoder/`. What checkpoints store in another way is said in the words of
`stored.py`; how GGUF and mlx-lm name and order it, in `gguf/` and `mlx.py`. `parts.py` cuts a program into parts.
"""
