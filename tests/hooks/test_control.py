"""Which plugins take part: arguments, the environment, files, and telling what happens."""

from __future__ import annotations

import itertools
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.hooks import specs

RULES = "monoquant_register_skip_rules"
SKIPPING = """
import monoquant as mq

@mq.hookimpl
def monoquant_register_skip_rules(scheme):
    return [mq.NameRule({entry!r})]
"""

Install = Callable[..., None]
SCHEME = mq.Scheme()


@pytest.fixture(autouse=True)
def no_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test installs is there."""
    from monoquant.hooks import loading

    found = loading.installed
    monkeypatch.setattr(loading, "installed", lambda: [one for one in found() if one.origin.name.startswith("example")])


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A file with a plugin."""
    path = tmp_path / "rules.py"
    path.write_text(SKIPPING.format(entry="2"))
    return path


def build() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.Linear(64, 64))


def skipped(plugins: Any = True) -> list[str]:
    return mq.quantize(build(), accuracy_warning="ignore", plugins=plugins).info.skipped_layers


class Plugin:
    """An object that is a plugin."""

    __version__ = "3.2"

    @mq.hookimpl
    def monoquant_register_skip_rules(self, scheme: mq.Scheme) -> list[mq.SkipRule]:
        return [mq.NameRule("0")]


def test_a_list_adds_to_the_installed_ones(install: Install, rules: Path) -> None:
    """A file, a module or an object, beside what is found anyway."""
    install("example-one", SKIPPING.format(entry="0"))
    module = types.ModuleType("mine")
    vars(module)[RULES] = mq.hookimpl(lambda: [mq.NameRule("0"), mq.NameRule("2")])
    assert skipped() == ["0"]
    assert skipped([str(rules)]) == skipped([rules]) == skipped(str(rules)) == ["0", "2"]
    install("example-one", "raise RuntimeError")  # a second copy, found first
    for plugins in (["no:example-one", rules], mq.PluginManager([rules], discover=False)):
        assert skipped(plugins) == ["2"]
    assert skipped(mq.PluginManager([Plugin()], discover=False)) == ["0"]
    assert mq.PluginManager([module, Plugin()], discover=False).plugins == (
        mq.Origin("Plugin", "3.2"),
        mq.Origin("mine"),
    )


def test_reports_and_files_tell_which_plugins_took_part(install: Install, rules: Path, tmp_path: Path) -> None:
    """With versions; of a file the hash of what it held. And which were blocked."""
    install("example-one", SKIPPING.format(entry="0"))
    install("example-two", SKIPPING.format(entry="0"), version="7")
    result = mq.quantize(build(), accuracy_warning="ignore", plugins=[rules, Plugin(), "no:example-two"])
    mq.save(result, tmp_path / "model.safetensors")
    stored = mq.load_report(tmp_path / "model.safetensors")
    digest = dict(stored.versions)[rules.as_posix()]
    assert set(stored.versions[2:]) == {("example-one", "1.2"), ("Plugin", "3.2"), (rules.as_posix(), digest)}
    assert digest.startswith("sha256:")
    assert len(digest) == len("sha256:") + 12
    assert "Plugins that were blocked: example-two 7." in [str(finding) for finding in stored.findings]
    rules.write_text(rules.read_text() + "# changed\n")
    assert mq.PluginManager([rules], discover=False).plugins[0].version != digest


def test_files_are_executed_only_when_they_are_asked_for(rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the folder that one works in nor the environment brings code."""
    rules.write_text("raise RuntimeError('executed')")
    monkeypatch.chdir(rules.parent)
    monkeypatch.setenv("MONOQUANT_PLUGINS", "on")
    assert skipped() == []
    assert [info.status for info in mq.list_plugins(["no:" + rules.as_posix(), rules])] == ["blocked"]
    expected = rf"^plugin {rules.as_posix()}: it cannot be imported \(RuntimeError: executed\); repair the file\n"
    with pytest.raises(mq.PluginError, match=expected):
        skipped([rules])


def test_a_broken_file_leaves_nothing_behind(rules: Path) -> None:
    """What was imported before stays, and what failed is gone."""
    before = {name for name in sys.modules if name.startswith("monoquant_plugin_")}
    rules.write_text("import this_is_missing")
    with pytest.raises(mq.PluginError):
        skipped([rules])
    assert {name for name in sys.modules if name.startswith("monoquant_plugin_")} == before
    rules.write_text(SKIPPING.format(entry="2"))
    assert skipped([rules]) == ["2"]
    assert skipped([rules]) == ["2"]  # the same file once more, afresh


def test_what_runs_is_what_was_hashed(rules: Path) -> None:
    """Also when a file changes within the same second to code of the same size; and no cache is left beside it."""
    for entry in ("0", "2", "0"):
        stamp = rules.stat()
        rules.write_text(SKIPPING.format(entry=entry))
        os.utime(rules, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert skipped([rules]) == [entry]
    assert [path.name for path in rules.parent.iterdir() if path.name.startswith("__")] == []


def test_code_in_files_is_python_as_it_is_written(rules: Path) -> None:
    """Classes in it know their module, annotations are not turned into texts, and other encodings are read."""
    text = (
        "# coding: latin-1\nimport attrs, sys\nassert __file__.endswith('rules.py')\n"
        "@attrs.frozen\nclass Value:\n    word: str = 'gr\u00fcn'\n"
        "assert Value.__annotations__ == {'word': str}\nassert sys.modules[Value.__module__].Value is Value\n"
    )
    rules.write_bytes((text + SKIPPING.format(entry="2")).encode("latin-1"))
    assert skipped([rules]) == ["2"]


@pytest.mark.parametrize(
    ("plugins", "text"),
    [
        (["example-one"], "'example-one' is no plugin: give the path of a .py file, a module or an object"),
        ("rules.txt", "'rules.txt' is no plugin"),
        (3, "plugins=3: give True, False, a PluginManager, or a list"),
        (None, "plugins=None: give True, False"),
        (Plugin, "plugins=<class .*: give True, False"),
        (["no:example-tow"], "no plugin to block is called 'example-tow', the plugins are: example-one; correct or"),
    ],
)
def test_nonsense_is_refused(install: Install, plugins: Any, text: str) -> None:
    """With what would be right; a name to block that nobody has may be a misspelt one that goes on working."""
    install("example-one", SKIPPING.format(entry="0"))
    with pytest.raises(mq.ConfigError, match=text):
        skipped(plugins)


def test_a_missing_file_is_told() -> None:
    """Like any broken plugin."""
    with pytest.raises(mq.PluginError, match=r"^plugin nowhere/rules.py: there is no such file; give the path"):
        skipped(["nowhere/rules.py"])


def test_a_file_that_is_given_twice_is_told(rules: Path) -> None:
    """Its rules would be asked twice."""
    with pytest.raises(mq.PluginError, match=r"another plugin is called .* already; remove one of them"):
        skipped([rules, rules])


@pytest.mark.parametrize("hook", specs.hook_names())
def test_a_plugin_of_any_kind_is_recorded(hook: str) -> None:
    """Whatever it brings, the report names it."""
    brings = hook.startswith("monoquant_register_")
    members = {hook: mq.hookimpl(lambda _: [] if brings else None), "__version__": "2.0"}
    result = mq.quantize(build(), accuracy_warning="ignore", plugins=[type("Only", (), members)()])
    assert ("Only", "2.0") in result.report.versions
    assert "with monoquant" in str(result.report)
    assert "Only 2.0" in str(result.report)


def test_a_class_is_told_by_its_name() -> None:
    """It is what was given, and an instance was wanted."""
    with pytest.raises(mq.PluginError, match=r"^plugin Plugin 3\.2: Plugin is a class; register a module or an"):
        skipped([Plugin])


@pytest.mark.parametrize("value", ["off", "0", "FALSE", " no "])
def test_the_environment_turns_installed_plugins_off(
    install: Install, rules: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """They are not even imported; what the caller gives takes part all the same."""
    install("example-one", "raise RuntimeError")
    monkeypatch.setenv("MONOQUANT_PLUGINS", value)
    assert skipped() == []
    assert skipped([rules]) == ["2"]
    assert skipped(["no:example-one"]) == []
    assert mq.list_plugins() == ()


@pytest.mark.parametrize("variable", ["MONOQUANT_PLUGINS", "MONOQUANT_TRACE_PLUGINS"])
def test_what_the_environment_must_say(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """On or off, and nothing that could be taken for the name of a plugin."""
    monkeypatch.setenv(variable, "monoquant-moe")
    with pytest.raises(mq.ConfigError, match=f"{variable}='monoquant-moe': set it to on or off"):
        skipped()


def test_the_environment_blocks_plugins(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """By names that commas separate; a name that is not there is told, and plugins=False asks for none."""
    for name, entry in (("example-one", "0"), ("example-two", "2")):
        install(name, SKIPPING.format(entry=entry))
    monkeypatch.setenv("MONOQUANT_BLOCK_PLUGINS", "Example_One, ")
    assert skipped() == ["2"]
    monkeypatch.setenv("MONOQUANT_BLOCK_PLUGINS", "example-one,example-two")
    assert skipped() == []
    monkeypatch.setenv("MONOQUANT_BLOCK_PLUGINS", "example-three")
    with pytest.raises(mq.ConfigError, match="'example-three', the plugins are: example-one, example-two"):
        skipped()
    assert skipped(False) == []


def test_one_of_several_plugins_of_a_distribution_can_be_blocked(install: Install) -> None:
    """By distribution and entry point; the distribution's name alone blocks all."""
    source = SKIPPING.format(entry="0") + (
        "class Other:\n    @mq.hookimpl\n"
        "    def monoquant_register_skip_rules(self):\n        return [mq.NameRule('2')]\n"
        "other = Other()\n"
    )
    install("example-two", source, entry_points={"first": "example_two", "second": "example_two:other"})
    assert skipped() == ["0", "2"]
    assert skipped(["no:example-two:first"]) == ["2"]
    assert skipped(["no:example-two"]) == []
    manager = mq.PluginManager()
    manager.block("example-two:second")
    assert skipped(manager) == ["0"]
    with pytest.raises(mq.ConfigError, match="no plugin to block is called 'example-two:second'"):
        manager.block("example-two:second")
    assert [(info.name, info.status) for info in manager.describe()] == [
        ("example-two:first", "active"),
        ("example-two:second", "blocked"),
    ]


def test_errors_name_the_entry_point_where_it_is_not_the_distribution(install: Install) -> None:
    """A distribution may bring several plugins, of which one is broken."""
    install("example-two", SKIPPING.format(entry="0"), entry_points={"first": "example_two", "second": "missing"})
    with pytest.raises(mq.PluginError, match=r"^plugin second of example-two 1\.2: its entry point 'missing'"):
        skipped()


def test_listing_shows_names_hooks_and_what_was_blocked(install: Install, rules: Path) -> None:
    """In the order of names, without running anything of a blocked one."""
    install("example-one", SKIPPING.format(entry="0"))
    install("example-two", "raise RuntimeError")
    found = mq.list_plugins([rules, "no:example-two"])
    assert [(info.name, info.origin.version, info.status, info.hooks) for info in found][1:] == [
        ("example-one:example-one", "1.2", "active", (RULES,)),
        ("example-two:example-two", "1.2", "blocked", ()),
    ]
    assert found[0].name == rules.as_posix()


def test_a_trace_tells_every_call(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    """Plugin, hook, the kinds of arguments, the answer and the time; to a function, or to stderr."""
    install("example-one", SKIPPING.format(entry="0"))
    lines: list[str] = []
    skipped(mq.PluginManager(trace=lines.append))
    (mine,) = [line for line in lines if line.startswith("example-one")]
    text, _, time = mine.rpartition(" [")
    assert text == f"example-one 1.2: {RULES}(scheme=Scheme) -> [NameRule('0')]"
    assert time.endswith(" ms]")
    built_in = [line.partition("(")[0] for line in lines if line not in (mine,)]
    assert "monoquant: monoquant_register_warning_checks" in built_in
    assert capsys.readouterr().err == ""
    skipped(mq.PluginManager(trace=True))
    assert text in capsys.readouterr().err


def test_the_environment_turns_the_trace_on(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of what raises; an argument is stronger."""
    install("example-one", SKIPPING.replace("return", "raise KeyError #").format(entry="0"))
    monkeypatch.setenv("MONOQUANT_TRACE_PLUGINS", "on")
    with pytest.raises(mq.PluginError):
        skipped()
    assert f"example-one 1.2: {RULES}(scheme=Scheme) raised KeyError:" in capsys.readouterr().err
    mq.PluginManager(discover=False, trace=False).registry(SCHEME)
    assert capsys.readouterr().err == ""


def test_a_trace_tells_watchers(capsys: pytest.CaptureFixture[str]) -> None:
    """Calls around passes are told as well, with their kinds and not with what the context holds."""

    class Watcher:
        @mq.hookimpl
        def monoquant_after_pass(self, pass_: mq.Pass) -> None: ...

    lines: list[str] = []
    skipped(mq.PluginManager([Watcher()], discover=False, trace=lines.append))
    told = [line.rpartition(" [")[0] for line in lines if line.startswith("Watcher")]
    assert told[0] == "Watcher: monoquant_after_pass(pass_=SkipSelectionPass, context=QuantContext, error=None) -> None"
    assert len(told) == 7


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"trace": "yes"}, "trace='yes': give True, False or a function that takes a text"),
        ({"on_broken": "ignore"}, "on_broken='ignore': give 'error' or 'leave out'"),
        ({"discover": 1}, "discover=1: give True or False"),
        ({"add": 3}, "add=3: give a list"),
        ({"block": 3}, "block=3: give a list"),
    ],
)
def test_wrong_options_of_a_manager_are_refused(options: dict[str, Any], text: str) -> None:
    """When it is built."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.PluginManager(**{"discover": False, **options})


def test_every_function_takes_plugins(rules: Path, tmp_path: Path) -> None:
    """All that ask plugins can be told which."""
    data = [torch.randn(60, 64)]
    for _, info in (
        mq.static_quantize(build(), data, plugins=[rules], accuracy_warning="ignore"),
        mq.dynamic_quantize(build(), plugins=[rules], accuracy_warning="ignore"),
    ):
        assert info.skipped_layers == ["2"]
    result = mq.quantize(build(), plugins=False, accuracy_warning="ignore")
    rules.write_text("raise RuntimeError")
    calls: list[Callable[[], Any]] = [
        lambda: mq.save(result, tmp_path / "a.safetensors", plugins=[rules]),
        lambda: mq.load(tmp_path / "a.safetensors", build(), plugins=[rules]),
        lambda: mq.render_report(result.report, plugins=[rules]),
        lambda: mq.save_report(result.report, tmp_path / "a.txt", plugins=[rules]),
    ]
    for call in calls:
        with pytest.raises(mq.PluginError, match="cannot be imported"):
            call()


def test_the_order_of_installing_and_giving_makes_no_difference(install: Install, tmp_path: Path) -> None:
    """Reports are equal, down to the last finding."""
    files = []
    for name in ("a", "b", "c"):
        files.append(tmp_path / f"{name}.py")
        files[-1].write_text(SKIPPING.format(entry="0") + f"# {name}\n")
    reports = [
        mq.quantize(build(), plugins=list(order), accuracy_warning="ignore").report
        for order in itertools.permutations(files)
    ]
    assert all(report == reports[0] for report in reports)


class Named:
    """An object that says what it is called."""

    def __init__(self, name: Any, layer: str) -> None:
        self.plugin_name, self.layer = name, layer

    @mq.hookimpl
    def monoquant_register_skip_rules(self) -> list[mq.SkipRule]:
        return [mq.NameRule(self.layer)]


def test_two_objects_of_one_class_can_have_names() -> None:
    """Reports and blocking know them by these."""
    plugins = [Named("first", "0"), Named("second", "2")]
    manager = mq.PluginManager(plugins, discover=False)
    assert manager.plugins == (mq.Origin("first"), mq.Origin("second"))
    assert manager.registry(mq.Scheme()).skip_rules == (
        mq.Registered(mq.NameRule("0"), mq.Origin("first")),
        mq.Registered(mq.NameRule("2"), mq.Origin("second")),
    )
    assert mq.PluginManager(plugins, discover=False, block=["first"]).plugins == (mq.Origin("second"),)
    with pytest.raises(mq.PluginError, match=r"called 'first' already; .* give an object a plugin_name of its own"):
        mq.PluginManager([Named("first", "0"), Named("first", "2")], discover=False)


@pytest.mark.parametrize("name", ["", " ", 3, None])
def test_a_plugin_name_is_a_text(name: object) -> None:
    """Or it is left out."""
    with pytest.raises(mq.ConfigError, match=r"^plugin Named: plugin_name=.*; give a text, or leave it out$"):
        mq.PluginManager([Named(name, "0")], discover=False)


def test_a_file_is_blocked_as_it_was_given(rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same text means the same file in both places."""
    monkeypatch.chdir(rules.parent)
    given = f"./{rules.name}"
    manager = mq.PluginManager([given], discover=False, block=[given])
    assert (manager.plugins, [origin.name for origin in manager.blocked]) == ((), [rules.name])
