"""Fixtures: the example dialect stands among the adapters; the simulated open bank."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import adapters
from tests.partners.open_bank import Caller, open_bank
from tests.running import ROOT


@pytest.fixture(autouse=True)
def example_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(ROOT / "tests/contract/dialects")])


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Caller]:
    async with open_bank(tmp_path) as caller:
        yield caller
