"""The engine: runs a program over batches of sequences. `model.py` is the way in."""
