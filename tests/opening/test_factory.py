"""Code that a person names: run only where that is allowed, and its faults told as such."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.opening import OpenedKind, open_data, open_model

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Write:
    """Writes a module into the current folder, and gives its name."""
    monkeypatch.chdir(tmp_path)
    name = f"factory_of_{abs(hash(request.node.name))}"

    def written(code: str) -> str:
        (tmp_path / f"{name}.py").write_text(f"import torch\nfrom torch import nn\n{code}\n")
        return name

    yield written
    sys.modules.pop(name, None)


def test_a_model(write: Write) -> None:
    """Made once, and the same each time."""
    name = write("def build():\n    return nn.Linear(3, 2)")
    path = list(sys.path)
    opened = open_model(f"{name}:build", trust_code=True)
    assert sys.path == path
    assert (opened.kind, opened.path, opened.streamable) == (OpenedKind.FACTORY, None, None)
    assert opened.described == "factory of Linear, 8 parameters"
    assert isinstance(opened.module(), nn.Linear)
    assert opened.module() is opened.module()
    assert torch.equal(opened.state()["weight"], opened.module().weight)


def test_weights(write: Write) -> None:
    """A mapping of tensors, from a callable that lies deeper."""
    name = write("class Make:\n    @staticmethod\n    def weights():\n        return {'a': torch.ones(2, 2)}")
    opened = open_model(f"{name}:Make.weights", trust_code=True)
    assert opened.described == "factory of weights, 1 tensors"
    assert torch.equal(opened.state()["a"], torch.ones(2, 2))
    with pytest.raises(mq.InputError, match="is no model that can be run, but: factory of weights"):
        opened.module()


@pytest.mark.parametrize("opener", [open_model, open_data])
def test_nothing_runs_unless_it_is_trusted(write: Write, tmp_path: Path, opener: Callable[..., object]) -> None:
    """Neither the factory nor its module; the error says what would run."""
    name = write("open('ran', 'w')")
    with pytest.raises(mq.InputError, match=f"--trust-code .* runs the code of {name}, which may do anything"):
        opener(f"{name}:build")
    assert not (tmp_path / "ran").exists()


def test_a_path_that_exists_is_a_path(write: Write, tmp_path: Path) -> None:
    """Whatever it looks like; nothing runs."""
    name = write("open('ran', 'w')")
    (tmp_path / f"{name}:build").write_text("words")
    with pytest.raises(mq.FileError, match="is a file of another kind"):
        open_model(f"{name}:build", trust_code=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("code", "factory", "said"),
    [
        ("def build(): return 1 / 0", "build", r"the factory failed, ZeroDivisionError: division by zero \(line 3 of "),
        ("def build(): raise SystemExit", "build", r"the factory failed, SystemExit \(line 3 of"),
        ("def build(a): ...", "build", "the factory failed, TypeError: .*missing 1 required positional argument"),
        ("def build(): return 3", "build", "the factory returned a int: return a module, or tensors by name"),
        ("def build(): return {'a': 3}", "build", "these do not: 'a'"),
        ("def build(): return {}", "build", "the state dict is empty"),
        ("def build(): ...\n_own = build", "bulid", "has no 'bulid'; it has build$"),
        ("build = 3", "build", "is a int, which cannot be called"),
        ("import nowhere_at_all", "build", "cannot be imported, ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("1 / 0", "build", "cannot be imported, ZeroDivisionError"),
        ("(", "build", "cannot be imported, SyntaxError"),
        ("raise SystemExit(3)", "build", "cannot be imported, SystemExit: 3"),
    ],
)
def test_faults_of_the_code(write: Write, code: str, factory: str, said: str) -> None:
    """One error with the factory's name and the line, not a traceback."""
    name = write(code)
    with pytest.raises(mq.InputError, match=said) as caught:
        open_model(f"{name}:{factory}", trust_code=True)
    assert f"{name}:{factory}" in str(caught.value)


def test_interruption_is_none_of_them(write: Write) -> None:
    """Ctrl-C stops a program."""
    name = write("def build(): raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        open_model(f"{name}:build", trust_code=True)


def test_a_module_that_is_not_there(write: Write) -> None:
    """Of a package, which part."""
    for given, missing in (("nowhere_at_all:build", "nowhere_at_all"), ("json.nowhere:build", "json.nowhere")):
        with pytest.raises(mq.InputError, match=f"there is no module '{missing}'; install it, or go to its folder"):
            open_model(given, trust_code=True)


def test_data(write: Write) -> None:
    """Handed on as it is, if it can be gone through."""
    name = write(
        "def batches(): return [torch.ones(2, 3)] * 4\ndef one(): return torch.ones(3)\ndef number(): return 3"
    )
    assert len(list(open_data(f"{name}:batches", trust_code=True))) == 4
    for factory, kind in (("one", "Tensor"), ("number", "int")):
        with pytest.raises(mq.InputError, match=f"returned a {kind}: return a list of batches"):
            open_data(f"{name}:{factory}", trust_code=True)
    with pytest.raises(mq.ConfigError, match="has no text to work on"):
        open_data(f"{name}:batches", trust_code=True, tokenizer="x")
