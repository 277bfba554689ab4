"""What may import what, and what start-up may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lifelong

ROOT = Path(lifelong.__file__).parent
LEVELS = [
    {"allocator", "tree", "losses", "errors", "files", "randomness", "settings", "yaml_file"},
    {"data", "models", "curvature"},
    {"streams", "memory", "merging"},
    {"learner", "meta"},
    {"methods"},
    {"training"},
    {"experiments", "service"},
    {"reports"},
    {"api"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def part(module: str) -> str | None:
    """`methods` of `lifelong.methods.ewc`; None of `lifelong` itself and of other packages."""
    names = module.split(".")
    return names[1] if names[0] == "lifelong" and len(names) > 1 else None


def imported(path: Path) -> set[str]:
    """The parts of lifelong that the file at `path` imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name for alias in node.names if (name := part(alias.name))}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module == "lifelong":
                found |= {alias.name for alias in node.names if alias.name != "__version__"}
            elif name := part(node.module or ""):
                found.add(name)
    return found


def own(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_part_has_a_level() -> None:
    assert {own(path) for path in FILES} - {"__init__", "__main__"} <= LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    here = own(path)
    if here in {"__init__", "__main__"}:
        return
    for name in imported(path) - {here}:
        if here in LEVELS[0]:
            assert LEVEL[name] == 0, f"{here} imports {name}"
        else:
            assert LEVEL[name] < LEVEL[here], f"{here} imports {name}"


def test_no_module_of_the_lowest_level_imports_in_a_circle() -> None:
    graph = {name: imported(ROOT / f"{name}.py") & LEVELS[0] for name in LEVELS[0]}
    while graph:
        free = {name for name, needs in graph.items() if not needs & graph.keys() - {name}}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_reports_know_only_errors() -> None:
    for path in (ROOT / "reports").rglob("*.py"):
        assert imported(path) <= {"reports", "errors"}, path.name


def heavy_after(code: str) -> list[str]:
    """Which heavy libraries have been imported after `code` ran in a fresh interpreter."""
    script = f"import sys\n{code}\nprint('heavy:', *sorted({{'torch', 'pandas', 'datasets'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()[-1].removeprefix("heavy:").split()


def test_import_is_light() -> None:
    assert heavy_after("import lifelong") == []
    assert heavy_after("import torch") == ["torch"]  # the check can fail


def test_help_is_light() -> None:
    code = (
        "from lifelong.cli import entry\n"
        "sys.argv = ['lifelong', '--help']\n"
        "try:\n    code = entry()\nexcept SystemExit as stop:\n    code = stop.code\n"
        "assert not code, code"
    )
    assert heavy_after(code) == []


def test_help_is_printed() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv = ['lifelong', '--help']\nfrom lifelong.cli import entry\nentry()",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for word in ("run", "compare", "list"):
        assert word in done.stdout
