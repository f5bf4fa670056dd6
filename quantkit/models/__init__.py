"""Architectures: from a `config.json` to a recorded program.

`registry.py` is the way in; `families/` has one file each.
"""
