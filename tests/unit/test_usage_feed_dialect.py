"""What may be set of the usage feed's dialect: fields that are withheld, a shared key instead of SM2."""

import base64
import hashlib
import json

import pytest

from adapters.usage_feed_http import Adapter, Dialect
from gateway.domain.outcome import Approved, Unknown
from gateway.partners.contract import CannotBuild, HttpReply
from tests.contract.case import NONCE, SM2_OURS, Shared, context, crypto_for
from tests.contract.cases.usage_feed_http import KEYS, OP, answer

SECRET = Shared("hmac-sm3", "00112233445566778899aabbccddeeff")
SHARED = {"sign": SECRET, "partner": SECRET}


def test_what_is_withheld_does_not_leave() -> None:
    adapter = Adapter(Dialect(subscriber="x", withheld=frozenset({"card_ref", "amount_fen", "region"})))
    request = adapter.build(OP, context(KEYS))
    _, *lines = [json.loads(line) for line in request.body.splitlines()]
    for line, item in zip(lines, OP.items, strict=True):
        assert line["event"].keys() & {"card_ref", "amount_fen", "region"} == set()
        assert line["event"]["event_id"] == item.event.event_id and line["event"]["medium"] == "third_gen"


def test_a_shared_key_signs_both_ways() -> None:
    adapter = Adapter(Dialect(subscriber="x", signature="hmac"))
    request = adapter.build(OP, context(SHARED))
    message = f"POST\n/usage-events\n1795399200\n{NONCE.hex()}\n{request.headers['Content-Digest']}\n"
    mac = crypto_for(SHARED).mac("sign", message.encode())
    assert base64.b64decode(request.headers["X-Feed-Signature"]) == mac
    body = json.dumps(answer()).encode()
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    for nonce, kind in ((NONCE, Approved), (bytes(16), Unknown)):
        signature = crypto_for(SHARED).mac("partner", f"{nonce.hex()}\n{digest}\n".encode())
        reply = HttpReply(200, {"x-feed-signature": base64.b64encode(signature).decode()}, body)
        assert isinstance(adapter.parse(OP, context(SHARED), reply), kind)


def test_a_key_of_another_kind_sends_nothing() -> None:
    with pytest.raises(CannotBuild, match="does not sign"):
        Adapter(Dialect(subscriber="x")).build(OP, context(SHARED))
    with pytest.raises(CannotBuild, match="makes no mac"):
        Adapter(Dialect(subscriber="x", signature="hmac")).build(OP, context({"sign": Shared("sm2", SM2_OURS)}))
