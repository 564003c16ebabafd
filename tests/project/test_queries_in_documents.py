"""Every query in the documents is asked: SQL of a migrated database, PromQL of Prometheus's own parser."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml

# TimescaleDB's own relations, which plain PostgreSQL does not have.
ITS_OWN = re.compile(r"\b_?timescaledb_\w+\.")
INLINE = re.compile(r"`((?:SELECT|INSERT|UPDATE|DELETE FROM) [^`]+)`")
EXPRESSION = re.compile(
    r"`((?:(?:sum|count|max|min|avg|topk)(?= by |\()|rate\(|increase\(|histogram_quantile\(|up\{)[^`]+)`"
)


@pytest.fixture(scope="module")
def documents(root: Path) -> dict[str, str]:
    """All of them, runbooks too."""
    found = [root / "README.md", root / "ARCHITECTURE.md", *sorted((root / "docs").rglob("*.md"))]
    return {path.relative_to(root).as_posix(): path.read_text() for path in found}


def statements(text: str) -> Iterator[str]:
    """SQL in fenced blocks, in indented ones, and in sentences."""
    blocks = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?<=\n\n)( {4}SELECT .*?)(?=\n\n)", text, re.DOTALL)
    for block in blocks:
        yield from (each.strip() for each in re.split(r";\s*$", block, flags=re.MULTILINE) if each.strip())
    yield from INLINE.findall(text)


def test_every_statement_works(documents: dict[str, str], database_url: str) -> None:
    asked = 0
    with psycopg.connect(database_url) as connection:
        for page, text in documents.items():
            for statement in statements(text):
                if ITS_OWN.search(statement):
                    continue
                try:
                    connection.execute(statement.encode())
                except psycopg.Error as error:
                    pytest.fail(f"{page}: {statement}: {error}")
                connection.rollback()
                asked += 1
    assert asked > 12


@pytest.mark.promtool
def test_every_expression_can_be_parsed(documents: dict[str, str], tmp_path: Path) -> None:
    found = [expression for text in documents.values() for expression in EXPRESSION.findall(text)]
    assert found
    rules = [{"record": f"documents:{number}", "expr": expression} for number, expression in enumerate(found)]
    file = tmp_path / "documents.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "documents", "rules": rules}]}))
    told = subprocess.run(
        ["promtool", "check", "rules", "--lint=none", str(file)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
