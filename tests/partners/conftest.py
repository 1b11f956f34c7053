"""Fixtures: the simulated open bank."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.partners.open_bank import Caller, open_bank


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Caller]:
    async with open_bank(tmp_path) as caller:
        yield caller
