"""Fixtures: the example dialect stands among the adapters."""

import pytest

import adapters
from tests.running import ROOT


@pytest.fixture(autouse=True)
def example_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(ROOT / "tests/contract/dialects")])
