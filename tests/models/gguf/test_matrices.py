"""What GGUF files call the matrices of a model that is a Hugging Face folder: as llama.cpp's converter names them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tiny_gguf_families
from quantkit.models import registry
from quantkit.models.gguf.matrices import Place, places

OTHERWISE = {"internlm3_biases", "solar_open", "glm4_moe_lite"}
"""Their model types have no architecture of their own in GGUF files."""
ABSORBED = "self_attn.k_b_proj.weight"
"""Of latent attention: stored transposed, head by head."""
GOLDEN = json.loads(tiny_gguf_families.FILE.read_text())


@pytest.mark.parametrize("name", sorted(GOLDEN.keys() - OTHERWISE))
def test_every_matrix_of_layers_is_where_the_converter_puts_it(name: str) -> None:
    case = tiny_gguf_families.CASES[name]
    stored = tiny_gguf_families.stored(case, GOLDEN[name]["architecture"])
    architecture = registry.read(case.config())
    program = architecture.record()
    found = places(architecture, program)
    products = {it for each in program.operations if each.spec.product for it in each.tensors}
    for matrix in found.keys() & products:
        if program.tensors[matrix].role not in ("linear", "expert"):
            continue
        place = next((place for place in found[matrix] if place.name in stored), None)
        if matrix.endswith(ABSORBED):
            assert place is None or place.name.endswith("attn_kv_b.weight")
            continue
        assert place is not None, matrix
        columns = program.tensors[matrix].shape[1]
        assert stored[place.name].shape[-1] == columns
        assert place.expert is None or place.expert < stored[place.name].shape[0]
        assert not place.order or sorted(place.order) == np.arange(columns).tolist()


def test_a_matrix_has_its_own_name_too() -> None:
    architecture = registry.read(tiny_gguf_families.CASES["llama"].config())
    found = places(architecture, architecture.record())["model.layers.1.mlp.up_proj.weight"]
    assert found == [Place("blk.1.ffn_up.weight"), Place("model.layers.1.mlp.up_proj.weight")]
