"""quantkit: pack fp16 weights into int4/int8 blocks and run them on a CPU straight from the packed bytes.

The public names, each imported from its module when first used: `import quantkit` loads neither numpy nor numba.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantkit.convert import convert as convert
    from quantkit.dequantize import dequantize as dequantize
    from quantkit.engine import Model as Model
    from quantkit.errors import CheckpointError as CheckpointError
    from quantkit.errors import GenerationError as GenerationError
    from quantkit.errors import OptionError as OptionError
    from quantkit.errors import PackedModelError as PackedModelError
    from quantkit.errors import QuantkitError as QuantkitError
    from quantkit.errors import UnsupportedError as UnsupportedError
    from quantkit.evaluate import perplexity as perplexity
    from quantkit.generate import GenerationResponse as GenerationResponse
    from quantkit.generate import generate as generate
    from quantkit.generate import stream_generate as stream_generate
    from quantkit.load import load as load
    from quantkit.load import load_model as load_model
    from quantkit.sampling import make_logits_processors as make_logits_processors
    from quantkit.sampling import make_sampler as make_sampler
    from quantkit.tokenizer import Tokenizer as Tokenizer

_MODULES = {
    "convert": "convert",
    "dequantize": "dequantize",
    "Model": "engine",
    "CheckpointError": "errors",
    "GenerationError": "errors",
    "OptionError": "errors",
    "PackedModelError": "errors",
    "QuantkitError": "errors",
    "UnsupportedError": "errors",
    "perplexity": "evaluate",
    "GenerationResponse": "generate",
    "generate": "generate",
    "stream_generate": "generate",
    "load": "load",
    "load_model": "load",
    "make_logits_processors": "sampling",
    "make_sampler": "sampling",
    "Tokenizer": "tokenizer",
}
"""Public name -> the module of this package that defines it."""

__all__ = ["__version__", *_MODULES]


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


class _Package(ModuleType):
    """Keeps functions visible that share their module's name, as `generate` does.

    Importing `quantkit.generate` binds the submodule to the package's attribute, which would hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
