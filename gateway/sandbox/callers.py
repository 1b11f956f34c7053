"""The sandbox's callers: a key pair for each, made once; what a newcomer needs to call is left in one file a caller."""

import base64
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.crypto.key_store import write_private
from gateway.settings import Settings

PUBLIC = "sandbox/callers/public/"


def write_callers(settings: Settings) -> list[str]:
    """Key files for the callers whose keys_file is in the sandbox; keys that exist stay. Returns the names."""
    folder = settings.data_dir / "sandbox" / "callers"
    (settings.data_dir / PUBLIC).mkdir(mode=0o700, parents=True, exist_ok=True)
    written = []
    for client_id, caller in settings.callers.items():
        if not caller.keys_file.startswith(PUBLIC):
            continue
        file = folder / f"{client_id}.json"
        if file.exists():
            private = json.loads(file.read_text())["private_jwk"]
        else:
            private = _new_private_jwk(caller.algorithm) | {"kid": f"{client_id}-1", "use": "sig"}
        document = {
            "client_id": client_id,
            "issuer": settings.issuer,
            "token_url": f"{settings.issuer}/oauth2/token",
            "scope": " ".join(caller.scopes),
            "alg": caller.algorithm,
            "kid": private["kid"],
            "private_jwk": private,
            "signature": "optional",
        }
        write_private(file, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        public = {name: value for name, value in private.items() if name != "d"}
        write_private(settings.data_dir / caller.keys_file, json.dumps({"keys": [public]}) + "\n")
        written.append(client_id)
    return written


def _new_private_jwk(algorithm: str) -> dict[str, Any]:
    if algorithm == "EdDSA":
        key = Ed25519PrivateKey.generate()
        x = key.public_key().public_bytes_raw()
        return {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": _b64(x), "d": _b64(key.private_bytes_raw())}
    numbers = ec.generate_private_key(ec.SECP256R1()).private_numbers()
    point_x, point_y, secret = (
        _b64(number.to_bytes(32, "big"))
        for number in (numbers.public_numbers.x, numbers.public_numbers.y, numbers.private_value)
    )
    return {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": point_x, "y": point_y, "d": secret}


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
