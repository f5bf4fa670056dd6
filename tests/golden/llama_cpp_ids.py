"""Golden ids of `NASTY` strings: what llama.cpp makes of them with the tokenizers that stand in its own source.

    python tests/golden/llama_cpp_ids.py FOLDER

writes `llama_cpp_ids.json` beside this file: for each `FOLDER/models/ggml-vocab-NAME.gguf`, a digest of the ids of all
strings. It needs llama-cpp-python, and FOLDER is `vendor/llama.cpp` of its source distribution. Tests need the folder
alone. Texts with `</s>` are left out: llama.cpp takes it for the end of a text in every vocabulary, also where it is
HTML.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from nasty_strings import NASTY

FILE = Path(__file__).with_suffix(".json")
TEXTS = [text for text in NASTY if "</s>" not in text]


def digest(ids: Iterable[list[int]]) -> str:
    """Return what tells lists of ids from others."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


def main(folder: Path) -> None:
    """Ask llama.cpp, with special text as a token and as text."""
    from llama_cpp import Llama

    found = {}
    for path in sorted(folder.glob("models/ggml-vocab-*.gguf")):
        name = path.stem.removeprefix("ggml-vocab-")
        if "bert" in name:
            continue
        model = Llama(str(path), vocab_only=True, verbose=False)
        found[name] = [
            digest(model.tokenize(text.encode(), add_bos=False, special=special) for text in TEXTS)
            for special in (True, False)
        ]
    FILE.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
