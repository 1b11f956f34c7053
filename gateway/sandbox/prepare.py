"""What the sandbox needs before its workers start: keys, callers, the county; progress is shown."""

import asyncio
import datetime as dt
import json
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gateway.crypto.key_files import create_missing, open_folder
from gateway.domain.cards import CardStatus
from gateway.domain.errors import CannotStart
from gateway.domain.masking import Secret
from gateway.domain.times import CHINA
from gateway.sandbox import partners, traffic
from gateway.sandbox.callers import write_callers
from gateway.sandbox.county import BANKS, County, read_county
from gateway.sandbox.files import write_cards_csv
from gateway.sandbox.load import load_county, loaded, refresh_sources
from gateway.sandbox.points import PEOPLE_MAX, open_points
from gateway.settings import Settings

_REFRESH_S = 600


class OtherCounty(CannotStart):
    """The data folder holds another county than the one asked for."""


_background: set[asyncio.Task[None]] = set()


def prepare(cards: int, seed: int, speed: float | None) -> Callable[[Settings, Secret[str]], Awaitable[None]]:
    """The supervisor's preparation for a county of so many cards, with traffic at a speed (None: without)."""

    async def run(settings: Settings, dsn: Secret[str]) -> None:
        create_missing(settings.keys_dir)
        write_callers(settings)
        there = await loaded(dsn.reveal())
        if there is None:
            county = County(seed, cards, dt.datetime.now(CHINA).date())
            await _load(settings, dsn, county)
        else:
            county = County(*there)
            if there[:2] != (seed, cards):
                raise OtherCounty(
                    f"{settings.data_dir} holds a county of {there[1]} cards (seed {there[0]}): "
                    "set CARDS and SEED to these, or DATA_DIR to another folder"
                )
        cards_csv = settings.data_dir / "sandbox" / "cards.csv"
        if there is None or not cards_csv.exists():
            write_cards_csv(county, cards_csv)
            facts = {"seed": county.seed, "cards": county.cards, "today": county.today.isoformat()}
            (cards_csv.parent / "county.json").write_text(json.dumps(facts) + "\n")
        await open_points(dsn.reveal(), county, dt.datetime.now(CHINA), settings.points.valid_months)
        await refresh_sources(dsn.reveal())
        _keep(_keep_fresh(dsn))
        if not settings.partners:  # a configuration with partners of its own has no use for simulated ones
            await partners.start(settings, _keep)
        if speed is not None:
            await traffic.start(settings.data_dir, speed, _keep)

    return run


def _keep(background: Coroutine[Any, Any, None]) -> None:
    _background.add(asyncio.create_task(background))


async def _load(settings: Settings, dsn: Secret[str], county: County) -> None:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("loading the synthetic county 海盐 (no real person)", total=county.cards)
        await load_county(
            dsn.reveal(),
            partial(open_folder, settings.keys_dir),
            county,
            lambda count: progress.update(task, advance=count),
            algorithm=settings.gateway.sealing.algorithm,
        )


async def _keep_fresh(dsn: Secret[str]) -> None:
    """The stand-in for the upstream registry, which would tell its changes all day."""
    while True:
        await asyncio.sleep(_REFRESH_S)
        try:
            await refresh_sources(dsn.reveal())
        except Exception:  # noqa: BLE001, S112 - the database is away; the status grows old, as it should
            continue


def sample(
    settings: Settings, count: int, bank: str | None = None, ecard: bool = False, points: bool = False
) -> Iterator[str]:
    """JSON lines of random normal cards of the county in DATA_DIR; if wished of one of its BANKS, with an e-card, or of
    people who have points.

    Raises FileNotFoundError if none was loaded.
    """
    county = read_county(settings.data_dir)
    chosen = random.Random(county.seed)  # noqa: S311 - a sample, not a secret
    today = max(county.today, dt.datetime.now(CHINA).date())
    assert bank is None or bank in BANKS
    found = 0
    while found < count:
        i = chosen.randrange(min(county.cards, PEOPLE_MAX) if points else county.cards)
        if bank is not None and county.account(i).bank != bank:
            continue
        citizen = county.citizen(i)
        fits = citizen.ecard_level is not None or not ecard
        if fits and citizen.status == CardStatus.NORMAL and citizen.valid_until >= today:
            found += 1
            yield json.dumps({"card_number": citizen.card_number, "card_identifier": citizen.card_identifier})
