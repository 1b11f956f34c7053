"""The seam for our own keys: strict files, and a store that gives out no secret, do the same things."""

import base64
import datetime as dt
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import jwt
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.ciphers import DoesNotOpen
from gateway.crypto.key_files import create_missing, create_next, open_folder
from gateway.crypto.key_store import KeyStore, KeyStoreError, KeyUse, OwnKey, WorkingUse, Wrapped
from gateway.crypto.rotation import CLOCK_SKEW_S
from gateway.crypto.sealing import Sealer, SealError, WrappedDataKey, new_data_key, rewrap
from gateway.crypto.signatures import ES256, Signer, VerifyKey, ecdsa_p256_signer, read_signing_jwk, verify
from gateway.crypto.tokens import Access, AccessTokens, InvalidToken
from gateway.domain.masking import Secret
from gateway.flows.rotate_own_keys import status
from tests.jwks import private, public_of

ISSUER, LIFETIME_S = "https://g.example", 600
LONG_AGO_S = LIFETIME_S + CLOCK_SKEW_S + 1


class Keys(Protocol):
    """One gateway's own keys over time."""

    algorithm: str

    def opened(self) -> KeyStore: ...
    def rotate(self, use: KeyUse, seconds_ago: float) -> None: ...


class Files:
    """As `init-keys` and `keys rotate` make them."""

    algorithm = "EdDSA"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        create_missing(folder)

    def opened(self) -> KeyStore:
        return open_folder(self._folder)

    def rotate(self, use: KeyUse, seconds_ago: float) -> None:
        create_next(self._folder, use, dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds_ago), 0)


Crypt = Callable[[bytes], bytes]


class Module:
    """A stand-in for a hardware module: what signs (ES256) and what wraps (its own way) is in closures alone."""

    algorithm = "ES256"

    def __init__(self) -> None:
        self._names: dict[KeyUse, list[OwnKey]] = {use: [] for use in KeyUse}
        self._signing: dict[str, tuple[Signer, VerifyKey]] = {}
        self._keks: dict[str, tuple[Crypt, Crypt]] = {}
        self._released = {use: Secret(os.urandom(32)) for use in KeyUse}
        for use in KeyUse:
            self._add(use, None)

    def opened(self) -> KeyStore:
        return self

    def rotate(self, use: KeyUse, seconds_ago: float) -> None:
        self._add(use, dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds_ago))

    def _add(self, use: KeyUse, active_from: dt.datetime | None) -> None:
        kid = f"{use}-{len(self._names[use]) + 1}"
        self._names[use].append(OwnKey(kid, active_from))
        if use is KeyUse.SIGN:
            jwk = private(kid, "ES256")
            signer = ecdsa_p256_signer(kid, base64.urlsafe_b64decode(jwk["d"] + "="))
            self._signing[kid] = signer, read_signing_jwk(public_of(jwk), ES256)
        elif use is KeyUse.KEK:
            self._keks[kid] = _kek()

    def keys(self, use: KeyUse) -> list[OwnKey]:
        return list(self._names[use])

    def signer(self, kid: str) -> Signer:
        return self._pair(kid)[0]

    def public_key(self, kid: str) -> VerifyKey:
        return self._pair(kid)[1]

    def _pair(self, kid: str) -> tuple[Signer, VerifyKey]:
        if kid not in self._signing:
            raise KeyStoreError(f"no {kid!r} in the module")
        return self._signing[kid]

    def wrap(self, secret: bytes) -> Wrapped:
        kek_id = self._names[KeyUse.KEK][-1].kid
        return Wrapped(kek_id, self._keks[kek_id][0](secret))

    def unwrap(self, kek_id: str, wrapped: bytes) -> bytes:
        if kek_id not in self._keks:
            raise KeyStoreError(f"no {kek_id!r} in the module")
        return self._keks[kek_id][1](wrapped)

    def working_keys(self, use: WorkingUse) -> list[Secret[bytes]]:
        return [self._released[use]]


def _kek() -> tuple[Crypt, Crypt]:
    cipher = ChaCha20Poly1305(ChaCha20Poly1305.generate_key())

    def wrap(secret: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + cipher.encrypt(nonce, secret, None)

    def unwrap(wrapped: bytes) -> bytes:
        try:
            return cipher.decrypt(wrapped[:12], wrapped[12:], None)
        except (InvalidTag, ValueError):
            raise DoesNotOpen from None

    return wrap, unwrap


Make = Callable[[], Keys]


@pytest.fixture(params=["files", "module"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Each call gives another gateway's keys."""
    numbers = iter(range(10))
    return Module if request.param == "module" else lambda: Files(tmp_path / str(next(numbers)))


@pytest.fixture
def keys(make: Make) -> Keys:
    return make()


def issued(tokens: AccessTokens) -> str:
    return tokens.issue("c", ["cards:verify"], int(time.time()), "j", "k-1")


def test_a_token_names_its_key_and_algorithm_and_anyone_can_check_it(keys: Keys) -> None:
    """By PyJWT and the JWKS alone, as any other service would."""
    tokens = AccessTokens(keys.opened(), ISSUER, LIFETIME_S)
    token = issued(tokens)
    header = jwt.get_unverified_header(token)
    assert header == {"typ": "at+jwt", "alg": keys.algorithm, "kid": "sign-1"}
    (jwk,) = tokens.jwks()["keys"]
    assert (jwk["kid"], jwk["alg"], jwk["use"]) == ("sign-1", keys.algorithm, "sig") and "d" not in jwk
    claims = jwt.decode(token, jwt.PyJWK(jwk).key, algorithms=[keys.algorithm], audience=ISSUER)
    assert (claims["iss"], claims["sub"], claims["client_kid"]) == (ISSUER, "c", "k-1")
    assert tokens.read(token) == Access("c", frozenset({"cards:verify"}), claims["exp"], claims["iat"], "k-1")


def test_signing_keys_take_turns(keys: Keys) -> None:
    before = AccessTokens(keys.opened(), ISSUER, LIFETIME_S)
    old = issued(before)
    keys.rotate(KeyUse.SIGN, -60)
    tokens = AccessTokens(keys.opened(), ISSUER, LIFETIME_S)
    assert jwt.get_unverified_header(issued(tokens))["kid"] == "sign-1", "the next one is published first"
    assert [jwk["kid"] for jwk in tokens.jwks()["keys"]] == ["sign-1", "sign-2"]
    assert tokens.read(old)


@pytest.mark.parametrize(("seconds_ago", "still"), [(2, True), (LONG_AGO_S, False)])
def test_a_key_that_was_followed_is_accepted_for_a_tokens_life(keys: Keys, seconds_ago: float, still: bool) -> None:
    tokens = AccessTokens(keys.opened(), ISSUER, LIFETIME_S)
    old = issued(tokens)
    keys.rotate(KeyUse.SIGN, seconds_ago)
    tokens.replace(keys.opened())
    assert jwt.get_unverified_header(issued(tokens))["kid"] == "sign-2" and tokens.read(issued(tokens))
    if still:
        assert tokens.read(old)
    else:
        with pytest.raises(InvalidToken):
            tokens.read(old)


def test_a_signer_and_its_public_key_belong_together(make: Make) -> None:
    store, other = make().opened(), make().opened()
    signer, public = store.signer("sign-1"), store.public_key("sign-1")
    assert (signer.kid, signer.algorithm) == (public.kid, public.algorithm)
    signature = signer.sign(b"message")
    assert verify(public, b"message", signature) and not verify(public, b"massage", signature)
    assert not verify(other.public_key("sign-1"), b"message", signature)


@pytest.mark.parametrize("kid", ["sign-9", "kek-1", ""])
def test_a_key_of_another_name_or_use_does_not_sign(keys: Keys, kid: str) -> None:
    store = keys.opened()
    for what in (store.signer, store.public_key):
        with pytest.raises(KeyStoreError):
            what(kid)


@pytest.mark.parametrize("length", [16, 32])
def test_what_is_wrapped_unwraps_by_its_own_kek_alone(make: Make, length: int) -> None:
    keys = make()
    store, secret = keys.opened(), os.urandom(length)
    kek_id, wrapped = store.wrap(secret)
    assert kek_id == "kek-1" and secret not in wrapped and store.unwrap(kek_id, wrapped) == secret
    keys.rotate(KeyUse.KEK, 0)
    rotated = keys.opened()
    assert rotated.wrap(secret).kek_id == "kek-2" and rotated.unwrap("kek-1", wrapped) == secret
    for other, bad in (
        (make().opened(), wrapped), (store, wrapped[:-1]), (store, b""), (store, bytes([wrapped[0] ^ 1]) + wrapped[1:]),
    ):  # fmt: skip
        with pytest.raises(DoesNotOpen):
            other.unwrap("kek-1", bad)
    with pytest.raises(DoesNotOpen):
        rotated.unwrap("kek-2", wrapped)
    for kek_id in ("kek-9", "index-1"):
        with pytest.raises(KeyStoreError):
            store.unwrap(kek_id, wrapped)


def test_a_data_key_wrapped_anew_is_the_same_key(make: Make) -> None:
    keys = make()
    row = WrappedDataKey(7, *new_data_key(keys.opened()))
    before, after_it = Sealer(), Sealer()
    before.add([row], keys.opened())
    keys.rotate(KeyUse.KEK, 0)
    anew = rewrap(row, keys.opened())
    assert anew == row._replace(kek_id="kek-2", wrapped=anew.wrapped) and anew.wrapped != row.wrapped
    after_it.add([anew], keys.opened())
    assert after_it.open(b"t.c", b"r" * 16, before.seal(7, b"t.c", b"r" * 16, b"secret")) == b"secret"
    with pytest.raises(SealError, match="data key 7"):
        rewrap(row, make().opened())


def test_a_working_key_is_released_and_stays_the_same(make: Make) -> None:
    keys = make()

    def index(keys: Keys) -> bytes:
        return BlindIndex(keys.opened().working_keys(KeyUse.INDEX)[-1]).number("AB1234567")

    assert index(keys) == index(keys) != index(make())


def test_the_status_tells_of_every_key(keys: Keys) -> None:
    keys.rotate(KeyUse.SIGN, 0)
    keys.rotate(KeyUse.KEK, 0)
    lines = status(keys.opened(), dt.datetime.now(dt.UTC), LIFETIME_S, {"kek-1": 3, "kek-2": 0})
    assert {line.kid: line.state for line in lines} == {
        "sign-1": "accepted", "sign-2": "current", "kek-1": "accepted", "kek-2": "current",
        "index-1": "current", "pseudonym-1": "current", "card-proof-1": "current",
    }  # fmt: skip
