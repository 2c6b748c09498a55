"""What a person names on a command line, opened: models by what is in them, and calibration data."""

from monoquant.opening.data import open_data
from monoquant.opening.model import open_model
from monoquant.opening.opened import OpenedKind, OpenedModel

__all__ = ["OpenedKind", "OpenedModel", "open_data", "open_model"]
