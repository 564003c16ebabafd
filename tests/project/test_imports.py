"""Who may import whom: services import ``fleetpulse`` and themselves, and it imports no service."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetpulse.ownership import SERVICES

# The embedded stack and the command start services; nothing else in the shared package may know them.
MAY_KNOW_SERVICES = ("fleetpulse/local/", "fleetpulse/command.py")
NOT_PACKAGES = ("tests", "bench", "docs", "sql")


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every absolute import, those for type checkers only and those in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]


def strays(root: Path, package: str, forbidden: set[str]) -> list[str]:
    return [
        f"{name}:{line} imports {imported_name}"
        for path in sorted((root / package).rglob("*.py"))
        if not (name := path.relative_to(root).as_posix()).startswith(MAY_KNOW_SERVICES)
        for line, imported_name in imported(path.read_text())
        if imported_name in forbidden
    ]


def test_imports_are_found_wherever_they_stand() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from collector.batch import Batch\n"
        "def late():\n    import agent.spool\n"
    )
    assert [name for _, name in imported(source)] == ["typing", "collector", "agent"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other_service(root: Path, service: str) -> None:
    assert strays(root, service, {*SERVICES, *NOT_PACKAGES} - {service}) == []


def test_the_shared_package_imports_no_service(root: Path) -> None:
    assert strays(root, "fleetpulse", {*SERVICES, *NOT_PACKAGES}) == []
