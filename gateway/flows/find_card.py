"""From what a terminal read to the keys by which the card is found."""

import re
from typing import NamedTuple

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.card_proof import is_genuine
from gateway.crypto.pseudonym import CARD_REF_PATTERN, Pseudonyms
from gateway.domain.cards import Medium, tell_apart
from gateway.domain.errors import invalid
from gateway.domain.masking import Secret
from gateway.domain.presentations import CardRef, ChipCard, EcardCode, Presentation
from gateway.domain.verdicts import Reason

_CARD_REF = re.compile(CARD_REF_PATTERN)


class CardKey(NamedTuple):
    """How a presented card is found: by one of the first two, in hex; empty for what does not apply."""

    chip_index: str = ""
    card_id: str = ""
    preset: str = ""
    """A reason found before the card was read."""
    medium: str = ""
    code_digest: str = ""
    """Of a code that is good once, in hex."""


_NOT_OURS = CardKey()


class FindCard:
    """Keys of cards, for one caller's presentations."""

    def __init__(self, index: BlindIndex, pseudonyms: Pseudonyms, proof_key: Secret[bytes]) -> None:
        self._index = index
        self._pseudonyms = pseudonyms
        self._proof_key = proof_key

    def of(self, presentation: Presentation, caller_id: str) -> CardKey:
        """Raises Problem 422 for card data of one shape."""
        if type(presentation) is ChipCard:
            pair = tell_apart(presentation.card_number, presentation.card_identifier)
            if pair is None:
                needs = "needs a card number (9 characters) and a card identifier (32 hex digits)"
                raise invalid("$.presentation", needs)
            proof = presentation.proof
            failed = proof and not is_genuine(self._proof_key, pair[1], proof.challenge, proof.cryptogram)
            return CardKey(self._index.chip(*pair).hex(), "", Reason.PROOF_FAILED.value if failed else "")
        if type(presentation) is CardRef:
            if not _CARD_REF.match(presentation.card_ref):
                return _NOT_OURS
            return CardKey("", self._pseudonyms.card_id(caller_id, presentation.card_ref).hex())
        # neither is decided here: never guess. The platform of e-cards is asked by ask_ecard.py, where it is connected
        medium = Medium.ECARD.value if type(presentation) is EcardCode else ""
        return CardKey("", "", Reason.PLATFORM_UNAVAILABLE.value, medium)
