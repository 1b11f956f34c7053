"""The sandbox's files for people and tests: a sample of the county's cards, every state among them."""

import datetime as dt
from pathlib import Path

from gateway.crypto.key_files import write_private
from gateway.domain.cards import CardStatus, Medium
from gateway.sandbox.county import COUNTY_REGION, Citizen, County

_HEADER = "card_number,card_identifier,medium,status,valid_until,region,birth_date"
_MEDIUM = {2: Medium.SECOND_GEN, 3: Medium.THIRD_GEN}
_OF_A_STATUS = 70
_EXPIRED = 70
_ELSEWHERE = 120


def write_cards_csv(county: County, path: Path, at_least: int = 3000) -> None:
    """Write so many synthetic cards, most of them normal, as far as the county has them; only the owner may read it.

    Normal cards are those with an e-card first, so that a newcomer who shows the code of one sees it accepted.
    """
    wanted = {status.name: _OF_A_STATUS for status in CardStatus if status != CardStatus.NORMAL}
    wanted |= {"expired": _EXPIRED, "elsewhere": _ELSEWHERE}
    special = sum(wanted.values())
    wanted["normal"] = max(at_least - special, special + 1)
    lines: list[str] = [_HEADER]
    without_ecard: list[str] = []
    for i in range(county.cards):
        citizen = county.citizen(i)
        kind = _kind(citizen, county.today)
        if kind == "normal" and citizen.ecard_level is None:
            if len(without_ecard) < wanted["normal"]:
                without_ecard.append(_line(citizen))
        elif wanted[kind]:
            wanted[kind] -= 1
            lines.append(_line(citizen))
            if not any(wanted.values()):
                break
    write_private(path, "\n".join(lines + without_ecard[: wanted["normal"]]) + "\n")


def _kind(citizen: Citizen, today: dt.date) -> str:
    if citizen.status != CardStatus.NORMAL:
        return citizen.status.name
    if citizen.valid_until < today:
        return "expired"
    return "normal" if citizen.region == COUNTY_REGION else "elsewhere"


def _line(citizen: Citizen) -> str:
    medium = _MEDIUM[citizen.generation]
    return (
        f"{citizen.card_number},{citizen.card_identifier},{medium},{citizen.status},"
        f"{citizen.valid_until},{citizen.region},{citizen.birth_date}"
    )
