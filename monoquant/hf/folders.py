"""Write and read a folder in one call."""

from __future__ import annotations

import os
from typing import Any

from monoquant.api.files import save
from monoquant.hf.registration import register, require_transformers
from monoquant.hooks import Plugins
from monoquant.quantizer import QuantResult


def save_pretrained(result: QuantResult, folder: str | os.PathLike[str], *, plugins: Plugins = True) -> None:
    """Write a quantized model of transformers as a HuggingFace folder, completely or not at all.

    The same as ``monoquant.save(result, folder, format="huggingface")``. Tokenizer files and the like are copied from
    the folder that the model was loaded from.

    Args:
        result: What :func:`monoquant.quantize` returned for a PreTrainedModel.
        folder: Target; an empty folder and one that was written in the same way are replaced, others are refused.
        plugins: As in :func:`monoquant.quantize`.

    Raises:
        FileError: When the folder cannot be written, or the format cannot hold the model.
    """
    save(result, folder, "huggingface", plugins=plugins)


def from_pretrained(folder: str | os.PathLike[str], model_class: Any = None, **options: Any) -> Any:
    """Load a folder that :func:`save_pretrained` wrote, its packed layers in place and kernels chosen.

    Args:
        folder: The folder, or the name of a repository of such a folder.
        model_class: What has a ``from_pretrained``, such as AutoModelForCausalLM; default: the class that was saved.
        **options: For its ``from_pretrained``.

    Returns:
        The model in eval mode, as transformers returns it.

    Raises:
        FileError: When the file is damaged, or does not fit the class.
        ConfigError: When transformers is not installed, or too old.
    """
    register()
    place = os.fspath(folder)
    return (_saved_class(place) if model_class is None else model_class).from_pretrained(place, **options)


def _saved_class(place: str) -> Any:
    transformers = require_transformers()
    # Not AutoConfig, which asks on the terminal whether it may run code that the config names.
    names = transformers.PreTrainedConfig.get_config_dict(place)[0].get("architectures") or ["AutoModel"]
    return getattr(transformers, names[0], transformers.AutoModel)
