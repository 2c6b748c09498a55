"""What transformers calls while it loads a folder; the API is that of transformers 5.23."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from monoquant.api.kernels import offered
from monoquant.errors import FileError
from monoquant.formats.huggingface import METHOD, WEIGHTS
from monoquant.formats.skeleton import prepare
from monoquant.hooks import manager_of
from monoquant.modules.kernel_compute import choose_kernels
from monoquant.modules.packed_module import PREFIX
from monoquant.registry import known_adapters

_LOGGER = logging.get_logger(__name__)


class MonoquantConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is untyped
    """``quantization_config`` of config.json.

    Args:
        weights: Name of the file.
        needs: What readers without monoquant should do.
        quant_method: ``"monoquant"``.
    """

    def __init__(self, weights: str = WEIGHTS, needs: str = "", quant_method: str = METHOD, **_: Any) -> None:
        self.quant_method, self.weights, self.needs = quant_method, weights, needs


class MonoquantQuantizer(HfQuantizer):  # type: ignore[misc]  # as above
    """Builds packed layers without values, which transformers then fills by name, and chooses their kernels."""

    requires_calibration = True
    """Folders hold quantized models; nothing is quantized while loading."""
    quantization_config: MonoquantConfig

    def update_attn_implementation(self, config: Any) -> Any:
        """Put the file's name where readers without monoquant find the way out.

        Args:
            config: That of the model, before its weights are looked for.
        """
        if self.quantization_config.weights != WEIGHTS:
            raise FileError(f"config.json names the weights {self.quantization_config.weights!r}, not {WEIGHTS!r}")
        config.transformers_weights = WEIGHTS
        return config

    def update_weight_conversions(self, weight_conversions: Any, model: Any) -> list[Any]:
        """None: tensors are stored under the names that they have in the model."""
        return []

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Packed buffers stay what they are, whatever dtype the model is loaded in."""
        packed = any(f"{PREFIX}" in name for name in converter.source_patterns)
        return None if packed else super().get_new_dtype(converter, param, dtype)

    def is_serializable(self) -> bool:
        """False: ``save_pretrained`` of the model, which refuses then, would write neither report nor hashes."""
        _LOGGER.warning(
            "a model that monoquant packed is not saved by save_pretrained(): copy the folder that it was loaded from, "
            "or give the result of quantize() to monoquant.hf.save_pretrained()"
        )
        return False

    @property
    def is_trainable(self) -> bool:
        """False: packed weights take no gradients."""
        return False

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **_: Any) -> Any:
        if not checkpoint_files or len(checkpoint_files) != 1:
            raise FileError(f"the weights must be in one file, {WEIGHTS}: get the folder again")
        prepare(model, Path(checkpoint_files[0]), known_adapters((), manager_of(True).adapters()))
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        with torch.inference_mode(False):
            choose_kernels(model, offered(manager_of(True), exact=False))
        if hasattr(model.config, "transformers_weights"):
            del model.config.transformers_weights
        return model
