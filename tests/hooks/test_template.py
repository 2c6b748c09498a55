"""plugins/monoquant-moe as a template: copied, renamed as its README says, installed, found and used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import monoquant as mq

TEMPLATE = Path(__file__).parents[2] / "plugins" / "monoquant-moe"
NAMES = {"monoquant-moe": "acme-routers", "monoquant_moe": "acme_routers", "\nmoe = ": "\nrouters = "}

USE = """
import torch
import monoquant as mq

class SparseMoe(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.router = torch.nn.Linear(64, 8)
        self.up = torch.nn.Linear(64, 64)

    def forward(self, hidden):
        return self.up(hidden) * self.router(hidden).amax(-1, keepdim=True)

torch.manual_seed(0)
for plugins in (True, False):
    report = mq.quantize(SparseMoe(), plugins=plugins, accuracy_warning="ignore").report
    router = next(record for record in report.layers if record.layer == "router")
    print(plugins, router.action.value, router.origin, sep="; ")
"""


def run(command: Sequence[str], **environment: str) -> str:
    """What a command writes to stdout; Python's own, in a process of its own."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copied(to: Path) -> Path:
    """The template under another name."""
    shutil.copytree(TEMPLATE, to, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".*"))
    for path in [path for path in to.rglob("*") if path.suffix in (".py", ".md", ".toml")]:
        text = path.read_text(encoding="utf-8")
        for old, new in NAMES.items():
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    (to / "src" / "monoquant_moe").rename(to / "src" / "acme_routers")
    return to


def has(distribution: str, oldest: int) -> bool:
    """Whether a distribution is installed; importing setuptools would change the process."""
    try:
        return int(version(distribution).partition(".")[0]) >= oldest
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that the copy is installed in: built by the setuptools that is here, without a network."""
    if not has("pip", 23) or not has("setuptools", 77):
        pytest.skip("needs pip and setuptools 77 or newer to build offline; tox -e plugins installs them")
    folder = tmp_path_factory.mktemp("template")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    target = folder / "site"
    run(["-m", "pip", "install", "--quiet", *offline, "--target", str(target), str(copied(folder / "acme-routers"))])
    return os.pathsep.join([str(target), str(Path(mq.__file__).parents[1])])


def test_the_copy_is_listed(site: str) -> None:
    """``monoquant plugins`` shows it under its own name, with its version."""
    (line,) = [one for one in run(["-m", "monoquant", "plugins"], PYTHONPATH=site).splitlines() if "acme" in one]
    assert line == "acme-routers:routers (acme-routers 0.1.0): active"


def test_the_copy_works_in_quantize(site: str) -> None:
    """Its rule keeps the router of a caller who did nothing but install it, and the report says whose rule it was."""
    used = run(["-c", USE], PYTHONPATH=site).splitlines()
    assert used == ["True; skip; acme-routers 0.1.0", "False; quantize; monoquant"]


def test_the_copy_has_all_that_its_readme_names(site: str) -> None:
    """What is typed stays typed, and nothing of the old name is left in what is installed."""
    package = Path(site.split(os.pathsep)[0]) / "acme_routers"
    assert {path.name for path in package.iterdir()} >= {"__init__.py", "experts.py", "py.typed", "rules.py"}
    assert not [path for path in package.glob("*.py") if "monoquant_moe" in path.read_text(encoding="utf-8")]
