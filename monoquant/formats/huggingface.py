"""A HuggingFace folder with monoquant's own file in it, which ``monoquant.hf`` teaches transformers to read.

Readers without monoquant must fail: transformers skips a ``quant_method`` that it does not know with a warning, and
then draws every weight that it misses at random. So the file is not called ``model.safetensors``, and config.json names
the way out in the place of a file name (``transformers_weights``), which transformers 5 puts into its error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from monoquant.container import write_container
from monoquant.errors import FileError, quoted
from monoquant.formats.base import Exporter
from monoquant.formats.folder import (
    copy_side_files,
    folder_obstacle,
    require_pretrained,
    side_files,
    write_configuration,
    write_text,
)
from monoquant.formats.native import native_content
from monoquant.modules.exact_buffers import ExactBuffers
from monoquant.modules.packed_module import PackedModule
from monoquant.quantizer import QuantResult
from monoquant.source import names_of_modules

METHOD = "monoquant"
WEIGHTS = "monoquant.safetensors"
README = "README.md"
WAY_OUT = "pip install monoquant[hf], and call monoquant.hf.register() before from_pretrained()"
_NOTE = f"""# Quantized with monoquant

The weights in this folder are packed in a way that transformers does not know by itself:

    pip install "monoquant[hf]"

```python
import monoquant.hf

monoquant.hf.register()  # from here on, AutoModel.from_pretrained and its like read this folder
```

Without that, transformers refuses the folder. `{WEIGHTS}` also holds the report of the run: `monoquant.load_report`
reads it, and `monoquant.load` puts the weights into a model that you build yourself.
"""


class HuggingFaceExporter(Exporter):
    """Writes a folder that ``AutoModel.from_pretrained`` reads once ``monoquant.hf.register()`` was called."""

    name: ClassVar[str] = "huggingface"

    def obstacle_at(self, path: Path) -> str:
        return folder_obstacle(path, self.name, METHOD)

    def require_held(self, model: nn.Module) -> None:
        require_pretrained(model)
        _refuse_shared(model)
        side_files(model)

    def write(self, result: QuantResult, path: Path) -> None:
        self.require_held(result.model)
        tensors, metadata = native_content(result, path / WEIGHTS)
        path.mkdir()
        write_configuration(path, result.model, entries())
        copy_side_files(path, result.model)
        write_text(path / README, _NOTE)
        write_container(path / WEIGHTS, tensors, metadata)


def entries() -> Mapping[str, Any]:
    """What config.json says beside what it says of any model."""
    return {
        "quantization_config": {"quant_method": METHOD, "weights": WEIGHTS, "needs": WAY_OUT},
        "transformers_weights": f"{WEIGHTS} needs monoquant: {WAY_OUT}",
    }


def _refuse_shared(model: nn.Module) -> None:
    names = names_of_modules(model)
    owners: dict[nn.Module, list[str]] = {}
    for module, found in names.items():
        if isinstance(module, PackedModule):
            for storage in module.children():
                if isinstance(storage, ExactBuffers):
                    owners.setdefault(storage, []).extend(found)
    shared = [name for found in owners.values() if len(found) > 1 for name in found]
    if shared:
        raise FileError(
            f"layers {quoted(shared)} share a packed weight, which transformers would untie: skip them by "
            "modules_to_not_convert, or save to a name that ends in .safetensors",
            layers=shared,
        )
