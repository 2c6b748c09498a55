"""What setup.py builds, with and without a compiler that works, from a copy of the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from monoquant_cpu import Library, Unavailable
from monoquant_cpu.library import open_library

PLUGIN = Path(__file__).parents[1]
NATIVE = Path("src", "monoquant_cpu", "native")
NOT_COPIED = shutil.ignore_patterns("build", "dist", "*.egg-info", "_native.*", "__pycache__", ".*")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The plugin, free of what was built before."""
    copy = tmp_path / "sources"
    shutil.copytree(PLUGIN, copy, ignore=NOT_COPIED)
    return copy


@pytest.fixture
def small_sources(sources: Path) -> Path:
    """The plugin with a library that is compiled in no time."""
    for source in (sources / NATIVE).glob("*.cpp"):
        source.unlink()
    (sources / NATIVE / "version.cpp").write_text('extern "C" int mq_version(void) { return 0; }\n', encoding="utf-8")
    return sources


@pytest.fixture
def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("there is no C++ compiler")
    return found


def build(sources: Path, what: str, **environment: str) -> tuple[Path, str]:
    """What a hook of the build backend makes, and what it writes to its log."""
    out = sources.parent / what
    hook = f"from setuptools import build_meta; print(build_meta.build_{what}({str(out)!r}))"
    inherited = {name: value for name, value in os.environ.items() if name not in ("CXX", "MONOQUANT_CPU_NO_BUILD")}
    done = subprocess.run(
        [sys.executable, "-c", hook], cwd=sources, env={**inherited, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return out / done.stdout.split()[-1], done.stdout + done.stderr


def installed(wheel: Path) -> Library | Unavailable:
    """What load() gives where the wheel is installed."""
    folder = wheel.parent / "installed"
    shutil.unpack_archive(wheel, folder, "zip")
    return open_library(folder / "monoquant_cpu")


def test_one_wheel_for_every_python(sources: Path, compiler: str) -> None:
    wheel, _ = build(sources, "wheel", CXX=compiler)
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    found, names = installed(wheel), ZipFile(wheel).namelist()
    assert {"monoquant_cpu/_native.so", "monoquant_cpu/py.typed"} <= set(names)
    assert not [name for name in names if "/native/" in name or name.endswith(".missing")]
    assert isinstance(found, Library) or "none of the instruction sets" in found.reason


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"MONOQUANT_CPU_NO_BUILD": "1"}, "MONOQUANT_CPU_NO_BUILD was set when it was built"),
        ({"CXX": "/nonexistent"}, "no C++17 compiler worked when it was built (CXX=/nonexistent)"),
        ({"CXX": "false --now"}, "no C++17 compiler worked when it was built (CXX=false --now)"),
        ({"PATH": ""}, "no C++17 compiler worked when it was built (c++, g++ and clang++)"),
        ({"_PYTHON_HOST_PLATFORM": "linux-riscv64"}, "there are no kernels for linux-riscv64"),
    ],
)
def test_without_a_compiler_it_is_a_pure_package(sources: Path, environment: dict[str, str], reason: str) -> None:
    wheel, log = build(sources, "wheel", **environment)
    assert f"monoquant-cpu is built without its native library: {reason}" in log
    assert wheel.name.endswith("-py3-none-any.whl")
    found = installed(wheel)
    assert isinstance(found, Unavailable)
    assert reason in found.reason


def test_no_build_is_a_switch_that_can_be_off(sources: Path) -> None:
    _, log = build(sources, "wheel", MONOQUANT_CPU_NO_BUILD="0", CXX="/nonexistent")
    assert "no C++17 compiler worked" in log


@pytest.mark.skipif(sysconfig.get_platform() != "linux-x86_64", reason="names flags for x86-64")
def test_a_compiler_that_does_not_know_an_instruction_set(sources: Path, compiler: str) -> None:
    old = sources.parent / "old-compiler"
    old.write_text(f'#!/bin/sh\ncase "$*" in *-mavx512*|*-mavxvnni*) exit 1;; esac\nexec {compiler} "$@"\n')
    old.chmod(0o755)
    wheel, log = build(sources, "wheel", CXX=str(old))
    assert "built without" not in log
    found = installed(wheel)
    assert isinstance(found, Library)
    assert found.isas == ("avx2",)


def test_sources_that_do_not_compile_are_an_error(small_sources: Path, compiler: str) -> None:
    """A library that cannot be built for a reason of its own is not left out silently."""
    (small_sources / NATIVE / "more.cpp").write_text("#error broken\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="broken"):
        build(small_sources, "wheel", CXX=compiler)


@pytest.mark.skipif(sysconfig.get_platform().startswith("macosx"), reason="the linker is another")
def test_missing_functions_are_an_error(small_sources: Path, compiler: str) -> None:
    source = "int missing(void);\nint present(void) { return missing(); }\n"
    (small_sources / NATIVE / "more.cpp").write_text(source, encoding="utf-8")
    with pytest.raises(RuntimeError, match="missing"):
        build(small_sources, "wheel", CXX=compiler)


def test_editable_installs_have_the_library_beside_the_sources(small_sources: Path, compiler: str) -> None:
    package = small_sources / "src" / "monoquant_cpu"
    build(small_sources, "editable", CXX=compiler)
    assert (package / "_native.so").exists()
    build(small_sources, "editable", MONOQUANT_CPU_NO_BUILD="1")
    assert not (package / "_native.so").exists()
    assert (package / "_native.missing").exists()
    wheel, _ = build(small_sources, "wheel", CXX=compiler)
    assert "monoquant_cpu/_native.missing" not in ZipFile(wheel).namelist()


def test_source_distributions_have_all_sources(sources: Path) -> None:
    archive, _ = build(sources, "sdist", MONOQUANT_CPU_NO_BUILD="1")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    written = {str(path.relative_to(PLUGIN)) for path in (PLUGIN / NATIVE).rglob("*") if path.is_file()}
    assert written
    assert written | {"setup.py", "pyproject.toml", "README.md"} <= names
