"""What is imported when: nothing of torch where nobody asked, nothing of pytest in a library."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import monoquant.testing

ROOT = Path(__file__).parents[2]
PACKAGE = Path(monoquant.testing.__file__).parents[2]
TELL = """

def pytest_sessionfinish():
    import sys
    print("imported:", *sorted({"torch", "monoquant"} & {*sys.modules}))
"""


def run(*arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-W", "ignore", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}  # where this monoquant is, wherever a test runs
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd, env=environment)
    return done.stdout


def collected(conftest: str, folder: Path) -> str:
    """What pytest says when it collects a project that has nothing to do with quantization."""
    (folder / "conftest.py").write_text(conftest + TELL, encoding="utf-8")
    (folder / "test_other.py").write_text("def test_other():\n    pass\n", encoding="utf-8")
    return run("-m", "pytest", "--co", "-q", "-s", "-p", "no:cacheprovider", cwd=folder)


def test_collecting_an_unrelated_project_imports_no_torch(tmp_path: Path) -> None:
    """monoquant is installed, and pytest does not know: no entry point loads it."""
    told = collected("", tmp_path)
    assert "test_other.py::test_other" in told
    assert "imported:\n" in told


def test_a_project_that_names_the_fixtures_has_them(tmp_path: Path) -> None:
    """The same project with one line more imports torch: so the test above would notice."""
    told = collected('pytest_plugins = ["monoquant.testing.fixtures"]', tmp_path)
    assert "imported: monoquant torch\n" in told
    assert "small_model" in run("-m", "pytest", "--fixtures", "-q", "-p", "no:cacheprovider", cwd=tmp_path)


def test_there_are_no_entry_points_for_test_runners() -> None:
    """Neither pytest nor hypothesis loads anything by itself, installed or as written in pyproject."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not {"pytest11", "hypothesis"} & set(project.get("entry-points", {}))
    points = metadata.distribution("monoquant").entry_points
    assert not {point.group for point in points} & {"pytest11", "hypothesis"}
    assert {one.split(">")[0] for one in project["optional-dependencies"]["testing"]} == {"pytest", "hypothesis"}


@pytest.mark.parametrize(
    "module", ["monoquant", "monoquant.testing", "monoquant.testing.zoo", "monoquant.testing.assertions"]
)
def test_what_needs_no_extra_imports_none(module: str, tmp_path: Path) -> None:
    """The library, the zoo and assert_pass work where neither hypothesis nor pytest is installed."""
    told = run("-c", f"import sys, {module}; print('modules:', *sys.modules)", cwd=tmp_path).split()
    assert "torch" in told or module == "monoquant.testing"
    assert {"hypothesis", "pytest"}.isdisjoint(told)


def test_names_are_there_when_asked_for() -> None:
    """All of them, in dir() as well; anything else is missing as in any module."""
    for name in monoquant.testing.__all__:
        assert getattr(monoquant.testing, name).__name__ == name
        assert name in dir(monoquant.testing)
    with pytest.raises(AttributeError, match="has no attribute 'Conformence'"):
        _ = monoquant.testing.Conformence


def test_without_hypothesis_the_error_says_what_to_install(tmp_path: Path) -> None:
    """The first thing that a newcomer meets who did not install the extra."""
    (tmp_path / "hypothesis.py").write_text("raise ModuleNotFoundError('no', name='hypothesis')", encoding="utf-8")
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "try:\n    from monoquant.testing import AlgorithmConformance\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    told = run("-c", code, cwd=tmp_path)
    assert told.strip() == "AlgorithmConformance needs hypothesis: pip install 'monoquant[testing]'"
