"""House rules as tests: a rule nobody enforces is deleted."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    "pyproject.toml", "gateway", "adapters", "config", "loadtests", "tests", "Dockerfile",
    "README.md", "Makefile", "CHANGELOG.md", "LICENSE", ".ci", ".gitignore", ".dockerignore",
    "requirements.txt", "requirements-dev.txt", "requirements-bench.txt",
}  # fmt: skip
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).exists()]


def sources(*folders: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def too_long(tree: ast.AST) -> list[str]:
    return [
        f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]


def impurities(path: Path) -> list[str]:
    """What a file of the domain imports beside the standard library, msgspec and itself, and its looks at a clock."""
    allowed = sys.stdlib_module_names | {"msgspec"}
    found = [
        name for name in imports(path) if name.split(".")[0] not in allowed and not name.startswith("gateway.domain")
    ]
    found += [name for name in imports(path) if name.split(".")[0] in {"time", "random", "secrets", "os", "asyncio"}]
    return found + re.findall(r"\.(?:now|today|utcnow)\(", path.read_text())


def test_the_top_level_is_the_customers() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} <= TOP_LEVEL


@pytest.mark.parametrize("path", sources("gateway", "adapters", "loadtests", "tests"), ids=lambda p: p.name)
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES_MAX
    assert too_long(ast.parse(text)) == []


@pytest.mark.parametrize("path", sources("gateway"), ids=lambda p: p.name)
def test_the_domain_is_pure(path: Path) -> None:
    if "domain" in path.parts:
        assert impurities(path) == []


def test_an_impurity_would_be_found(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("import asyncpg\nimport datetime as dt\nnow = dt.datetime.now(dt.UTC)\n")
    assert impurities(planted) == ["asyncpg", ".now("]


def test_adapters_know_the_contract_and_the_domain_alone() -> None:
    for path in sources("adapters"):
        for name in imports(path):
            assert not name.startswith("gateway") or name.startswith(("gateway.partners.contract", "gateway.domain"))


def test_lock_files_have_hashes_and_no_addresses() -> None:
    for path in ROOT.glob("requirements*.txt"):
        text = path.read_text()
        assert "--hash=sha256:" in text
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links|file:", text)


def test_the_npm_lock_has_hashes_and_no_addresses() -> None:
    text = (ROOT / "tests/clients/package-lock.json").read_text()
    assert text.count('"integrity": "sha512-') == text.count('"node_modules/') > 0
    assert not re.search(r'https?://|"resolved"', text)


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "gateway/store/migrations").glob("*.sql"))
    assert numbers == list(range(1, len(numbers) + 1))


def test_no_utility_rooms() -> None:
    rooms = {"utils", "util", "helpers", "common", "base", "misc"}
    assert not [path for path in sources("gateway", "adapters") if path.stem in rooms]
