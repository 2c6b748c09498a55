"""Models of transformers, known by their class: nothing here imports the package."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from monoquant.errors import InputError

_ATTRIBUTE = "hf_quantizer"
_BASE = "PreTrainedModel"


def is_pretrained(module: nn.Module) -> bool:
    """Whether a module is a model of transformers.

    Args:
        module: Any module.
    """
    kinds = type(module).__mro__
    return any(kind.__name__ == _BASE and kind.__module__.partition(".")[0] == "transformers" for kind in kinds)


class SaveBarrier:
    """Stands where transformers looks for what quantized a model, so that ``model.save_pretrained`` fails.

    It would write packed buffers without a word on what they mean, and reading them back would draw every weight anew
    with no more than a warning.
    """

    is_compileable = True
    is_trainable = False
    is_qat_trainable = False
    quantization_config = SimpleNamespace(
        quant_method="monoquant, which saves it by monoquant.save(result, folder, format='huggingface'),"
    )

    def dequantize(self, model: nn.Module, dtype: Any = None) -> nn.Module:
        """Refuse what ``model.dequantize()`` asks for.

        Raises:
            InputError: Always, with the way out.
        """
        raise InputError("the model was packed by monoquant: call monoquant.dequantize(model)")


def keep_from_saving(model: nn.Module) -> None:
    """Make ``save_pretrained`` of a packed model, and of models of transformers in it, fail.

    Args:
        model: Changed in place.
    """
    for module in model.modules():
        if is_pretrained(module) and getattr(module, _ATTRIBUTE, None) is None:
            setattr(module, _ATTRIBUTE, SaveBarrier())


def let_save(model: nn.Module) -> None:
    """Undo :func:`keep_from_saving`.

    Args:
        model: Changed in place.
    """
    for module in model.modules():
        if isinstance(vars(module).get(_ATTRIBUTE), SaveBarrier):
            delattr(module, _ATTRIBUTE)
