"""Installed plugins that are broken, each in its own way: the text people read, and that nobody else is harmed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.hooks import specs

RULES = "monoquant_register_skip_rules"
HOOKS = ", ".join(specs.hook_names())
IMPORT = "import monoquant as mq\n"
HOOK = IMPORT + "@mq.hookimpl\ndef monoquant_register_skip_rules(scheme):\n    "
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "import": ("import a_package_nobody_has", {}),
    "syntax": ("def broken(:\n", {}),
    "exit": ("raise SystemExit(3)", {}),
    "attribute": (IMPORT, {"attribute": ":plugin"}),
    "requirement": (HOOK + "return []", {"requires": "monoquant[testing]>=7,<8"}),
    "empty": (IMPORT, {}),
    "class": ("class Plugin:\n    pass\n", {"attribute": ":Plugin"}),
    "typo": (HOOK.replace("skip_rules", "skip_rule") + "return []", {}),
    "newer": (IMPORT + "@mq.hookimpl\ndef monoquant_register_devices(device):\n    return []", {}),
    "marker": ("def monoquant_register_skip_rules(scheme):\n    return []", {}),
    "argument": (HOOK.replace("(scheme)", "(scheme, bits)") + "return []", {}),
    "keyword": (HOOK.replace("(scheme)", "(*, scheme)") + "return []", {}),
    "variadic": (HOOK.replace("(scheme)", "(**options)") + "return []", {}),
    "wrapper": (HOOK.replace("hookimpl", "hookimpl(wrapper=True)") + "yield", {}),
    "order": (HOOK.replace("hookimpl", "hookimpl(tryfirst=True)") + "return []", {}),
    "async": (HOOK.replace("def ", "async def ") + "return []", {}),
    "value": ("monoquant_register_skip_rules = ['gate']", {}),
    "property": (
        "class Plugin:\n    @property\n    def monoquant_register_skip_rules(self):\n        return 1 / 0\n"
        "plugin = Plugin()",
        {"attribute": ":plugin"},
    ),
    "raising": (HOOK + "raise KeyError('table')", {}),
    "midway": (HOOK + "yield mq.NameRule('gate'); raise KeyError('table')", {}),
    "none": (HOOK + "pass", {}),
    "single": (HOOK + "return mq.NameRule('gate')", {}),
    "classes": (HOOK + "return [mq.NameRule]", {}),
    "texts": (HOOK + "return ['gate']", {}),
    "unnamed": (
        IMPORT + "class Mine(mq.WeightAlgorithm):\n    def solve(self, problem): ...\n"
        "@mq.hookimpl\ndef monoquant_register_algorithms():\n    return [Mine()]",
        {},
    ),
    "clash": (
        IMPORT + "class Mine(mq.Gptq):\n    pass\n"
        "@mq.hookimpl\ndef monoquant_register_algorithms():\n    return [Mine()]",
        {},
    ),
    "reserved": (
        IMPORT + "class Mine(mq.Gptq):\n    name = 'auto'\n"
        "@mq.hookimpl\ndef monoquant_register_algorithms():\n    return [Mine()]",
        {},
    ),
    "place": (
        IMPORT + "class Mine(mq.Pass):\n    def run(self, context): ...\n"
        "@mq.hookimpl\ndef monoquant_register_passes():\n    return [Mine()]",
        {},
    ),
}

TEXTS: dict[str, str] = {
    "import": (
        "plugin broken-import 1.2: its entry point 'broken_import' cannot be imported (ModuleNotFoundError: "
        "No module named 'a_package_nobody_has'); repair or uninstall broken-import"
    ),
    "syntax": (
        "plugin broken-syntax 1.2: its entry point 'broken_syntax' cannot be imported (SyntaxError: invalid "
        "syntax (broken_syntax.py, line 1)); repair or uninstall broken-syntax"
    ),
    "exit": (
        "plugin broken-exit 1.2: its entry point 'broken_exit' cannot be imported (SystemExit: 3); repair or "
        "uninstall broken-exit"
    ),
    "attribute": (
        "plugin broken-attribute 1.2: its entry point 'broken_attribute:plugin' cannot be imported "
        "(AttributeError: module 'broken_attribute' has no attribute 'plugin'); repair or uninstall "
        "broken-attribute"
    ),
    "requirement": (
        f"plugin broken-requirement 1.2: requires monoquant>=7,<8, and this is monoquant {mq.__version__}; "
        "install versions of both that fit, or uninstall broken-requirement"
    ),
    "empty": (f"plugin broken-empty 1.2: implements no hook; the hooks are {HOOKS}"),
    "class": ("plugin broken-class 1.2: Plugin is a class; register a module or an instance"),
    "typo": (
        f"plugin broken-typo 1.2: implements 'monoquant_register_skip_rule', which monoquant {mq.__version__} "
        f"does not have; did you mean '{RULES}'? If not, the plugin may be newer than this monoquant: upgrade "
        f"monoquant, or mark the function with @monoquant.hookimpl(optionalhook=True); the hooks are {HOOKS}"
    ),
    "newer": (
        f"plugin broken-newer 1.2: implements 'monoquant_register_devices', which monoquant {mq.__version__} "
        "does not have; the plugin may be newer than this monoquant: upgrade monoquant, or mark the function "
        f"with @monoquant.hookimpl(optionalhook=True); the hooks are {HOOKS}"
    ),
    "marker": (f"plugin broken-marker 1.2: {RULES} lacks the marker; put @monoquant.hookimpl above it"),
    "argument": (
        f"plugin broken-argument 1.2: {RULES} takes 'bits', and the hook passes scheme; leave it out, or "
        "upgrade monoquant if the plugin is newer"
    ),
    "keyword": (
        f"plugin broken-keyword 1.2: {RULES} has the keyword-only argument 'scheme', which pluggy does not "
        "fill; remove the * before it"
    ),
    "variadic": (
        f"plugin broken-variadic 1.2: {RULES} takes **options, and the hook passes scheme; name what you want of that"
    ),
    "wrapper": (
        f"plugin broken-wrapper 1.2: {RULES} is a wrapper; plugins are asked one by one, so return values of "
        "your own instead"
    ),
    "order": (f"plugin broken-order 1.2: {RULES} has tryfirst, which changes nothing; leave it out"),
    "async": (f"plugin broken-async 1.2: {RULES} is async; make it a plain function"),
    "value": (f"plugin broken-value 1.2: {RULES} is a list; make it a function that returns that"),
    "property": (
        f"plugin broken-property 1.2: reading its attribute {RULES} raised ZeroDivisionError: division by "
        "zero; make it readable, or rename it"
    ),
    "raising": (f"plugin broken-raising 1.2: {RULES} raised KeyError: 'table'; repair or block it"),
    "midway": (f"plugin broken-midway 1.2: {RULES} raised KeyError: 'table'; repair or block it"),
    "none": (f"plugin broken-none 1.2: {RULES} returned None; return instances of SkipRule in a list"),
    "single": (f"plugin broken-single 1.2: {RULES} returned NameRule('gate'); return instances of SkipRule in a list"),
    "classes": (
        f"plugin broken-classes 1.2: {RULES} returned the class NameRule; return instances of SkipRule in a list"
    ),
    "texts": (f"plugin broken-texts 1.2: {RULES} returned 'gate' in its list; return instances of SkipRule in a list"),
    "unnamed": ("plugin broken-unnamed 1.2: its algorithm Mine has no name; give the class a name of its own"),
    "clash": (
        "monoquant itself and plugin broken-clash 1.2 both bring an algorithm called 'gptq'; rename one, or "
        "block a plugin"
    ),
    "reserved": (
        "plugin broken-reserved 1.2: its algorithm Mine cannot be called 'auto', which means something else; "
        "give the class a name of its own"
    ),
    "place": (
        "plugin broken-place 1.2: its pass Mine does not say where it belongs; declare follows, after or "
        "before, with passes that are always there, such as SkipSelectionPass or PackPass"
    ),
}

WAY_OUT = "all else works without it: repair it, or block it by name in MONOQUANT_BLOCK_PLUGINS"
LOADING = [name for name in CASES if list(CASES).index(name) < list(CASES).index("raising")]
SOUND = HOOK + "return [mq.NameRule('0')]"

Install = Callable[..., None]


def use(plugins: Any = True) -> mq.QuantResult:
    """What somebody does who does not think of plugins."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))
    return mq.quantize(model, accuracy_warning="ignore", plugins=plugins)


@pytest.mark.parametrize("name", CASES)
def test_each_has_its_own_clear_text(install: Install, name: str) -> None:
    """It names plugin, distribution and version, and says what to do."""
    source, options = CASES[name]
    install(f"broken-{name}", source, **options)
    with pytest.raises(mq.PluginError) as caught:
        use()
    text, *way_out = str(caught.value).split("\n")
    assert text == TEXTS[name]
    # Where a pass belongs is only known with the others, when plugins have been asked.
    assert way_out == ([] if name == "place" else [WAY_OUT])


@pytest.mark.parametrize("name", CASES)
def test_it_can_be_blocked(install: Install, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Without it everything works, other plugins included; the report says what was left out."""
    source, options = CASES[name]
    install(f"broken-{name}", source, **options)
    install("example-sound", SOUND)
    result = use([f"no:broken_{name}"])
    assert result.info.skipped_layers == ["0"]
    (found,) = [finding for finding in result.report.findings if finding.code == "plugin-blocked"]
    assert str(found) == f"Plugins that were blocked: broken-{name} 1.2."
    monkeypatch.setenv("MONOQUANT_BLOCK_PLUGINS", f"broken-{name}")
    assert use().report == result.report


def test_all_are_told_together(install: Install) -> None:
    """One error for everything that cannot be loaded, in the order of names, however many there are."""
    for name in reversed(LOADING):
        source, options = CASES[name]
        install(f"broken-{name}", source, **options)
    install("example-sound", SOUND)
    with pytest.raises(mq.PluginError) as caught:
        use()
    first, *lines, last = str(caught.value).split("\n")
    assert first == f"{len(LOADING)} problems with plugins:"
    assert lines == [f"- {TEXTS[name]}" for name in sorted(LOADING)]
    assert last == "all else works without them: repair them, or block them by name in MONOQUANT_BLOCK_PLUGINS"


def test_all_that_fail_when_asked_are_told_together(install: Install) -> None:
    """So do those that were loaded and then raise, or return the wrong thing."""
    names = ["raising", "midway", "none", "single", "classes", "texts", "unnamed", "reserved", "clash"]
    for name in names:
        source, options = CASES[name]
        install(f"broken-{name}", source, **options)
    with pytest.raises(mq.PluginError) as caught:
        use()
    _, *lines, _ = str(caught.value).split("\n")
    assert sorted(lines) == sorted(f"- {TEXTS[name]}" for name in names)


@pytest.mark.parametrize("name", [name for name in CASES if name != "place"])
def test_the_list_tells_what_is_wrong(install: Install, name: str) -> None:
    """Listing plugins never fails; it shows the same text, beside those that work."""
    source, options = CASES[name]
    install(f"broken-{name}", source, **options)
    install("example-sound", SOUND)
    installed_here = (f"broken-{name}", "example-sound")  # those of plugins/ may be installed as well
    broken, sound = (info for info in mq.list_plugins() if info.origin.name in installed_here)
    assert (broken.status, broken.origin) == ("broken", mq.Origin(f"broken-{name}", "1.2"))
    problem = TEXTS[name]
    assert broken.problem == problem
    assert (sound.status, sound.hooks, sound.problem) == ("active", (RULES,), "")


def test_a_manager_may_leave_them_out(install: Install) -> None:
    """Somebody who would rather go on than stop gets a manager that works."""
    for name in LOADING:
        source, options = CASES[name]
        install(f"broken-{name}", source, **options)
    install("example-sound", SOUND)
    manager = mq.PluginManager(on_broken="leave out")
    assert mq.Origin("example-sound", "1.2") in manager.plugins
    assert (
        mq.Registered(mq.NameRule("0"), mq.Origin("example-sound", "1.2")) in manager.registry(mq.Scheme()).skip_rules
    )
    for name in LOADING:
        manager.block(f"broken-{name}")
    assert {info.status for info in manager.describe()} == {"active", "blocked"}
