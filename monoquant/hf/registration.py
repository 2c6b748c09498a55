"""Teach transformers the format, when somebody asks for it."""

from __future__ import annotations

import importlib
from typing import Any

from monoquant.errors import ConfigError
from monoquant.formats.huggingface import METHOD


def register() -> None:
    """Make ``from_pretrained`` of transformers read folders that :func:`save_pretrained` wrote; again does no harm.

    Raises:
        ConfigError: When transformers is not installed or too old, or knows another method of this name.
    """
    require_transformers()
    auto = importlib.import_module("transformers.quantizers.auto")
    quantizer = importlib.import_module("monoquant.hf.quantizer")
    known = auto.AUTO_QUANTIZER_MAPPING.get(METHOD)
    if known is quantizer.MonoquantQuantizer:
        return
    if known is not None:
        raise ConfigError(f"transformers knows a quantizer {METHOD!r} already, {known!r}: register one of them only")
    auto.register_quantization_config(METHOD)(quantizer.MonoquantConfig)
    auto.register_quantizer(METHOD)(quantizer.MonoquantQuantizer)


def require_transformers() -> Any:
    """The package, if it is one that can be taught.

    Raises:
        ConfigError: When it is not installed or too old.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError("transformers is not installed: pip install monoquant[hf]") from error
    base = importlib.import_module("transformers.quantizers.base").HfQuantizer
    if not hasattr(base, "update_attn_implementation"):
        raise ConfigError(
            f"transformers {transformers.__version__} cannot be taught to read the weights: install 5.23 or newer"
        )
    return transformers
