"""Builds the native library with the C++ compiler that is there; without one, the package says why it has none."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

PACKAGE = Path("src", "monoquant_cpu")
NATIVE = PACKAGE / "native"
LIBRARY = "_native.so"
MISSING = "_native.missing"
"""Stands in the library's place and says why it is not there; monoquant_cpu.library reads it."""

FLAGS = ["-O3", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-fPIC", "-pthread"]
LINK_FLAGS = ["-shared", "-pthread"]
LINK_FLAGS_IF_KNOWN = ["-static-libstdc++", "-static-libgcc", "-Wl,--no-undefined"]
EXACT_FLAGS = {"quantize": ["-ffp-contract=off"]}
"""By the first word of a file's name: what keeps its results the same, bit for bit."""

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", *AVX2]
X86 = {
    "avx2": AVX2,
    "avx_vnni": [*AVX2, "-mavxvnni"],
    "avx512": AVX512,
    "avx512_vnni": [*AVX512, "-mavx512vnni"],
}
ARM = {"neon": ["-march=armv8.2-a+dotprod"]}
ISA_FLAGS = {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}
"""By machine and by the end of a file's name; files for other machines are left out."""


class Plan(NamedTuple):
    """How the native library is compiled.

    Attributes:
        compiler: The command, with options that the caller put into CXX.
        isas: Flags of each instruction set that the compiler knows, and that there are kernels for.
        link_flags: Those that it takes.
    """

    compiler: Sequence[str]
    isas: dict[str, list[str]]
    link_flags: list[str]

    def objects(self) -> dict[Path, list[str]]:
        """Flags of each source file that is compiled."""
        known = {isa for isas in ISA_FLAGS.values() for isa in isas}
        defined = [f"-DMQ_WITH_{isa.upper()}" for isa in self.isas]
        found = {}
        for source in sorted(NATIVE.glob("*.cpp")):
            first, _, isa = source.stem.partition("_")
            if isa not in known or isa in self.isas:
                found[source] = [*FLAGS, *EXACT_FLAGS.get(first, []), *defined, *self.isas.get(isa, [])]
        return found


def plan() -> Plan | str:
    """How to build, or why nothing is built."""
    if os.environ.get("MONOQUANT_CPU_NO_BUILD", "0") != "0":
        return "MONOQUANT_CPU_NO_BUILD was set when it was built"
    platform = sysconfig.get_platform()
    isas = ISA_FLAGS.get(platform.rpartition("-")[2])
    if isas is None or platform.startswith("win"):
        return f"there are no kernels for {platform}"
    given = os.environ.get("CXX")
    for command in [given] if given else ["c++", "g++", "clang++"]:
        compiler = shlex.split(command)
        if accepts(compiler, [*FLAGS, *LINK_FLAGS]):
            written = {isa: flags for isa, flags in isas.items() if list(NATIVE.glob(f"*_{isa}.cpp"))}
            known = {isa: flags for isa, flags in written.items() if accepts(compiler, [*FLAGS, *flags, "-c"])}
            link = [flag for flag in LINK_FLAGS_IF_KNOWN if accepts(compiler, [*FLAGS, *LINK_FLAGS, flag])]
            return Plan(compiler, known, [*LINK_FLAGS, *link])
    return f"no C++17 compiler worked when it was built ({f'CXX={given}' if given else 'c++, g++ and clang++'})"


def accepts(compiler: Sequence[str], flags: Sequence[str]) -> bool:
    """Whether a compiler is there and knows these flags."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text('extern "C" int probe(void) { return 0; }\n')
        command = [*compiler, "-Werror", *flags, str(source), "-o", str(Path(folder, "probe.out"))]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


class NativeDistribution(Distribution):
    """A distribution that is a pure one where nothing native is built."""

    @cached_property
    def plan(self) -> Plan | str:
        return plan()

    def has_ext_modules(self) -> bool:
        return not isinstance(self.plan, str)


class BuildNative(Command):
    """Compiles the library, or writes down why there is none."""

    description = "compile the native library"
    user_options = ()
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    @property
    def built(self) -> Path:
        """The package as it is built."""
        return Path(self.build_lib or "", PACKAGE.name)

    @property
    def folder(self) -> Path:
        """Where the library goes."""
        return PACKAGE if self.editable_mode else self.built

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (LIBRARY, MISSING):
            (self.folder / name).unlink(missing_ok=True)
        native = self.distribution.plan
        if isinstance(native, str):
            logging.warning("monoquant-cpu is built without its native library: %s", native)
            (self.folder / MISSING).write_text(native, encoding="utf-8")
            return
        logging.info("compiling for %s with %s", ", ".join(native.isas), shlex.join(native.compiler))
        with tempfile.TemporaryDirectory() as objects:
            self.compile(native, Path(objects))

    def compile(self, native: Plan, folder: Path) -> None:
        commands = []
        for source, flags in native.objects().items():
            target = folder / f"{source.stem}.o"
            commands.append([*native.compiler, *flags, "-c", str(source), "-o", str(target)])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.execute_compiler, commands))
        targets = [command[-1] for command in commands]
        # A library that a running process has open is replaced, not written over.
        built = str(folder / LIBRARY)
        self.execute_compiler([*native.compiler, *targets, "-o", built, *native.link_flags])
        shutil.move(built, self.folder / LIBRARY)

    def execute_compiler(self, command: Sequence[str]) -> None:
        logging.info(shlex.join(command))
        subprocess.run(command, check=True)

    def get_source_files(self) -> list[str]:
        return [str(path) for path in sorted(NATIVE.rglob("*")) if path.suffix in (".cpp", ".h")]

    def get_outputs(self) -> list[str]:
        name = LIBRARY if self.distribution.has_ext_modules() else MISSING
        return [str(self.built / name)]

    def get_output_mapping(self) -> dict[str, str]:
        return {output: str(PACKAGE / Path(output).name) for output in self.get_outputs() if self.editable_mode}


class Build(build):
    """The usual steps, and the native library."""

    sub_commands = (*build.sub_commands, ("build_native", None))


class BuildWheel(bdist_wheel):
    """One wheel for every Python: ctypes loads the library, which knows neither Python nor torch."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        return "py3", "none", platform


if __name__ == "__main__":  # the tests import this file
    setup(
        distclass=NativeDistribution,
        cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": BuildWheel},
    )
