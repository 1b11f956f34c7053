"""Every case of Project Wycheproof for what we use, as labelled. README.md says where the files are from."""

import base64
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.crypto.ciphers import DoesNotOpen, Sm4Gcm, hmac_sm3
from gateway.crypto.signatures import ED25519, ES256, read_signing_jwk, verify

FOLDER = Path(__file__).parent
Case = dict[str, Any]


def raw(case: Case, name: str) -> bytes:
    return bytes.fromhex(case[name])


def p256_jwk(point: bytes) -> Case:
    """A few groups of the P-256 file have no JWK."""
    x, y = (base64.urlsafe_b64encode(half).rstrip(b"=").decode() for half in (point[1:33], point[33:]))
    return {"kty": "EC", "crv": "P-256", "kid": "none", "x": x, "y": y}


def signature_is_good(algorithm: str) -> Callable[[Case, Case], bool]:
    def is_good(group: Case, case: Case) -> bool:
        key = read_signing_jwk(
            group.get("publicKeyJwk") or p256_jwk(raw(group["publicKey"], "uncompressed")), algorithm
        )
        return verify(key, raw(case, "msg"), raw(case, "sig"))

    return is_good


def mac_is_good(group: Case, case: Case) -> bool:
    return hmac_sm3(raw(case, "key"), raw(case, "msg"))[: group["tagSize"] // 8] == raw(case, "tag")


def sealed_is_good(group: Case, case: Case) -> bool:
    cipher, associated = Sm4Gcm(raw(case, "key")), raw(case, "aad")
    try:
        opened = cipher.decrypt(raw(case, "iv"), raw(case, "ct") + raw(case, "tag"), associated)
    except DoesNotOpen:
        return False
    assert cipher.encrypt(raw(case, "iv"), opened, associated) == raw(case, "ct") + raw(case, "tag")
    return opened == raw(case, "msg")


FILES: dict[str, tuple[Callable[[Case, Case], bool], int, int, int]] = {
    # how a case is decided, cases labelled valid and invalid, and those of a nonce that is not 96 bits, which we refuse
    "ed25519_test": (signature_is_good(ED25519), 88, 63, 0),
    "ecdsa_secp256r1_sha256_p1363_test": (signature_is_good(ES256), 173, 89, 0),
    "hmac_sm3_test": (mac_is_good, 66, 108, 0),
    "sm4_gcm_test": (sealed_is_good, 38, 27, 39),
}


def count(is_good: Callable[[Case, Case], bool], document: Case) -> tuple[Counter[str], list[str]]:
    """How many cases came out as labelled, by label, and those that did not."""
    counted: Counter[str] = Counter()
    wrong = []
    for group in document["testGroups"]:
        for case in group["tests"]:
            wanted = case["result"] == "valid"
            label = case["result"]
            if group.get("ivSize", 96) != 96:
                wanted, label = False, "other nonce, refused"
            if is_good(group, case) is wanted:
                counted[label] += 1
            else:
                wrong.append(f"{case['tcId']} {case['comment']}: {case['result']}")
    return counted, wrong


@pytest.mark.parametrize("name", FILES)
def test_every_case_is_as_labelled(name: str, record_property: Callable[[str, object], None]) -> None:
    is_good, valid, invalid, refused = FILES[name]
    document = json.loads((FOLDER / f"{name}.json").read_text())
    counted, wrong = count(is_good, document)
    assert wrong == []
    assert (counted["valid"], counted["invalid"], counted["other nonce, refused"]) == (valid, invalid, refused)
    assert counted.total() == document["numberOfTests"]
    record_property("wycheproof", f"{name}: {counted.total()} cases as labelled {dict(counted)}")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("always", [True, False])
def test_a_check_that_always_says_the_same_is_caught(name: str, always: bool) -> None:
    _, wrong = count(lambda group, case: always, json.loads((FOLDER / f"{name}.json").read_text()))
    assert wrong
