"""gptqmodel, and transformers with optimum, in processes that cannot import monoquant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests_interop.clients import ask
from tests_interop.models import IDS

_SCRIPT = """
import torch
import transformers
from gptqmodel import BACKEND, GPTQModel

folder, kind, place, reader, dtype = sys.argv[1:]
if reader == "gptqmodel":
    # By default, gptqmodel computes in bfloat16 on a CPU, and in sums of it.
    model = GPTQModel.load(folder, device="cpu", dtype=getattr(torch, dtype), backend=BACKEND.GPTQ_TORCH).model
else:
    exactly = {"quantization_config": transformers.GPTQConfig(bits=4, backend="gptq_torch")}
    model = getattr(transformers, kind).from_pretrained(folder, **(exactly if reader == "transformers" else {}))
model = model.eval()
weights = {name: tensor for name, tensor in model.state_dict().items() if name.endswith((".weight", ".bias"))}
packed = {
    f"{name}.weight": module.dequantize_weight().T.contiguous()
    for name, module in model.named_modules()
    if hasattr(module, "qweight")
}
with torch.no_grad():
    answer = model(torch.load(place, weights_only=True))[0]
torch.save({"answer": answer, "weights": weights, "packed": packed}, place)
"""


def read(folder: Path, kind: str, reader: str, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    """Load a folder and answer.

    Args:
        folder: What was written.
        kind: Name of the class in transformers.
        reader: ``"gptqmodel"``, ``"transformers"``, or ``"transformers-default"`` with the kernels of its own choice.
        dtype: What gptqmodel is to compute in.

    Returns:
        ``answer``; ``weights``: parameters and biases; ``packed``: dequantized weights of packed layers.
    """
    with_tokenizer(folder)
    return ask(_SCRIPT, folder, IDS, kind, reader=reader, dtype=str(dtype).removeprefix("torch."))


def with_tokenizer(folder: Path) -> None:
    """Put a tokenizer into a folder, which gptqmodel does not load without."""
    names = {"unk_token": "0", "eos_token": "1", "pad_token": "2"}
    words = WordLevel({str(number): number for number in range(256)}, unk_token=names["unk_token"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **names).save_pretrained(folder)
