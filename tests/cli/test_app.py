"""The command line: exit codes, and which stream says what."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import monoquant as mq
from monoquant import cli
from monoquant.hooks.loading import Source


def test_demo_runs_as_a_command(tmp_path: Path) -> None:
    """A process of its own exits with 0, writes to stdout only, and keeps the files where it was told."""
    command = [sys.executable, "-m", "monoquant", "demo", "--steps", "1", "--keep", str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "AccuracyWarning" not in done.stderr
    assert done.stdout.startswith("1. Text")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["float.safetensors", "int4.safetensors"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is that of the package."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"monoquant {mq.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Usage: monoquant"),
        (["train"], "No such command 'train'"),
        (["demo", "--steps", "0"], "0 is not in the range x>=1"),
        (["demo", "--steps", "-3"], "-3 is not in the range x>=1"),
        (["demo", "--steps", "many"], "'many' is not a valid integer range"),
        (["demo", "--colour"], "No such option '--colour'"),
        (["plugins", "--plugin"], "Option '--plugin' requires an argument"),
        (["plugins", "--quiet", "--verbose"], "--quiet and --verbose exclude each other"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, the reason on stderr, nothing on stdout."""
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert text in shown.err


@pytest.mark.parametrize(
    ("arguments", "command", "said"),
    [
        (["quantize", "x", "--json"], "quantize", "Missing option '-o'"),
        (["plan", "--json", "--no-such", "x"], "plan", "No such option"),
        (["plugins", "--json", "-q", "-v"], "plugins", "exclude each other"),
    ],
)
def test_wrong_usage_for_machines(
    arguments: list[str], command: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A document also where the command was not reached."""
    assert cli.main(arguments) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["command"], found["exit_code"]) == (command, 2)
    assert said in found["error"]["message"]


PLUGIN = """
import monoquant as mq

@mq.hookimpl
def monoquant_register_skip_rules():
    return [mq.NameRule("head")]
"""


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file with a plugin in the current folder; nothing is installed."""
    (tmp_path / "rules.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("monoquant.hooks.loading.installed", list)
    return "./rules.py"


def test_plugins_are_listed(rules: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With what they implement; without any it says so."""
    assert cli.main(["plugins", "--trust-code", "--plugin", rules]) == 0
    shown = capsys.readouterr()
    name, *hooks = shown.out.splitlines()
    assert name.startswith("rules.py (rules.py sha256:")
    assert name.endswith("): active")
    assert hooks == ["    monoquant_register_skip_rules"]
    assert shown.err == ""
    assert cli.main(["plugins"]) == 0
    assert capsys.readouterr().out == "no plugins\n"


def test_a_hook_that_nothing_calls_is_listed(rules: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt optional hook would be silent otherwise."""
    optional = "\n\n@mq.hookimpl(optionalhook=True)\ndef monoquant_register_devices(device): ...\n"
    Path(rules).write_text(f"{PLUGIN}{optional}")
    assert cli.main(["plugins", "--trust-code", "--plugin", rules]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "    monoquant_register_skip_rules",
        "    monoquant_register_devices (never called: this monoquant does not have it)",
    ]


def test_notes_of_an_error_are_told(
    rules: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They name the plugin."""
    Path("settings.py").write_text(PLUGIN.replace("return", "raise mq.ConfigError('GATE is not set')\n    return"))
    monkeypatch.setattr("monoquant.cli.commands.demo.run_demo", lambda *_, plugins, **__: plugins.registry(mq.Scheme()))
    assert cli.main(["demo", "--trust-code", "--plugin", "settings.py"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "monoquant: GATE is not set"
    assert second.startswith("raised by monoquant_register_skip_rules of plugin settings.py")


def test_a_broken_plugin_is_listed_and_fails_the_command(rules: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong stands below its name, beside those that work."""
    Path("broken.py").write_text("import a_package_nobody_has")
    assert cli.main(["plugins", "--trust-code", "--plugin", "broken.py", "--plugin", rules]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("): broken")
    assert lines[1].startswith("    plugin broken.py: it cannot be imported (ModuleNotFoundError")
    assert lines[2].endswith("): active")


def test_plugins_can_be_blocked_and_turned_off(
    rules: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name, or all installed ones at once; a name that nobody has is one clean message."""
    source = Source("example:example", mq.Origin("example", "2.0"), lambda: mq)
    monkeypatch.setattr("monoquant.hooks.loading.installed", lambda: [source])
    assert cli.main(["plugins", "--block-plugin", "example"]) == 0
    assert capsys.readouterr().out == "example:example (example 2.0): blocked\n"
    assert cli.main(["plugins", "--no-plugins"]) == 0
    assert capsys.readouterr().out == "no plugins\n"
    assert cli.main(["plugins", "--block-plugin", "other"]) == 2
    assert capsys.readouterr().err.startswith(
        "monoquant: no plugin to block is called 'other', the plugins are: example"
    )


def test_calls_of_hooks_can_be_traced(rules: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, so that the output stays clean."""
    assert cli.main(["plugins", "--trust-code", "--plugin", rules, "--trace-plugins"]) == 0
    shown = capsys.readouterr()
    assert "rules.py sha256:" in shown.err
    assert "monoquant_register_skip_rules(scheme=Scheme) -> [NameRule('head')]" in shown.err
    assert "->" not in shown.out


def test_the_demo_takes_plugins(
    rules: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As everything does that quantizes."""
    given: list[mq.PluginManager] = []
    monkeypatch.setattr("monoquant.cli.commands.demo.run_demo", lambda *_, plugins, **__: given.append(plugins))
    assert cli.main(["demo", "--trust-code", "--plugin", rules]) == 0
    assert [origin.name for origin in given[0].plugins] == ["rules.py"]
    Path("broken.py").write_text("import a_package_nobody_has")
    assert cli.main(["demo", "--trust-code", "--plugin", "broken.py"]) == 3
    assert capsys.readouterr().err.startswith("monoquant: plugin broken.py: it cannot be imported")


def test_failures_have_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What a user can mend is one clean message."""

    def fail(*_: Any, **__: Any) -> None:
        raise mq.InputError("nothing to do")

    monkeypatch.setattr("monoquant.cli.commands.demo.run_demo", fail)
    assert cli.main(["demo"]) == 3
    assert capsys.readouterr().err == "monoquant: nothing to do\n"


def test_ctrl_c_has_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupted command says so and exits with 130."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("monoquant.cli.commands.demo.run_demo", interrupt)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "monoquant: interrupted: every file is as it was before, or complete\n"


def test_a_reader_that_leaves_is_no_traceback() -> None:
    """``monoquant demo | head -1`` ends quietly."""
    command = [sys.executable, "-m", "monoquant", "demo", "--steps", "1"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    assert demo.stderr is not None
    assert demo.stdout.readline().startswith("1. Text")
    demo.stdout.close()
    told = demo.stderr.read()
    demo.stderr.close()
    assert demo.wait() == 0
    assert "Traceback" not in told


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the page on the command line says: a script for the shell, which asks again with what was typed."""
    monkeypatch.setenv("_MONOQUANT_COMPLETE", f"{shell}_source")
    assert cli.main([]) == 0
    assert "_MONOQUANT_COMPLETE" in capsys.readouterr().out
    monkeypatch.setenv("_MONOQUANT_COMPLETE", f"{shell}_complete")
    for words, wanted in (("monoquant qu", "quantize"), ("monoquant quantize --group", "--group-size")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", words.split()[-1] if shell == "fish" else str(len(words.split()) - 1))
        assert cli.main([]) == 0
        assert wanted in capsys.readouterr().out
