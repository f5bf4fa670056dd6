"""Generation: prompts become text. `stream.py` is the loop, `text/` encodes and decodes, `loading.py` opens all."""
