"""A HuggingFace folder: its config names a class of transformers, which sees its files once they are checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from monoquant.disk.shards import members_of
from monoquant.disk.strict_json import read_json
from monoquant.errors import FileError, InputError
from monoquant.opening.opened import OpenedKind, OpenedModel
from monoquant.opening.weights import are_pickled, contents_told, require_no_code, state_of, weight_files
from monoquant.progress import Progress, untold

CONFIG = "config.json"
_MOST_CONFIG = 10_000_000
_ADAPTER = "adapter_config.json"
_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
"""Keys whose values may be names of repositories of the hub, the kernels of which are fetched and run."""


def is_huggingface(folder: Path) -> bool:
    """Whether a folder looks like one that transformers wrote.

    Args:
        folder: The folder.
    """
    return (folder / CONFIG).exists()


def open_huggingface(given: str, folder: Path, *, trust_code: bool) -> OpenedModel:
    """Open a HuggingFace folder.

    Args:
        given: As it was written.
        folder: The folder.
        trust_code: Whether code that lies in it may run.

    Raises:
        FileError: When files are missing, damaged or disagree, or lead out of the folder.
    """
    config = _Config.of(folder)
    shards = weight_files(folder)
    return OpenedModel(
        given=given,
        kind=OpenedKind.HUGGINGFACE,
        path=folder,
        described=f"HuggingFace folder, {config.named}, {contents_told(folder, shards)}",
        streamable=None if are_pickled(shards) or config.quantized_by else folder,
        module=lambda progress: _built(folder, config, trust_code, progress),
        skeleton=lambda: _sketched(folder, config, trust_code),
        state=lambda progress: state_of(folder, progress),
    )


@attrs.frozen
class _Config:
    """What a config says that matters here."""

    architectures: tuple[str, ...]
    model_type: str
    auto_map: Mapping[str, Any]
    quantized_by: str
    elsewhere: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> _Config:
        file = members_of(folder, [CONFIG])[0]
        found = read_json(file, "a config", _MOST_CONFIG)
        if not isinstance(found, dict):
            raise FileError(f"{file}: not a config (it is no object); get it again")
        names, kind, map_ = found.get("architectures") or [], found.get("model_type", ""), found.get("auto_map") or {}
        if not isinstance(names, list) or not all(isinstance(name, str) and name.isidentifier() for name in names):
            raise FileError(f"{file}: its architectures are {names!r}: names of classes are wanted; get it again")
        if not isinstance(kind, str) or not isinstance(map_, dict):
            raise FileError(f"{file}: its model_type is {kind!r} and its auto_map {map_!r}; get it again")
        quantized = found.get("quantization_config")
        method = quantized.get("quant_method", "something else") if isinstance(quantized, dict) else ""
        return cls(tuple(names), kind, map_, str(method), tuple(_code_elsewhere(found)))

    @property
    def named(self) -> str:
        """For people."""
        name = self.architectures[0] if self.architectures else self.model_type or "of no named kind"
        return f"{name} quantized by {self.quantized_by}" if self.quantized_by else name


def _code_elsewhere(config: Mapping[str, Any]) -> Iterator[str]:
    """What a config names that transformers would run, or ask on the terminal whether it may, while it builds parts."""
    rest: list[tuple[str, Any]] = list(config.items())
    while rest:
        path, value = rest.pop()
        key = path.rpartition(".")[2]
        if key == "auto_map":
            if value and path != key:  # the outermost one is the affair of _class_of
                yield path
        elif key.strip("_").startswith(_IMPLEMENTATIONS):
            yield from (f"{path} = {one!r}" for one in _texts_in(value) if "/" in one)
        elif isinstance(value, (dict, list)):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            rest += [(f"{path}.{name}", one) for name, one in inner]


def _texts_in(value: Any) -> list[str]:
    inner = value.values() if isinstance(value, dict) else [value]
    return [one for one in inner if isinstance(one, str)]


def _built(folder: Path, config: _Config, trust_code: bool, progress: Progress) -> nn.Module:
    _require_plain_folder(folder, config, trust_code)
    transformers = _transformers(folder)
    kind = _class_of(folder, config, transformers, trust_code)
    pickled = are_pickled(weight_files(folder))
    try:
        with _watched(transformers, progress):
            model, loading = kind.from_pretrained(
                folder,
                dtype="auto",
                local_files_only=True,
                trust_remote_code=trust_code,
                use_safetensors=not pickled,
                output_loading_info=True,
            )
    except Exception as error:
        raise _unbuildable(folder, config, error) from error
    missing = sorted(loading.get("missing_keys", ()))
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InputError(f"{folder}: has no weights for {listed} of {config.named}, so that they would be random")
    return model  # type: ignore[no-any-return]


def _sketched(folder: Path, config: _Config, trust_code: bool) -> nn.Module:
    """The model without values; with them where its code lies in the folder, and might not do without."""
    _require_plain_folder(folder, config, trust_code)
    transformers = _transformers(folder)
    kind: Any = _class_of(folder, config, transformers, trust_code)
    if not _is_own(kind, transformers):
        return _built(folder, config, trust_code, untold)
    require_no_code(weight_files(folder))
    try:
        # Not AutoConfig, which asks on the terminal whether it may run code of the folder.
        settings = kind.config_class.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model: nn.Module = kind(settings)
    except Exception as error:
        raise _unbuildable(folder, config, error) from error
    dtype = getattr(settings, "dtype", None)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype or parameter.dtype)
    return model.eval()


def _unbuildable(folder: Path, config: _Config, error: Exception) -> InputError:
    text = " ".join(str(error).split())
    return InputError(
        f"{folder}: transformers cannot build {config.named} ({type(error).__name__}: {text}); try it without "
        "monoquant, or give package.module:factory"
    )


def _require_plain_folder(folder: Path, config: _Config, trust_code: bool) -> None:
    # transformers reads whatever it finds, and follows links and names out of the folder.
    members_of(folder, [entry.name for entry in folder.iterdir() if entry.is_symlink() or entry.is_file()])
    if (folder / _ADAPTER).exists():
        raise InputError(f"{folder}: holds an adapter ({_ADAPTER}), whose base model lies elsewhere; merge it first")
    if config.quantized_by:
        raise InputError(f"{folder}: quantized already, by {config.quantized_by!r}; give the float model")
    if config.elsewhere and not trust_code:
        raise InputError(
            f"{folder / CONFIG}: names code, {', '.join(config.elsewhere)}: --trust-code (trust_code=True) runs it, "
            "and it may do anything; say so if you trust it, or take it out"
        )


def _class_of(folder: Path, config: _Config, transformers: Any, trust_code: bool) -> Any:
    if not config.architectures:
        raise InputError(f"{folder / CONFIG}: names no architectures; add the class, or give package.module:factory")
    name = config.architectures[0]
    kind = getattr(transformers, name, None)
    if _is_own(kind, transformers):
        return kind  # transformers' own, also where the folder brings code of that name
    own = [auto for auto, place in config.auto_map.items() if isinstance(place, str) and place.endswith(f".{name}")]
    if not own:
        raise InputError(
            f"{folder}: transformers {transformers.__version__} has no {name}; use a version that has it, or give "
            "package.module:factory"
        )
    if not trust_code:
        raise InputError(
            f"{folder}: {name} is code that lies in the folder ({config.auto_map[own[0]]}): --trust-code "
            "(trust_code=True) runs it, and it may do anything; say so if you trust it"
        )
    return getattr(transformers, own[0], None) or _no_such_class(folder, own[0])


def _is_own(kind: Any, transformers: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel)


def _no_such_class(folder: Path, name: str) -> Any:
    raise InputError(f"{folder / CONFIG}: its auto_map names {name!r}, which transformers does not have")


def _transformers(folder: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"{folder}: a model of transformers, which is not installed: pip install 'monoquant[hf]'"
        ) from error
    return transformers


@contextmanager
def _watched(transformers: Any, progress: Progress) -> Iterator[None]:
    """Tell somebody how many parameters transformers has loaded, instead of showing its own bars."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()

    def counted(bar: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if given and isinstance(given[0], Sized):
            given = (_Told(given[0], progress), *given[1:])
        return bar(*given, **named)

    hook = getattr(logging, "set_tqdm_hook", lambda _: None)  # the first releases of transformers 5 may have none
    before = hook(counted)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        hook(before)
        if shown:
            logging.enable_progress_bar()


@attrs.frozen
class _Told:
    """What somebody goes through, while another is told how far that is."""

    items: Any
    progress: Progress

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        for done, item in enumerate(self.items):
            self.progress(done, len(self.items))
            yield item
        self.progress(len(self.items), len(self.items))
