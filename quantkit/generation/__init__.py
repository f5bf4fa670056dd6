"""Generation: from a prompt to text. `stream.py` is the loop; `loading.py` opens a model with its tokenizer."""
