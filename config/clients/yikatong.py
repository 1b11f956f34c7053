"""A client of the 一卡通 gateway to copy into your own program: tokens, verify, signed effects that are safe to retry.

Python 3.9 or later and `cryptography`; a caller that signs with SM2 also needs `gmssl-fast`.
"""

import base64
import hashlib
import http.client
import json
import random
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

COVERED = ("@method", "@authority", "@path", "@query", "content-digest", "authorization", "idempotency-key")
ATTEMPTS, WAIT_MAX_S = 4, 10
Request = tuple[str, str, dict[str, str]]  # target, body, headers
KEY_IS = {"lose": 3, "release": 2, "pay": 5, "reverse": 2, "visit": 6, "open": 3, "redeem": 6, "commit": 2, "cancel": 2}
"""The argument of a command that is its Idempotency-Key."""
READS = {"verify": 3, "points": 2}
"""Commands without one, with the number of their arguments."""
USAGE = """yikatong.py CALLER_FILE token
yikatong.py CALLER_FILE verify CARD_NUMBER CARD_IDENTIFIER SCENE
yikatong.py CALLER_FILE lose CARD_NUMBER CARD_IDENTIFIER [IDEMPOTENCY_KEY]
yikatong.py CALLER_FILE release REFERENCE [IDEMPOTENCY_KEY]
yikatong.py CALLER_FILE pay CARD_NUMBER CARD_IDENTIFIER FEN ORDER_ID [IDEMPOTENCY_KEY [SCENE]]
yikatong.py CALLER_FILE reverse REFERENCE [IDEMPOTENCY_KEY]
yikatong.py CALLER_FILE visit CARD_NUMBER CARD_IDENTIFIER SCENE TERMINAL DETAILS [IDEMPOTENCY_KEY]    # DETAILS: JSON
yikatong.py CALLER_FILE open REFERENCE PAYMENT [IDEMPOTENCY_KEY]
yikatong.py CALLER_FILE points CARD_NUMBER CARD_IDENTIFIER
yikatong.py CALLER_FILE redeem CARD_NUMBER CARD_IDENTIFIER ITEM POINTS OUTLET [IDEMPOTENCY_KEY]
yikatong.py CALLER_FILE commit REFERENCE [IDEMPOTENCY_KEY]
yikatong.py CALLER_FILE cancel REFERENCE [IDEMPOTENCY_KEY]"""


class Answer(NamedTuple):
    status: int
    headers: Any
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """`caller` is the content of a caller's file."""

    def __init__(self, caller: dict[str, Any]) -> None:
        self.caller = caller
        url = urlsplit(caller["token_url"])
        self.secure = url.scheme == "https"
        # what the signature calls @authority: lower case, and a port only if it is not the scheme's own
        self.authority = url.netloc.lower().removesuffix(":443" if self.secure else ":80")
        self._token, self._token_until = "", 0.0

    def token(self) -> str:
        """An access token, kept until it nears its end. Like an effect, it is asked for up to four times."""
        now = time.time()
        if now > self._token_until - 60:
            answer = self._with_retries(self._token_request)
            if answer.status != 200:
                raise RuntimeError(f"no token: {answer.status} {answer.body.decode()}")
            self._token, self._token_until = answer.json()["access_token"], now + answer.json()["expires_in"]
        return self._token

    def _token_request(self) -> Request:
        """With a new assertion: each is good once."""
        me, now = self.caller["client_id"], int(time.time())
        head = {"alg": self.caller["alg"], "kid": self.caller["kid"], "typ": "JWT"}
        claims = {"iss": me, "sub": me, "aud": self.caller["issuer"], "jti": str(uuid.uuid4())}
        claims |= {"iat": now, "exp": now + 60}
        signed = ".".join(_b64url(json.dumps(part).encode()) for part in (head, claims))
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": signed + "." + _b64url(sign(self.caller, signed.encode())),
        }
        return "/oauth2/token", urlencode(form), {"Content-Type": "application/x-www-form-urlencoded"}

    def verify(self, presentation: dict[str, Any], scene: str, terminal_id: str) -> Answer:
        body = json.dumps({"presentation": presentation, "scene": scene, "terminal_id": terminal_id})
        return self._post("/v1/cards/verify", body, {"Content-Type": "application/json"} | self._authorization())

    def report_loss(self, presentation: dict[str, Any], key: str, kind: str = "temporary") -> Answer:
        return self.effect("/v1/cards/loss-reports", {"presentation": presentation, "kind": kind}, key)

    def release(self, reference: str, key: str) -> Answer:
        return self.effect(f"/v1/cards/loss-reports/{reference}/release", {}, key)

    def pay(
        self,
        presentation: dict[str, Any],
        amount_fen: int,
        order_id: str,
        key: str,
        scene: str = "market.till",
        apply_benefits: bool = False,
    ) -> Answer:
        """202 is `pending`: ask GET /v1/operations/{reference} until it is not, or reverse it."""
        body: dict[str, Any] = {"presentation": presentation, "scene": scene, "terminal_id": "T-0001"}
        body |= {"amount_fen": amount_fen, "merchant_order_id": order_id}
        return self.effect("/v1/payments", body | ({"apply_benefits": True} if apply_benefits else {}), key)

    def reverse(self, reference: str, key: str) -> Answer:
        return self.effect(f"/v1/payments/{reference}/reversals", {}, key)

    def visit(
        self, presentation: dict[str, Any], scene: str, terminal_id: str, details: dict[str, Any], key: str
    ) -> Answer:
        """A card at a terminal behind which your own system stands: it opens, checks in or takes off by itself.

        `due`: pay `amount_fen`, without benefits, then open(). 202 is `pending`: ask GET /v1/operations/{reference}.
        """
        body = {"presentation": presentation, "scene": scene, "terminal_id": terminal_id, "details": details}
        return self.effect("/v1/visits", body, key)

    def open(self, reference: str, payment: str, key: str) -> Answer:
        """`payment`: the reference of an approved one of at least what is due."""
        return self.effect(f"/v1/visits/{reference}/open", {"payment": payment}, key)

    def points(self, presentation: dict[str, Any]) -> Answer:
        """What the card's holder has. With a `card_ref` that you have kept, the first call is not needed."""
        verdict = self.verify(presentation, "kiosk.service", "T-0001")
        if "card_ref" not in verdict.json():
            return verdict
        return self._send("GET", f"/v1/points/{verdict.json()['card_ref']}", "", self._authorization())

    def redeem(self, presentation: dict[str, Any], item: str, points: int, outlet_id: str, key: str) -> Answer:
        """`reserved`: hand the item over and commit, or cancel, before `expires_at`. `refused`: the reason says why."""
        body = {"presentation": presentation, "item": item, "points": points, "outlet_id": outlet_id}
        return self.effect("/v1/points/redemptions", body, key)

    def commit(self, reference: str, key: str) -> Answer:
        return self.effect(f"/v1/points/redemptions/{reference}/commit", {}, key)

    def cancel(self, reference: str, key: str) -> Answer:
        return self.effect(f"/v1/points/redemptions/{reference}/cancel", {}, key)

    def rotate(self, public_jwk: dict[str, str], key: str) -> Answer:
        """Put a new signing key in the place of the present one, which signs this request.

        If the answer is lost, or 401 after a lost one: take the new key into `caller["signing"]` and ask again with the
        same `key` and body.
        """
        body = {"use": "signing", "jwk": public_jwk, "retire": self.caller["signing"]["kid"]}
        return self.effect("/v1/callers/self/keys", body, key)

    def effect(self, target: str, body: Any, key: str) -> Answer:
        """A signed POST. Store `key` first, and call again with it until there is an answer: it is done once."""
        raw = json.dumps(body)
        return self._with_retries(lambda: (target, raw, self._effect_headers(target, raw.encode(), key)))

    def _with_retries(self, request: Callable[[], Request]) -> Answer:
        """Asks again, with the request made anew, after a broken connection and where it is told when (Retry-After)."""
        for attempt in range(1, ATTEMPTS + 1):
            wait = attempt
            made = request()
            try:
                answer = self._post(*made)
                if attempt == ATTEMPTS or answer.status < 400 or "Retry-After" not in answer.headers:
                    return answer
                if answer.headers["Retry-After"].isdecimal():  # a proxy may name a date
                    wait = min(int(answer.headers["Retry-After"]), WAIT_MAX_S)
            except (OSError, http.client.HTTPException):
                if attempt == ATTEMPTS:
                    raise
            time.sleep(wait * random.uniform(1, 1.5))  # noqa: S311 - not in step with others that were refused
        raise AssertionError

    def _effect_headers(self, target: str, raw: bytes, key: str) -> dict[str, str]:
        """RFC 9421, with a new `created`: an old signature is refused after five minutes."""
        headers = {"content-type": "application/json", "idempotency-key": key}
        headers["authorization"] = f"Bearer {self.token()}"
        signing = self.caller.get("signing")
        if signing is None:  # the gateway lets this caller send effects unsigned
            return headers
        headers["content-digest"] = digest(signing["alg"], raw)
        path, _, query = target.partition("?")
        values = {"@method": "POST", "@authority": self.authority, "@path": path, "@query": f"?{query}", **headers}
        names = " ".join(f'"{name}"' for name in COVERED)
        parameters = f'({names});created={int(time.time())};keyid="{signing["kid"]}"'
        parameters += f';alg="{signing["alg"]}";tag="yikatong-v1"'
        lines = [f'"{name}": {values[name]}' for name in COVERED] + [f'"@signature-params": {parameters}']
        signature = base64.b64encode(sign(signing, "\n".join(lines).encode())).decode()
        return headers | {"signature-input": f"sig1={parameters}", "signature": f"sig1=:{signature}:"}

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token()}"}

    def _post(self, target: str, body: str, headers: dict[str, str]) -> Answer:
        return self._send("POST", target, body, headers)

    def _send(self, method: str, target: str, body: str, headers: dict[str, str]) -> Answer:
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        connection = kind(self.authority, timeout=10)
        try:
            connection.request(method, target, body.encode(), headers | {"Host": self.authority})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()


def sign(key: dict[str, Any], message: bytes) -> bytes:
    """`key`: a caller's file (for its tokens) or the `signing` block in it (for its effects)."""
    if key["alg"] == "sm2-sm3":  # DER, user id 1234567812345678 (the default of gmssl-fast)
        from gmssl_fast import SM2

        pair = SM2(key["private_key_hex"], key["public_key_hex"]).sign(message)
        return encode_dss_signature(int.from_bytes(pair[:32], "big"), int.from_bytes(pair[32:], "big"))
    secret = _unb64url(key["private_jwk"]["d"])
    if key["alg"] in ("EdDSA", "ed25519"):
        return Ed25519PrivateKey.from_private_bytes(secret).sign(message)
    private = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1())
    r, s = decode_dss_signature(private.sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def digest(algorithm: str, raw: bytes) -> str:
    """Content-Digest: a caller that signs with SM2 stays with the national algorithms."""
    if algorithm == "sm2-sm3":
        from gmssl_fast import sm3

        return f"sm3=:{base64.b64encode(sm3(raw)).decode()}:"
    return f"sha-256=:{base64.b64encode(hashlib.sha256(raw).digest()).decode()}:"


def _b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unb64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def main(file: str, command: str, *arguments: str) -> int:
    client = Client(json.loads(Path(file).read_text()))
    if command == "token":
        print(client.token())
        return 0
    key_is = KEY_IS.get(command, 0)
    key = arguments[key_is - 1] if 0 < key_is <= len(arguments) else str(uuid.uuid4())
    if command in KEY_IS:
        print(f"Idempotency-Key: {key}", file=sys.stderr)  # before it is used: with it you may ask again
    first, *rest = arguments
    if command in ("release", "reverse", "commit", "cancel"):
        answer = getattr(client, command)(first, key)
    elif command == "open":
        answer = client.open(first, rest[0], key)
    else:
        answer = _with_card(client, command, {"type": "chip_card", "card_number": first}, rest, key)
    replayed = " (replayed)" if answer.headers["Idempotency-Replayed"] else ""
    print(f"{answer.status}{replayed}", file=sys.stderr)
    print(answer.body.decode())
    return int(not 200 <= answer.status < 300)


def _with_card(client: Client, command: str, card: dict[str, Any], given: list[str], key: str) -> Answer:
    card["card_identifier"] = given[0]
    if command == "verify":
        return client.verify(card, given[1], "T-0001")
    if command == "points":
        return client.points(card)
    if command == "pay":
        scene = given[4] if len(given) == 5 else "market.till"
        return client.pay(card, int(given[1]), given[2], key, scene, apply_benefits=len(given) == 5)
    if command == "redeem":
        return client.redeem(card, given[1], int(given[2]), given[3], key)
    if command == "visit":
        return client.visit(card, given[1], given[2], json.loads(given[3]), key)
    return client.report_loss(card, key)


if __name__ == "__main__":
    counts = {name: {count - 1, count} for name, count in KEY_IS.items()} | {"token": {0}}
    counts |= {name: {count} for name, count in READS.items()}
    counts["pay"].add(6)
    if len(sys.argv) - 3 not in counts.get(sys.argv[2] if len(sys.argv) > 2 else "", ()):
        sys.exit(USAGE)
    try:
        sys.exit(main(*sys.argv[1:]))
    except (OSError, RuntimeError, ValueError, KeyError, ImportError, http.client.HTTPException) as error:
        sys.exit(f"yikatong.py: {type(error).__name__}: {error}")
