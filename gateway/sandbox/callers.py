"""The sandbox's callers: a key pair for each, made once; what a newcomer needs to call is left in one file a caller."""

import json
from typing import Any

from gateway.crypto import sm2
from gateway.crypto.key_files import write_private
from gateway.crypto.signatures import JOSE_NAMES, SM2_SM3, new_private_jwk, sm2_public_jwk
from gateway.settings import Settings

PUBLIC = "sandbox/callers/public/"


def write_callers(settings: Settings) -> list[str]:
    """Key files for the callers whose keys_file is in the sandbox; keys that exist stay. Returns the names."""
    folder = settings.data_dir / "sandbox" / "callers"
    (settings.data_dir / PUBLIC).mkdir(mode=0o700, parents=True, exist_ok=True)
    written = []
    for client_id, caller in settings.callers.items():
        if caller.keys_file is None or not caller.keys_file.startswith(PUBLIC):
            continue
        file = folder / f"{client_id}.json"
        old = json.loads(file.read_text()) if file.exists() else {}
        private = old.get("private_jwk") or new_private_jwk(caller.algorithm) | {"kid": f"{client_id}-1", "use": "sig"}
        document = {
            "client_id": client_id,
            "issuer": settings.issuer,
            "token_url": f"{settings.issuer}/oauth2/token",
            "scope": " ".join(caller.scopes),
            "alg": caller.algorithm,
            "kid": private["kid"],
            "private_jwk": private,
            "signature": caller.signature if caller.signing_algorithm else "optional",
        }
        _write_public(settings, caller.keys_file, private)
        if caller.signing_algorithm is not None and caller.signing_keys_file is not None:
            signing = old.get("signing") or {}
            if signing.get("alg") != caller.signing_algorithm:  # none yet, or of another algorithm
                signing = _new_signing(caller.signing_algorithm, f"{client_id}-signing-1")
            document["signing"] = signing
            _write_public(settings, caller.signing_keys_file, _public_signing_jwk(signing))
        write_private(file, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        written.append(client_id)
    return written


def _write_public(settings: Settings, file: str, jwk: dict[str, Any]) -> None:
    public = {name: value for name, value in jwk.items() if name != "d"}
    write_private(settings.data_dir / file, json.dumps({"keys": [public]}) + "\n")


def _new_signing(algorithm: str, kid: str) -> dict[str, Any]:
    if algorithm == SM2_SM3:
        secret, point = sm2.generate()
        return {"alg": algorithm, "kid": kid, "private_key_hex": secret.hex(), "public_key_hex": point.hex()}
    jwk = new_private_jwk(JOSE_NAMES[algorithm])
    return {"alg": algorithm, "kid": kid, "private_jwk": jwk | {"kid": kid, "use": "sig"}}


def _public_signing_jwk(signing: dict[str, Any]) -> dict[str, Any]:
    if signing["alg"] == SM2_SM3:
        return sm2_public_jwk(signing["kid"], bytes.fromhex(signing["public_key_hex"]))
    jwk: dict[str, Any] = signing["private_jwk"]
    return jwk
