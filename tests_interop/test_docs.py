"""docs/interop.md runs as it stands and prints what it says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from transformers.quantizers import auto

RUN_PAGE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "test_docs.py"))["run_page"]


@pytest.mark.filterwarnings("ignore:the GGUF file has no tokenizer")  # as the page says
def test_the_page_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, as a user's."""
    monkeypatch.chdir(tmp_path)
    try:
        pairs = RUN_PAGE("interop.md")
    finally:
        auto.AUTO_QUANTIZER_MAPPING.pop("monoquant", None)
        auto.AUTO_QUANTIZATION_CONFIG_MAPPING.pop("monoquant", None)
    assert len(pairs) == 4
    for said, printed in pairs:
        assert printed == said
