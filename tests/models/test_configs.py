"""Configs as they occur in public repositories, old and new spellings: each is recorded, or refused by the right name.

`configs.json` has facts alone, keys and values; `parameters` is the number of weights that the model is known to have,
`windows` the attention windows of its layers, `refused` what an error says, `saved_otherwise` how transformers
contradicts a config when it saves it.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import QuantkitError
from quantkit.models.registry import FAMILIES, read

CONFIGS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("configs.json").read_text())


RECORDED = [name for name, row in CONFIGS.items() if "refused" not in row]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name: str) -> None:
    row = CONFIGS[name]
    architecture = read(row["config"])
    program = architecture.record()
    assert sum(math.prod(spec.shape) for spec in program.tensors.values()) == row["parameters"]
    assert architecture.context_length == row["context"]
    windows = {step.parameters["window"] for step in program.operations if step.name == "attention"}
    assert windows == set(row.get("windows", [0]))


@pytest.mark.parametrize("name", [name for name, row in CONFIGS.items() if "refused" in row])
def test_refused(name: str) -> None:
    with pytest.raises(QuantkitError, match=rf"^config\.json: .*{re.escape(CONFIGS[name]['refused'])}"):
        read(CONFIGS[name]["config"]).record()


@pytest.mark.live
@pytest.mark.parametrize("name", [name for name in RECORDED if "saved_otherwise" not in CONFIGS[name]])
def test_transformers_own_spelling_means_the_same(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = CONFIGS[name]["config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert read(saved).record() == read(config).record()


def test_the_corpus_is_wide() -> None:
    assert len(CONFIGS) >= 60
    recorded = {read(CONFIGS[name]["config"]).source["model_type"] for name in RECORDED}
    assert recorded == FAMILIES.keys()
