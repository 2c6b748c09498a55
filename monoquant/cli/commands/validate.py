"""``monoquant validate``: is a quantized model sound, and good enough."""

from __future__ import annotations

import attrs
import click

from monoquant.api import Gate
from monoquant.cli.exits import EXIT_FINE, EXIT_GATE
from monoquant.cli.opening import opened
from monoquant.cli.recipe_options import recipe_options
from monoquant.cli.session import Session, command
from monoquant.errors import InputError
from monoquant.opening import OpenedKind, OpenedModel
from monoquant.recipes import Recipe, gate_of
from monoquant.report import QuantReport, compare_weights
from monoquant.report.plain import to_plain
from monoquant.report.table import format_db
from monoquant.report.wording import told
from monoquant.values import Finding, Severity
