"""Small instances of every kind of module that monoquant packs, and of some that it refuses, for tests.

Example::

    import monoquant as mq
    from monoquant.testing.zoo import specimens

    @pytest.mark.parametrize("specimen", specimens(), ids=str)
    def test_my_pass_takes_every_kind(specimen):
        passes = [mq.SkipSelectionPass(), MyPass(), mq.Int4PackPass(group_size=32)]
        mq.Quantizer(passes).run(specimen.build())
"""

from __future__ import annotations

import importlib.util

from monoquant.errors import ConfigError, quoted
from monoquant.testing.zoo.other_kinds import CUSTOM, TRANSPOSED_LINEAR, UNSUPPORTED
from monoquant.testing.zoo.small import SmallBlock, SmallModel, small_batches, small_model
from monoquant.testing.zoo.specimen import Specimen, make_gaussian
from monoquant.testing.zoo.torch_kinds import (
    CONVOLUTIONS,
    EMBEDDINGS,
    LINEAR,
    RECURRENT,
    REPARAMETRIZED,
    TRANSFORMERS,
)

__all__ = [
    "SmallBlock",
    "SmallModel",
    "Specimen",
    "make_gaussian",
    "small_batches",
    "small_model",
    "specimen",
    "specimens",
]


def specimens() -> tuple[Specimen, ...]:
    """One specimen of every kind, that of transformers' Conv1D only where transformers is installed.

    Returns:
        Specimens with different names. Each can be quantized; the last ones hold a layer that is unsupported.
    """
    installed = importlib.util.find_spec("transformers") is not None
    own = (*LINEAR, *CONVOLUTIONS, *EMBEDDINGS, *TRANSFORMERS, *RECURRENT, *REPARAMETRIZED, *CUSTOM)
    return (*own, *([TRANSPOSED_LINEAR] if installed else []), *UNSUPPORTED)


def specimen(name: str) -> Specimen:
    """The specimen of one kind.

    Args:
        name: Its name.

    Raises:
        ConfigError: When there is none of this name.
    """
    found = {one.name: one for one in specimens()}
    if name not in found:
        raise ConfigError(f"no specimen is called {name!r}: give one of {quoted(found)}")
    return found[name]
