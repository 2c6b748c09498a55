"""HuggingFace folders of quantized models: written, and read by transformers; needs the extra ``hf``.

Nothing happens on import: :func:`register` teaches transformers the format, and :func:`from_pretrained` calls it.
"""

from __future__ import annotations

from monoquant.hf.folders import from_pretrained, save_pretrained
from monoquant.hf.registration import register

__all__ = ["from_pretrained", "register", "save_pretrained"]
