"""Real text that every CPython ships: the language reference in `pydoc_data.topics`, and standard-library docstrings.

All of it is in a fixed order for one Python version. Another version has other text, so compare only numbers that
were measured under the same one.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

SOURCES = [
    "argparse",
    "ast",
    "asyncio.base_events",
    "asyncio.events",
    "asyncio.streams",
    "asyncio.tasks",
    "bdb",
    "calendar",
    "cmd",
    "codecs",
    "collections",
    "concurrent.futures._base",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "dis",
    "doctest",
    "email.header",
    "email.message",
    "enum",
    "filecmp",
    "fractions",
    "ftplib",
    "functools",
    "gettext",
    "glob",
    "gzip",
    "hashlib",
    "heapq",
    "html.parser",
    "http.client",
    "http.cookiejar",
    "http.server",
    "imaplib",
    "importlib.abc",
    "inspect",
    "ipaddress",
    "json",
    "json.decoder",
    "json.encoder",
    "linecache",
    "locale",
    "logging",
    "logging.handlers",
    "lzma",
    "mailbox",
    "mimetypes",
    "multiprocessing.managers",
    "multiprocessing.pool",
    "netrc",
    "numbers",
    "optparse",
    "os",
    "pathlib",
    "pdb",
    "pickle",
    "pickletools",
    "pkgutil",
    "platform",
    "plistlib",
    "pprint",
    "profile",
    "pydoc",
    "queue",
    "random",
    "sched",
    "selectors",
    "shelve",
    "shutil",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "timeit",
    "tokenize",
    "traceback",
    "turtle",
    "types",
    "typing",
    "unittest.case",
    "unittest.mock",
    "urllib.parse",
    "urllib.request",
    "uuid",
    "warnings",
    "weakref",
    "webbrowser",
    "xml.dom.minidom",
    "xml.etree.ElementTree",
    "zipfile",
]
"""Modules whose docstrings are read; all are written in Python on every platform."""

CALIBRATION_SENTENCES = 800
HELD_OUT_SENTENCES = 200


@cache
def docstrings() -> dict[str, tuple[str, ...]]:
    """The docstrings of each module of `SOURCES`, read from its source without running it."""
    return {name: tuple(_docstrings_of(_source(name))) for name in SOURCES}


@cache
def sentences() -> tuple[str, ...]:
    """All different English-looking sentences of the docstrings, in a fixed order."""
    found: dict[str, None] = {}
    for texts in docstrings().values():
        for text in texts:
            found.update(dict.fromkeys(filter(_is_sentence, re.split(r"(?<=[.!?])\s+", " ".join(text.split())))))
    return tuple(found)


def calibration_and_held_out() -> tuple[list[str], list[str]]:
    """800 sentences to calibrate with and 200 others to measure on, both spread evenly over all sources."""
    wanted = CALIBRATION_SENTENCES + HELD_OUT_SENTENCES
    every = sentences()
    if len(every) < wanted:
        raise RuntimeError(f"This Python's docstrings give {len(every)} sentences; {wanted} are needed.")
    chosen = [every[index * len(every) // wanted] for index in range(wanted)]
    step = wanted // HELD_OUT_SENTENCES
    return [text for index, text in enumerate(chosen) if index % step], chosen[::step]


def calibration_text() -> str:
    """Running text to calibrate language models with: every second topic of Python's language reference."""
    return "\n\n".join(_topics()[1::2])


def evaluation_text() -> str:
    """Running text to measure language models on: the topics that `calibration_text` leaves out."""
    return "\n\n".join(_topics()[::2])


def _topics() -> list[str]:
    """The topics in the order of their names, each text once: some topics repeat others."""
    return list(dict.fromkeys(topics[name].strip() for name in sorted(topics)))


def _source(name: str) -> str:
    base = Path(sysconfig.get_path("stdlib"), *name.split("."))
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return file.read_text(encoding="utf-8")


def _docstrings_of(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield inspect.cleandoc(text)


def _is_sentence(text: str) -> bool:
    """Whether this looks like English prose rather than code, a table or a fragment."""
    letters = sum(character.isalpha() or character == " " for character in text)
    return 40 < len(text) < 200 and text[0].isupper() and text[-1] in ".!?" and letters > 0.9 * len(text)
