"""What a social security card is: number, identifier, generation, state.

Sources: domain.md §1.2 (on-card data [S]), §1.3 (AAZ500, AAZ501 and the trap that vendors swap them [S]),
§1.4 (AAZ502 states, impl [S]).
"""

from enum import IntEnum, StrEnum
from typing import NamedTuple

from gateway.domain.verdicts import Reason

CARD_NUMBER_PATTERN = "[A-Z0-9]{2}[0-9]{7}"
"""AAZ500 社保卡卡号: nine characters, no check digit established [S]."""

CARD_IDENTIFIER_PATTERN = "[0-9A-Fa-f]{32}"
"""AAZ501 卡识别码: 16 bytes as hex; begins with the six digits of the issuing place [S]."""

END = "$(?!\\n)"
"""The end of a pattern: in Python a `$` alone also matches before a last line feed."""

CARD_KEY_PATTERN = f"^(?:{CARD_NUMBER_PATTERN}|{CARD_IDENTIFIER_PATTERN}){END}"


class CardStatus(IntEnum):
    """AAZ502 卡状态 (the social security side only; the bank account has a state of its own)."""

    SEALED = 0  # 封存: made, not collected
    NORMAL = 1  # 正常
    LOST_FORMAL = 2  # 正式挂失
    LOCKED = 3  # 应用锁定
    LOST_TEMPORARY = 4  # 临时挂失
    VOID = 6  # 特殊制卡数据作废 (local)
    CANCELLED = 9  # 注销


class CardAction(StrEnum):
    """What may happen to a card's state on the social security side."""

    ACTIVATE = "activate"  # 启用 (领卡)
    REPORT_TEMPORARY = "report_temporary"  # 临时挂失
    REPORT_FORMAL = "report_formal"  # 正式挂失
    RELEASE = "release"  # 解挂
    LOWER = "lower"  # a formal report is taken back, the temporary loss from before it stands
    LOCK = "lock"  # six wrong PINs
    UNLOCK = "unlock"  # 密码重置
    CANCEL = "cancel"  # 注销


_S, _A = CardStatus, CardAction

TRANSITIONS: dict[tuple[CardStatus, CardAction], CardStatus] = {
    (_S.SEALED, _A.ACTIVATE): _S.NORMAL,
    (_S.NORMAL, _A.REPORT_TEMPORARY): _S.LOST_TEMPORARY,
    (_S.NORMAL, _A.REPORT_FORMAL): _S.LOST_FORMAL,
    (_S.NORMAL, _A.LOCK): _S.LOCKED,
    (_S.LOCKED, _A.UNLOCK): _S.NORMAL,
    (_S.LOST_TEMPORARY, _A.REPORT_FORMAL): _S.LOST_FORMAL,
    (_S.LOST_TEMPORARY, _A.RELEASE): _S.NORMAL,
    (_S.LOST_FORMAL, _A.RELEASE): _S.NORMAL,  # only while no replacement was started
    (_S.LOST_FORMAL, _A.LOWER): _S.LOST_TEMPORARY,
    # asked for what is already so: a success that changes nothing (domain.md §1.5); a formal loss is never weakened
    (_S.LOST_TEMPORARY, _A.REPORT_TEMPORARY): _S.LOST_TEMPORARY,
    (_S.LOST_FORMAL, _A.REPORT_TEMPORARY): _S.LOST_FORMAL,
    (_S.LOST_FORMAL, _A.REPORT_FORMAL): _S.LOST_FORMAL,
    (_S.NORMAL, _A.RELEASE): _S.NORMAL,
} | {(status, _A.CANCEL): _S.CANCELLED for status in _S if status is not _S.CANCELLED}
"""The one table of what may follow what (domain.md §1.4 [G]); what is not in it is refused."""


class LossKind(StrEnum):
    """A temporary report holds until the card is found or reported formally; a formal one leads to a replacement."""

    TEMPORARY = "temporary"
    FORMAL = "formal"


REPORT: dict[LossKind, CardAction] = {
    LossKind.TEMPORARY: CardAction.REPORT_TEMPORARY,
    LossKind.FORMAL: CardAction.REPORT_FORMAL,
}

LOST = frozenset({CardStatus.LOST_TEMPORARY, CardStatus.LOST_FORMAL})


class Standing(NamedTuple):
    """What an accepted report has made of its card, as far as that is still so."""

    made: CardStatus
    lost: bool
    """The card is lost since this report."""
    raised: bool
    """The card was lost before, by whoever's word, and is formally lost since this report."""

    def release(self, status: CardStatus) -> CardAction | None:
        """What releasing the report does to its card, which has this status now; None: it is lost by another's word.

        Nobody takes back what another has said: who raises a loss and releases it again leaves the loss as it was.
        """
        if status not in LOST or (self.lost and status is self.made):
            return CardAction.RELEASE
        return CardAction.LOWER if self.raised and status is self.made else None


STATUS_REASON: dict[CardStatus, Reason] = {
    CardStatus.SEALED: Reason.NOT_ACTIVATED,
    CardStatus.NORMAL: Reason.OK,
    CardStatus.LOST_FORMAL: Reason.LOST_FORMAL,
    CardStatus.LOCKED: Reason.LOCKED,
    CardStatus.LOST_TEMPORARY: Reason.LOST_TEMPORARY,
    CardStatus.VOID: Reason.VOID,
    CardStatus.CANCELLED: Reason.CANCELLED,
}


class Medium(StrEnum):
    """What was presented: a chip card by its generation, or the electronic card."""

    SECOND_GEN = "second_gen"
    THIRD_GEN = "third_gen"
    ECARD = "ecard"


def tell_apart(one: str, other: str) -> tuple[str, str] | None:
    """(card number, card identifier in upper case) of two values of CARD_KEY_PATTERN, whichever field they came in.

    Vendors swap AAZ500 and AAZ501, so the shapes decide. None if both have the same shape.
    """
    if len(one) == len(other):
        return None
    number, identifier = (one, other) if len(one) == 9 else (other, one)
    return number, identifier.upper()
