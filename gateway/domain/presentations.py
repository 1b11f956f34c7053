"""Presentations: what a terminal read from the person (contract: api.md, Verify)."""

from typing import Annotated, Literal

import msgspec

from gateway.domain.cards import CARD_KEY_PATTERN, END

CardKey = Annotated[str, msgspec.Meta(pattern=CARD_KEY_PATTERN, max_length=32)]
_Short = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The card's answer to the terminal's challenge, both in hex."""

    challenge: _Short
    cryptogram: _Short


class ChipCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, tag_field="type", tag="chip_card"):
    """A chip card's number (AAZ500) and identifier (AAZ501); the shapes tell which is which."""

    card_number: CardKey
    card_identifier: CardKey
    interface: Literal["contact", "contactless"] | None = None
    proof: Proof | None = None


class EcardCode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, tag_field="type", tag="ecard_code"):
    """The code of an electronic card, verified online at the national platform."""

    code: Annotated[str, msgspec.Meta(pattern=f"^[0-9]{{8,64}}{END}", max_length=64)]


class TransitQr(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, tag_field="type", tag="transit_qr"):
    """A transit QR in the JT/T 1179 layout, base64."""

    qr: Annotated[str, msgspec.Meta(pattern=f"^[A-Za-z0-9+/]+={{0,2}}{END}", min_length=4, max_length=1024)]


class CardRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, tag_field="type", tag="card_ref"):
    """A reference that the caller kept from an earlier answer."""

    card_ref: Annotated[str, msgspec.Meta(pattern=f"^[A-Za-z0-9_-]{{1,64}}{END}", max_length=64)]


Presentation = ChipCard | EcardCode | TransitQr | CardRef
