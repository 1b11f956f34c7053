"""`new-adapter` lays out a dialect that passes the contract suite from the start, and replaces nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What git would check out, as far as it is needed."""
    for folder in ("gateway", "adapters", "config", "tests/contract"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("tests/__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path / file)
    running = "from pathlib import Path\nROOT, MANY = Path(__file__).parent.parent, False\n"
    (tmp_path / "tests/running.py").write_text(running)
    return tmp_path


def run(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=checkout, env=inherited | environment, capture_output=True, text=True, timeout=120
    )


def test_it_passes_the_suite_from_the_start(checkout: Path) -> None:
    laid_out = run(checkout, "gateway", "new-adapter", "bank_xml")
    assert laid_out.returncode == 0, laid_out.stderr
    suite = run(checkout, "pytest", "-q", "-p", "no:cacheprovider", "tests/contract/test_adapters.py", "-k", "bank_xml")
    assert suite.returncode == 0, suite.stdout
    assert "39 passed" in suite.stdout
    for linting in (["check"], ["format", "--check"]):
        lint = run(checkout, "ruff", *linting, "--no-cache", "adapters", "tests/contract/cases")
        assert lint.returncode == 0, lint.stdout
    script = (
        "from gateway.partners.registry import read; from gateway.settings import load;"
        "print(read(load())['bank-xml'].block.adapter)"
    )
    read = subprocess.run([sys.executable, "-c", script], cwd=checkout, env={}, capture_output=True, text=True)
    assert read.stdout.strip() == "bank_xml", read.stderr


def test_an_adapter_without_its_case_fails_the_collection(checkout: Path) -> None:
    run(checkout, "gateway", "new-adapter", "bank_xml")
    (checkout / "tests/contract/cases/bank_xml.py").unlink()
    suite = run(checkout, "pytest", "-q", "-p", "no:cacheprovider", "tests/contract/test_adapters.py")
    assert suite.returncode == 2
    assert "the adapter bank_xml has no case" in suite.stdout


@pytest.mark.parametrize("name", ["_kit", "../x", "Bank", "bank-xml", "class", ""])
def test_a_name_that_is_no_file_of_adapters_is_refused(name: str, checkout: Path) -> None:
    assert run(checkout, "gateway", "new-adapter", "--", name).returncode == 1


def test_nothing_is_replaced(checkout: Path) -> None:
    file = checkout / "adapters/bank_xml.py"
    file.write_text("mine\n")
    refused = run(checkout, "gateway", "new-adapter", "bank_xml")
    assert refused.returncode == 1
    assert "is there already" in refused.stderr
    assert file.read_text() == "mine\n"
    assert not (checkout / "tests/contract/cases/bank_xml.py").exists()


def test_a_partner_of_this_name_is_not_written_twice(checkout: Path) -> None:
    with (checkout / "config/partners.toml").open("a") as stream:
        stream.write("\n[partners.bank-xml]\n")
    refused = run(checkout, "gateway", "new-adapter", "bank_xml")
    assert refused.returncode == 1
    assert "has a partner bank-xml already" in refused.stderr
    assert not (checkout / "adapters/bank_xml.py").exists()
