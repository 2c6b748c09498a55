"""Choose again how a quantized model multiplies."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from monoquant.errors import InputError
from monoquant.hooks import PluginManager, Plugins, manager_of
from monoquant.kernels.choice import Offer
from monoquant.modules import kernel_compute
from monoquant.registry import Registry


def choose_kernels(model: nn.Module, *, exact: bool = False, plugins: Plugins = True) -> dict[str, str]:
    """Choose the kernels of a quantized model anew, in place: its weights stay as they are.

    ``quantize`` and ``load`` have chosen already, and moving a model to another device or dtype chooses again from the
    same kernels. Call this where others are to be used: after a plugin was installed, or to compare.

    Args:
        model: A model that :func:`quantize` or :func:`load` made.
        exact: Whether kernels must be as exact as a float32 product; default False.
        plugins: As in :func:`quantize`.

    Returns:
        Names of the chosen kernels, by name of the layer.

    Raises:
        ConfigError: For wrong options.
        InputError: When no layer of the model multiplies through a kernel.
        PluginError: When an installed plugin is wrong.
    """
    offer = offered(manager_of(plugins), exact=exact)
    with torch.inference_mode(False):
        chosen = kernel_compute.choose_kernels(model, offer) if isinstance(model, nn.Module) else {}
    if not chosen:
        raise InputError(
            "no layer of the model multiplies through a kernel: give a model that quantize() or load() made"
        )
    return chosen


def offered(manager: PluginManager, *, exact: bool) -> Offer:
    """All kernels that plugins bring and that compute what they should; a warning tells of others.

    Args:
        manager: Who is asked.
        exact: Whether approximate ones are forbidden.
    """
    kernels, disabled = manager.kernels()
    for one in disabled:
        warnings.warn(f"kernel {one.value} [{one.origin}]; another takes its place", RuntimeWarning, stacklevel=3)
    return Registry(kernels=kernels).offer(exact=exact)
