"""quantkit: pack fp16 weights into blocks of 4 to 8 bits and run them on a CPU straight from the packed bytes.

The public names, each imported from its module when first used: `import quantkit` loads neither numpy nor numba.
"""

from __future__ import annotations

from importlib import import_module

import quantkit_kernels

TYPE_CHECKING = False  # as type checkers read it; importing `typing` would be half the time of `import quantkit`
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from quantkit.engine.model import Model as Model
    from quantkit.errors import CheckpointError as CheckpointError
    from quantkit.errors import GenerationError as GenerationError
    from quantkit.errors import OptionError as OptionError
    from quantkit.errors import PackedModelError as PackedModelError
    from quantkit.errors import QuantkitError as QuantkitError
    from quantkit.errors import StrictError as StrictError
    from quantkit.errors import UnsupportedError as UnsupportedError
    from quantkit.evaluation.quality import perplexity as perplexity
    from quantkit.generation.loading import load as load
    from quantkit.generation.loading import load_model as load_model
    from quantkit.generation.loading import load_tokenizer as load_tokenizer
    from quantkit.generation.sampling import make_logits_processors as make_logits_processors
    from quantkit.generation.sampling import make_sampler as make_sampler
    from quantkit.generation.stream import GenerationResponse as GenerationResponse
    from quantkit.generation.stream import generate as generate
    from quantkit.generation.stream import stream_generate as stream_generate
    from quantkit.generation.text.tokenizer import Tokenizer as Tokenizer
    from quantkit.quantization.calibration.measuring import calibrate as calibrate
    from quantkit.quantization.conversion import convert as convert
    from quantkit.quantization.conversion import convert_all as convert_all
    from quantkit.quantization.dequantization import dequantize as dequantize
    from quantkit.quantization.recipe import Recipe as Recipe
    from quantkit.quantization.recipe.file import read_recipe as read_recipe

_MODULES = {
    "calibrate": "quantization.calibration.measuring",
    "convert": "quantization.conversion",
    "convert_all": "quantization.conversion",
    "dequantize": "quantization.dequantization",
    "read_recipe": "quantization.recipe.file",
    "Recipe": "quantization.recipe",
    "Model": "engine.model",
    "CheckpointError": "errors",
    "GenerationError": "errors",
    "OptionError": "errors",
    "PackedModelError": "errors",
    "QuantkitError": "errors",
    "StrictError": "errors",
    "UnsupportedError": "errors",
    "perplexity": "evaluation.quality",
    "GenerationResponse": "generation.stream",
    "generate": "generation.stream",
    "stream_generate": "generation.stream",
    "load": "generation.loading",
    "load_model": "generation.loading",
    "load_tokenizer": "generation.loading",
    "make_logits_processors": "generation.sampling",
    "make_sampler": "generation.sampling",
    "Tokenizer": "generation.text.tokenizer",
}
"""Public name -> the module of this package that defines it."""

__all__ = ["__version__", *_MODULES]


def _kernel_folder(name: str) -> Path:
    """Let the kernels keep their machine code in the user's cache folder."""
    from quantkit import user_cache

    return user_cache.entry("kernels", name)


quantkit_kernels.cache_folder = _kernel_folder


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("quantkit")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
