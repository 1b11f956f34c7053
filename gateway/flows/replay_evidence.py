"""Replay the check of a recorded operation: was it really asked for by that caller, in these words?"""

import base64
import json
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.crypto.digests import DIGESTS, kept_digest
from gateway.crypto.key_store import KeyStore
from gateway.crypto.sealing import Sealer
from gateway.crypto.signatures import read_signing_jwk, verify
from gateway.crypto.tokens import subject_of
from gateway.flows.effects import PROOF_COLUMN, facts_digest
from gateway.store import data_keys, operations
from gateway.store.operations import Operation, Recorded

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


FACTS_BYTES = 32


class Replay(NamedTuple):
    """A signed operation's proof, and what became of checking it again."""

    base: str
    """The signature base (RFC 9421 §2.5), as the caller signed it."""
    body: bytes | None
    """None: it is not kept of operations of this kind; whoever shows it is measured by its digest."""
    digest: str
    """As it was signed (RFC 9530)."""
    checks: dict[str, bool]
    """What was checked, and whether it holds."""


async def replay(connection: "AnyConnection", keys: KeyStore, reference: UUID) -> tuple[Recorded | None, Replay | None]:
    """(the operation, its replay); the latter is None for one that was not signed.

    Raises KeyStoreError, SealError: the proof cannot be opened with these keys, or was altered.
    """
    recorded = await operations.find(connection, reference)
    if recorded is None or recorded.operation.proof_sealed is None:
        return recorded, None
    operation = recorded.operation
    assert operation.proof_sealed and operation.public_jwk and operation.algorithm and operation.signature
    assert operation.key_id and operation.signed_at, "written together"
    sealer = Sealer()
    sealer.add(await data_keys.load(connection), keys)
    proof = sealer.open(PROOF_COLUMN, operation.reference.bytes, operation.proof_sealed)
    facts, proof = proof[:FACTS_BYTES], proof[FACTS_BYTES:]
    base, has_body, body = proof.partition(b"\0")
    values = dict(line[1:].split('": ', 1) for line in base.decode().splitlines())
    name, _, digest = values["content-digest"].partition("=:")
    parameters = (
        f';created={operation.signed_at.timestamp():.0f};keyid="{operation.key_id}";alg="{operation.algorithm}"'
    )
    token = values["authorization"].partition(" ")[2]
    checks = {
        "what was done and for whom is what was recorded": facts == facts_digest(operation),
        "the token in it is that caller's": (subject_of(token) or ("",))[0] == operation.caller,
        "the signature base is the one that was recorded": kept_digest(base) == operation.base_digest,
        "the signature under it is good": _is_good(operation, base),
        "it names the recorded key and time": parameters in values["@signature-params"],
    }
    if has_body:
        checks["its digest is that of the body"] = DIGESTS[name](body) == base64.b64decode(digest.rstrip(":"))
    return recorded, Replay(base.decode(), body if has_body else None, values["content-digest"], checks)


def _is_good(operation: Operation, base: bytes) -> bool:
    """Whether the recorded signature is; one under a key that would not be taken (anybody's) proves nothing."""
    assert operation.public_jwk and operation.algorithm and operation.signature
    try:
        key = read_signing_jwk(json.loads(operation.public_jwk) | {"kid": operation.key_id}, operation.algorithm)
    except ValueError:
        return False
    return verify(key, base, operation.signature)
