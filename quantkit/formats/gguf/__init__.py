"""GGUF files: their container, their tokenizer, and the checkpoint that they amount to."""
