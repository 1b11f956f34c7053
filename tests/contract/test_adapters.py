"""Every adapter against the contract (design.md §3). An adapter without a whole case fails the collection."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.outcome import Unknown
from gateway.partners.contract import HttpReply, LinkFrame
from tests.contract.case import Case, Example, context
from tests.contract.checks import CHECKS, gaps, made
from tests.running import MANY, ROOT


def dialects(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))


def load(name: str) -> Case:
    """The case of an adapter. Raises AssertionError naming what is missing."""
    file = ROOT / "tests/contract/cases" / f"{name}.py"
    assert file.exists(), f"the adapter {name} has no case: write {file.relative_to(ROOT)}"
    case: Case = importlib.import_module(f"tests.contract.cases.{name}").CASE
    assert not (missing := gaps(case)), f"the case of {name} is not whole: {'; '.join(missing)}"
    return case


CASES = {name: load(name) for name in sorted({*dialects(ROOT / "adapters"), *dialects(ROOT / "tests/contract/cases")})}
"""Each adapter's, and more that a dialect has where one is not enough to show it."""
EXAMPLES = [
    pytest.param(case, example, id=f"{name}-{example.name}")
    for name, case in CASES.items()
    for example in case.examples
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize(("case", "example"), EXAMPLES)
def test_contract(case: Case, example: Example, check: Callable[[Case, Example], None]) -> None:
    check(case, example)


@pytest.mark.parametrize(("case", "example"), EXAMPLES)
@settings(max_examples=150 if MANY else 40)
@given(body=st.binary(max_size=600), status=st.integers(100, 599), header=st.text(max_size=50))
def test_nothing_random_is_an_answer(case: Case, example: Example, body: bytes, status: int, header: str) -> None:
    adapter, ctx = made(case), context(case.keys)
    names = [*getattr(example.approved, "headers", {}), "Content-Type"]
    for reply in (HttpReply(status, dict.fromkeys(names, header), body), LinkFrame(body)):
        assert isinstance(adapter.parse(example.op, ctx, reply), Unknown)
    assert isinstance(adapter.redact(body), str)


def test_an_adapter_without_a_case_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no_such_bank has no case"):
        load("no_such_bank")
