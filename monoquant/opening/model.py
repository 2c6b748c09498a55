"""MODEL of a command line: whatever a person names, opened by what is in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from monoquant.disk.kinds import FileKind, kind_of
from monoquant.disk.shards import SAFETENSORS
from monoquant.errors import FileError, InputError, require_flag
from monoquant.formats.weights_file import TORCH_KINDS
from monoquant.modules.tensor_holder import require_state
from monoquant.opening.factory import is_factory, made_by
from monoquant.opening.huggingface import is_huggingface, open_huggingface
from monoquant.opening.opened import OpenedKind, OpenedModel
from monoquant.opening.quantized import is_quantized, open_json, open_quantized
from monoquant.opening.weights import open_weights, weight_files

_WANTED = (
    "a safetensors file, what torch.save wrote of a state dict, a HuggingFace folder, a file of monoquant.save, or "
    "package.module:factory"
)


def open_model(given: str | os.PathLike[str], *, trust_code: bool = False) -> OpenedModel:
    """Open a model, or a report of one, by what is in it.

    Args:
        given: A safetensors file, an index of several, or a folder of them; a HuggingFace folder; what ``torch.save``
            wrote of a state dict; what :func:`monoquant.save` or :func:`monoquant.save_report` (as JSON) wrote; or
            ``package.module:factory``, which is called without arguments and returns a module, or tensors by name.
            A path that exists is a path, whatever it looks like.
        trust_code: Whether a factory, or code that lies in a HuggingFace folder, may run. Default False: nothing runs.

    Raises:
        FileError: When there is nothing there, files are missing or damaged, or lead out of their folder.
        InputError: When it is something else, or code that is not trusted.
    """
    require_flag("trust_code", trust_code)
    if not isinstance(given, (str, os.PathLike)) or not str(given):
        raise InputError(f"{given!r} names no model: give {_WANTED}")
    text, path = str(given), Path(given)
    if is_factory(text):
        return _open_factory(text, trust_code)
    if path.is_dir():
        return _open_folder(text, path, trust_code)
    return _open_file(text, path)


def _open_file(given: str, path: Path) -> OpenedModel:
    kind = kind_of(path)
    if kind is FileKind.JSON:
        return open_json(given, path) or open_weights(given, path)
    if kind in (FileKind.SAFETENSORS, *TORCH_KINDS):
        return open_quantized(given, path) if is_quantized(path) else open_weights(given, path)
    raise FileError(f"{path}: is {kind.value}; give {_WANTED}")


def _open_folder(given: str, folder: Path, trust_code: bool) -> OpenedModel:
    has_config = is_huggingface(folder)
    if not SAFETENSORS.is_in(folder) and not has_config and not any(folder.glob("*.bin")):
        raise FileError(f"{folder}: a folder without weights; give {_WANTED}")
    files = list(weight_files(folder))
    quantized = [file for file in files if is_quantized(file)]
    if quantized and len(files) > 1:
        raise FileError(f"{folder}: {quantized[0].name} is quantized and lies beside others; give one of the files")
    if quantized:
        return open_quantized(given, quantized[0], in_folder=True)
    return open_huggingface(given, folder, trust_code=trust_code) if has_config else open_weights(given, folder)


def _open_factory(given: str, trust_code: bool) -> OpenedModel:
    made: Any = made_by(given, trust_code=trust_code, what="weights")
    if isinstance(made, nn.Module):
        described = f"factory of {type(made).__name__}, {sum(one.numel() for one in made.parameters())} parameters"
        return OpenedModel(
            given=given,
            kind=OpenedKind.FACTORY,
            path=None,
            described=described,
            module=lambda _progress: made,
            state=lambda _progress: _state_of(made),
        )
    if not isinstance(made, Mapping):
        raise InputError(f"{given}: the factory returned a {type(made).__name__}: return a module, or tensors by name")
    try:
        require_state(made)
    except InputError as error:
        raise InputError(f"{given}: {error}") from error
    return OpenedModel(
        given=given,
        kind=OpenedKind.FACTORY,
        path=None,
        described=f"factory of weights, {len(made)} tensors",
        state=lambda _progress: made,
    )


def _state_of(module: nn.Module) -> Mapping[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
