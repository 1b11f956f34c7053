"""Lays out what a new dialect needs: a copy of the tests' example dialect, which passes the contract suite."""

from pathlib import Path

from gateway.domain.errors import CannotStart

_ADAPTER = "tests/contract/dialects/example.py"
_CASE = "tests/contract/cases/example.py"
_IMPORT = "from tests.contract.dialects.example import Adapter\n"
_BLOCK = """
[partners.{partner}]
name = "{partner}"
adapter = "{name}"
operations = ["purchase", "reverse", "query_status"]
enabled = false                         # true when its keys are there

[partners.{partner}.http]
base_url = "http://127.0.0.1:9443"

[partners.{partner}.keys.mac]
kind = "hmac-sha256"
env = "{variable}_MAC"                  # or file = "partners/….key", mode 0600

[partners.{partner}.dialect]
merchant_id = "M1"
"""


class CannotLayOut(CannotStart):
    """There is such an adapter already, or this is no checkout."""


def lay_out(root: Path, config_dir: Path, name: str) -> list[Path]:
    """The files that were written: adapter, case, configuration. Raises CannotLayOut, OSError; replaces no file."""
    if not (root / _ADAPTER).is_file() or not (root / "adapters").is_dir():
        raise CannotLayOut("not in a checkout: run it where adapters/ and tests/ are")
    adapter, case = root / "adapters" / f"{name}.py", root / "tests/contract/cases" / f"{name}.py"
    if taken := [file for file in (adapter, case) if file.exists()]:
        raise CannotLayOut(f"{taken[0]} is there already")
    partner, file = name.replace("_", "-"), config_dir / "partners.toml"
    if f"[partners.{partner}]" in file.read_text():
        raise CannotLayOut(f"{file} has a partner {partner} already")
    source = (root / _ADAPTER).read_text()
    summary, _, rest = source.partition("\n")
    assert "copies it" in summary
    adapter.write_text(
        f'"""The dialect of {name}: TODO say in one line whose it is, and where it is described.\n{rest}'
    )
    _, _, rest = (root / _CASE).read_text().replace(_IMPORT, "").partition("\n")
    rest = rest.replace("from gateway.", f"from adapters.{name} import Adapter\nfrom gateway.", 1)
    case.write_text(f'"""The case of {name}."""\n{rest}')
    with file.open("a") as stream:
        stream.write(_BLOCK.format(partner=partner, name=name, variable=name.upper()))
    return [adapter, case, file]
