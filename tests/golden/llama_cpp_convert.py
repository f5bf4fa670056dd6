"""Golden GGUF files: what llama.cpp's converter makes of the tiny checkpoints of `tiny_gguf_families.py`.

    python tests/golden/llama_cpp_convert.py FOLDER [FILES JSON]

writes `llama_cpp_files.json` beside this file, or JSON: metadata, rotary factors, and a digest of the other tensors;
and keeps the GGUF files themselves in the folder FILES, if it is given. FOLDER is `vendor/llama.cpp` of
llama-cpp-python's source distribution; it needs torch and transformers. The converter brings its own `gguf` package.

The converter knows some models' tokenizers by the files that they come in, and asks transformers for configs, which
forgets fields that it once had. So it is told that of tiny checkpoints: their tokenizer, and their `config.json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

BESIDE = "xielu."
"""How keys begin that are of one architecture, and do not begin with its name."""
FIRST_NAMES = {"ffn_sub_norm": "ffn_layernorm", "attn_sub_norm": "inner_attn_ln"}
"""BitNet's norms -> their names in its first models, which the converter knows."""
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def convert(
    model: Path, file: Path, *, told: Mapping[str, Any], unsaid: Collection[str] = (), fused: bool = False
) -> None:
    """Write a Hugging Face folder as a GGUF file, in F32, with and without some fields of its config."""
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    import tiny_gguf

    def set_vocab(self: Any) -> None:
        for key, (value, value_type) in tiny_gguf.tokenizer_metadata().items():
            self.gguf_writer.add_key_value(key, value, value_type)

    def map_tensor_name(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        for ours, theirs in FIRST_NAMES.items():
            name = name.replace(ours, theirs)
        return found.map_tensor_name(self, name, *args, **kwargs)

    known = ModelBase.load_hparams(model, False) | json.loads((model / "config.json").read_text())
    known = {name: value for name, value in known.items() if name not in unsaid} | dict(told)
    ModelBase.load_hparams = staticmethod(lambda folder, is_mistral_format: dict(known))
    found = get_model_class(get_model_architecture(known, ModelType.TEXT), mmproj=False)
    found = getattr(found, "Ministral3Model", found)  # which a Mistral3Model asks for everything
    own = {"model_arch": found.model_arch, "no_mtp": True, "set_vocab": set_vocab, "map_tensor_name": map_tensor_name}
    kind = type(found.__name__, (found,), own)
    with torch.inference_mode():
        kind(model, gguf.LlamaFileType.ALL_F32, file, fuse_qkv=fused, fuse_gate_up_exps=fused).write()


def summary(file: Path) -> dict[str, Any]:
    """What is kept of a GGUF file."""
    import gguf

    from tiny_gguf_families import digest

    reader = gguf.GGUFReader(file)
    architecture = reader.get_field("general.architecture").contents()
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): field.contents() for key, field in reader.fields.items() if key.startswith(prefix)}
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    factors = {name: tensors.pop(name).tolist() for name in FACTORS if name in tensors}
    others = {key: field.contents() for key, field in reader.fields.items() if key.startswith(BESIDE)}
    beside = {"beside": others} if others else {}
    return {"architecture": architecture, "metadata": own, **beside, "factors": factors, "digest": digest(tensors)}


def main(folder: str, files: str = "", output: str = "") -> None:
    """Convert each case; one that fails is said on stderr."""
    sys.path[:0] = [folder, f"{folder}/gguf-py"]
    from conversion import ModelBase

    from tiny_gguf_families import CASES, FILE

    found, load_hparams = {}, ModelBase.load_hparams
    with tempfile.TemporaryDirectory() as scratch:
        for name, case in CASES.items():
            file = Path(files or scratch, f"{name}.gguf")
            ModelBase.load_hparams = load_hparams
            try:
                unsaid = [field for field, value in case.overrides.items() if value is ...]
                convert(case.reworded(Path(scratch, name)), file, told=case.told, unsaid=unsaid, fused=bool(case.fused))
                found[name] = summary(file)
            except Exception as cause:
                sys.stderr.write(f"{name}: {type(cause).__name__}: {cause}\n")
    lines = (f"{json.dumps(name)}: {json.dumps(what)}" for name, what in found.items())
    Path(output or FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
