"""The bench's rows with benefits: what the rules cost a verify, and what a claim costs.

Three scenes of one gateway, in turn: one without benefits, one with two hundred, one with a capped benefit that each
verify claims. The county's people are of all ages, so all rules are met and refused.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.effects import config_folder
from loadtests.measure import Row, Server

if TYPE_CHECKING:
    from loadtests.bench import Bench

RULES = 200
WANTED_US = 20.0
"""At most, of the server's CPU, a verify."""
_REGIONS = ("[]", '["33"]', '["3304"]', '["330424", "31"]', '["31", "32", "34"]')
_MEDIA = ('["third_gen", "ecard"]', '["second_gen", "third_gen", "ecard"]')
_DISCOUNTS = ("{ percent = 15 }", "{ fen = 300 }", "{ free = true }")

ROWS = {
    "benefits-none": ("market.till", "verify, no benefits"),
    "benefits-rules": ("parking.exit", f"verify, {RULES} benefits"),
    "benefits-capped": ("dining.till", "verify, a capped benefit"),
}
"""Key: scene, name."""


def config_copy(folder: Path) -> Path:
    """The configuration in force, with benefits of our own."""
    source = config_folder()
    folder.mkdir(exist_ok=True)
    for file in source.glob("*.toml"):
        shutil.copy(file, folder)
    (folder / "benefits.toml").write_text("\n".join(_blocks()))
    return folder


def _blocks() -> Iterator[str]:
    for number in range(RULES):
        age = number % 25 * 4
        yield f"""[benefits."bench.rule_{number}"]
name = "规则{number}"
scenes = ["parking.exit"]
age_from = {age}
age_to = {age + 5}
regions = {_REGIONS[number % len(_REGIONS)]}
media = {_MEDIA[number % len(_MEDIA)]}
discount = {_DISCOUNTS[number % len(_DISCOUNTS)]}
valid_from = 2020-01-{number % 28 + 1:02}
valid_to = 2099-12-31
"""
    yield """[benefits."bench.capped"]
name = "限次"
scenes = ["dining.till"]
discount = { fen = 300 }
caps = { day = 1_000_000, month = 1_000_000 }
"""


def measure(bench: "Bench", gateway: Server) -> None:
    """A round of every row."""
    bodies = bench.load.bodies.read_text()
    files = {}
    for key, (scene, _) in ROWS.items():
        files[key] = bench.work / f"bodies-{key}.ndjson"
        files[key].write_text(bodies.replace('"scene":"parking.exit"', f'"scene":"{scene}"'))
    for _ in range(bench.rounds):
        for key, (_, name) in ROWS.items():
            bench.authorize(gateway)
            bench.run(key, name, gateway, replace(bench.load, bodies=files[key]))


def rules_us(rows: dict[str, Row]) -> float | None:
    """What two hundred rules cost a verify, in µs of the server's CPU."""
    if not {"benefits-none", "benefits-rules"} <= rows.keys():
        return None
    return round(rows["benefits-rules"].middle("server_us") - rows["benefits-none"].middle("server_us"), 1)
