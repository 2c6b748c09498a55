"""The programs in native/tests, which check the kernels without Python, under the compiler's sanitizers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from monoquant_cpu import Library, load

PLUGIN = Path(__file__).parents[1]
PROGRAMS = sorted((PLUGIN / "src" / "monoquant_cpu" / "native" / "tests").glob("check_*.cpp"))
SKIPPED = 77
"""What a program returns where it finds nothing to check."""


@attrs.frozen
class Build:
    """The library, compiled for programs that are linked with it."""

    compiler: list[str]
    objects: list[str]
    folder: Path

    def run(self, program: Path) -> subprocess.CompletedProcess[str]:
        binary = str(self.folder / program.stem)
        subprocess.run([*self.compiler, str(program), *self.objects, "-o", binary], check=True)
        # The thread sanitizer would give up where a child that was forked starts threads of its own.
        options = {**os.environ, "TSAN_OPTIONS": "die_after_fork=0"}
        return subprocess.run([binary], capture_output=True, text=True, check=False, env=options)


def setup_module() -> ModuleType:
    """setup.py, which knows how each file is compiled."""
    spec = importlib.util.spec_from_file_location("monoquant_cpu_setup", PLUGIN / "setup.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(PLUGIN / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runs(compiler: list[str], folder: Path) -> bool:
    """Whether a program that does nothing can be compiled, and run: not every kernel places memory as they need it."""
    source, binary = folder / "nothing.cpp", folder / "nothing"
    source.write_text("int main() { return 0; }\n", encoding="utf-8")
    compiled = subprocess.run([*compiler, str(source), "-o", str(binary)], capture_output=True, check=False)
    return compiled.returncode == 0 and subprocess.run([binary], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("native")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PLUGIN)
        patch.delenv("MONOQUANT_CPU_NO_BUILD", raising=False)
        setup: Any = setup_module()
        plan = setup.plan()
        if isinstance(plan, str):
            pytest.skip(plan)
        library = load()
        if isinstance(library, Library):  # what cannot run here need not be compiled once more
            plan = plan._replace(isas={isa: flags for isa, flags in plan.isas.items() if isa in library.isas})
        sources = {source.resolve(): flags for source, flags in plan.objects().items()}
    sanitized = ["-O1", "-g", f"-fsanitize={request.param}", "-fno-sanitize-recover=all"]
    if not runs([*plan.compiler, *sanitized], folder):
        pytest.skip(f"programs compiled by {plan.compiler[0]} with -fsanitize={request.param} do not run here")
    commands = []
    for source, flags in sources.items():
        target = str(folder / f"{source.stem}.o")
        commands.append([*plan.compiler, *flags, *sanitized, "-c", str(source), "-o", target])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    compiler = [*plan.compiler, *setup.FLAGS, *sanitized]
    return Build(compiler, [command[-1] for command in commands], folder)


def test_there_are_programs() -> None:
    assert "check_quantize" in [program.stem for program in PROGRAMS]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_program(build: Build, program: Path) -> None:
    done = build.run(program)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
