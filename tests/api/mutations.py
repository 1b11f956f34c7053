"""One good signed request, and hundreds that look like it and must be refused.

Two ways to go wrong: what was signed is changed afterwards, or something of another form is signed by the right key.
"""

import base64
import hashlib
import secrets
import time
from collections.abc import Iterator
from typing import NamedTuple

from gateway.crypto.digests import sm3
from tests.signing import COMPONENTS, Signing

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
Headers = tuple[tuple[str, bytes], ...]

_COVERED = "(" + " ".join(f'"{name}"' for name in COMPONENTS) + ")"


class Sent(NamedTuple):
    """A request as it goes over the wire."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes

    def raw(self) -> bytes:
        lines = [b"%s %s HTTP/1.1" % (self.method, self.target)]
        lines += [name.encode() + b": " + value for name, value in self.headers]
        return b"\r\n".join([*lines, b"X-Request-Id: x", b"Content-Length: %d" % len(self.body), b"", b""]) + self.body

    def value(self, name: str) -> bytes:
        return next(value for known, value in self.headers if known == name)

    def with_header(self, name: str, value: bytes) -> "Sent":
        return self._replace(headers=tuple((known, value if known == name else old) for known, old in self.headers))

    def without(self, name: str) -> "Sent":
        return self._replace(headers=tuple(header for header in self.headers if header[0] != name))

    def beside(self, name: str, value: bytes, first: bool = False) -> "Sent":
        """With another line of a header, behind or before the one that is there."""
        more = ((name, value),)
        return self._replace(headers=more + self.headers if first else self.headers + more)


class Parts(NamedTuple):
    """What a signer puts together; each part may be changed before it is signed."""

    signing: Signing
    host: str
    target: str
    body: bytes
    authorization: str
    key: str
    kid: str
    created: str
    alg: str
    tag: str = '"yikatong-v1"'
    components: str = _COVERED
    digest: str = ""
    params: str = ""
    label: str = "sig1"
    method: str = "POST"

    def good_params(self) -> dict[str, str]:
        return {"created": self.created, "keyid": self.kid, "alg": self.alg, "tag": self.tag}

    def sign(self) -> Sent:
        digest = self.digest or digest_of(self.body)
        params = self.params or "".join(f";{name}={text}" for name, text in self.good_params().items())
        path, _, query = self.target.partition("?")
        values = {
            "@method": self.method,
            "@authority": self.host,
            "@path": path,
            "@query": f"?{query}",
            "content-digest": digest,
            "authorization": self.authorization,
            "idempotency-key": self.key,
            "content-type": "application/json",
            "@target-uri": f"http://{self.host}{self.target}",
            "@scheme": "http",
            "@request-target": self.target,
            "host": self.host,
            "content-length": str(len(self.body)),
            "x-request-id": "x",
            "date": "",
        }
        names = [part.split('"')[1] for part in self.components.strip("()").split()]
        identifiers = self.components.strip("()").split()
        lines = [f"{item}: {values.get(name.lower(), '')}\n" for name, item in zip(names, identifiers, strict=True)]
        base = "".join(lines) + f'"@signature-params": {self.components}{params}'
        signature = base64.b64encode(self.signing.sign(base.encode())).decode()
        headers = {
            "Host": self.host,
            "Content-Type": "application/json",
            "Authorization": self.authorization,
            "Idempotency-Key": self.key,
            "Content-Digest": digest,
            "Signature-Input": f"{self.label}={self.components}{params}",
            "Signature": f"{self.label}=:{signature}:",
        }
        raw = tuple((name, value.encode()) for name, value in headers.items())
        return Sent(self.method.encode(), self.target.encode(), raw, self.body)


def digest_of(body: bytes, name: str = "sha-256") -> str:
    raw = sm3(body) if name == "sm3" else hashlib.sha256(body).digest()
    return f"{name}=:{base64.b64encode(raw).decode()}:"


def parts_of(signing: Signing, host: str, target: str, body: bytes, authorization: str) -> Parts:
    return Parts(
        signing,
        host,
        target,
        body,
        authorization,
        secrets.token_urlsafe(16),
        f'"{signing.kid}"',
        str(int(time.time())),
        f'"{signing.algorithm}"',
    )


BYTES = b"aZ9 \t\x00\x01\x7f\x80\xff\"\\;,:=%()'~"
"""One of every class that a parser may treat in its own way."""

_ONE_BY_ONE = ("Content-Digest", "Authorization", "Idempotency-Key", "Signature-Input", "Signature", "Host")


def bytes_changed(good: Sent) -> Iterator[tuple[str, Sent]]:
    """Every signed part at its beginning, inside and at its end: a byte of every class; one gone, one too many."""
    for name in _ONE_BY_ONE:
        value = good.value(name)
        for place in (0, len(value) // 2, len(value) - 1):
            for byte in BYTES:
                changed = value[:place] + bytes([byte]) + value[place + 1 :]
                if changed != value:
                    yield f"{name}[{place}] = {byte:#04x}", good.with_header(name, changed)
            yield f"{name}[{place}] gone", good.with_header(name, value[:place] + value[place + 1 :])
            yield f"{name}[{place}] twice", good.with_header(name, value[: place + 1] + value[place:])
        if value.swapcase() != value:
            yield f"{name} in the other case", good.with_header(name, value.swapcase())
    for place in (1, len(good.target) // 2, len(good.target) - 1):
        for byte in BYTES:
            changed = good.target[:place] + bytes([byte]) + good.target[place + 1 :]
            if changed != good.target:
                yield f"target[{place}] = {byte:#04x}", good._replace(target=changed)
    for place in (0, len(good.body) // 2, len(good.body) - 1):
        yield f"body[{place}]", good._replace(body=good.body[:place] + b" " + good.body[place + 1 :])


def moved(good: Sent, path: bytes) -> Iterator[tuple[str, Sent]]:
    """Another method, path, query, authority or body under the signature."""
    for method in (b"GET", b"PUT", b"PATCH", b"DELETE", b"post", b"POSTS", b"OPTIONS", b"REPORT"):
        yield f"method {method.decode()}", good._replace(method=method)
    query = good.target.partition(b"?")[2]
    targets = [
        path,
        path + b"?",
        path + b"??" + query,
        path + b"?" + query + b"&",
        path + b"?" + query + b"&x=1",
        path + b"?" + query[::-1],
        path + b"?%64" + query[1:],
        path + b"#" + query,
        path + b"?" + query + b"#x",
        path.replace(b"-", b"%2D") + b"?" + query,
        path.replace(b"-", b"%2d") + b"?" + query,
        path + b"/?" + query,
        b"/" + path + b"?" + query,
        b"/." + path + b"?" + query,
        path + b";x?" + query,
        path + b"%3F" + query,
        path.upper() + b"?" + query,
        path + b"/01890000-0000-7000-8000-000000000000/release",
        b"http://" + good.value("Host") + good.target,
        b"http://elsewhere" + good.target,
        b"/v1/cards/verify",
    ]
    for target in targets:
        yield f"target {target.decode()}", good._replace(target=target)
    host = good.value("Host")
    for other in (
        b"elsewhere",
        host.partition(b":")[0],
        host + b":80",
        host + b":443",
        host + b".",
        b"x@" + host,
        host + b"/",
        host + b"?x",
        b"",
        b"localhost:" + host.partition(b":")[2],
        host.replace(b":", b".:"),
        host.partition(b":")[0] + b":0" + host.partition(b":")[2],
        b"[::1]",
    ):
        yield f"host {other.decode()}", good.with_header("Host", other)
    for what, body in {
        "empty": b"",
        "longer": good.body + b" ",
        "shorter": good.body[:-1],
        "other": good.body.replace(b"y", b"z"),
        "twice": good.body * 2,
        "formal": good.body.replace(b"temporary", b"formal"),
    }.items():
        yield f"body {what}", good._replace(body=body)


def lines_changed(good: Sent) -> Iterator[tuple[str, Sent]]:
    """A header that is missing, there twice, or beside another of its name."""
    for name in _ONE_BY_ONE:
        value = good.value(name)
        if name != "Idempotency-Key":
            yield f"{name} missing", good.without(name)
        yield f"{name} empty", good.with_header(name, b"")
        yield f"{name} twice", good.beside(name, value)
        yield f"{name} twice in small letters", good.beside(name.lower(), value)
        yield f"{name} with another behind", good.beside(name, b"x")
        yield f"{name} with another before", good.beside(name, b"x", first=True)
        yield f"{name} with an empty one", good.beside(name, b"")
        yield f"{name} as a list", good.with_header(name, value + b", " + value)
        yield f"{name} huge", good.with_header(name, value + b"A" * 5000)
        yield f"{name} beyond what HTTP takes", good.with_header(name, value + b"A" * 70_000)
        yield f"{name} not ASCII", good.with_header(name, value + "签".encode())
    yield "half: no Signature", good.without("Signature")
    yield "half: no Signature-Input", good.without("Signature-Input")
    yield "neither", good.without("Signature").without("Signature-Input")
    yield "nothing but the key", good.without("Signature").without("Signature-Input").without("Content-Digest")


def signatures_changed(good: Sent, algorithm: str) -> Iterator[tuple[str, Sent]]:
    """Another writing of the signature's bytes, and other bytes."""
    text = good.value("Signature").removeprefix(b"sig1=:").removesuffix(b":")
    raw = base64.b64decode(text)
    written = {
        "without padding": text.rstrip(b"="),
        "more padding": text + b"=",
        "padding inside": text[:4] + b"=" + text[4:],
        "blank inside": text[:8] + b" " + text[8:],
        "blank before": b" " + text,
        "blank behind": text + b" ",
        "spare bits set": _spare_bits(text),
        "empty": b"",
        "one character": b"A",
        "hex": raw.hex().encode(),
        "url-safe": base64.urlsafe_b64encode(b"\xff\xfe" + raw[2:]),
    }
    for what, value in written.items():
        if value != text:
            yield f"signature {what}", good.with_header("Signature", b"sig1=:" + value + b":")
    half = len(raw) // 2
    others = {
        "cut": raw[:-1],
        "half": raw[:half],
        "longer": raw + b"\0",
        "longer before": b"\0" + raw,
        "twice": raw * 2,
        "zero": bytes(len(raw)),
        "ones": b"\xff" * len(raw),
        "reversed": raw[::-1],
        "halves swapped": raw[half:] + raw[:half],
        "r = 0": bytes(half) + raw[half:],
        "s = 0": raw[:half] + bytes(half),
        "r = n": P256_ORDER.to_bytes(32, "big") + raw[32:],
        "s = n": raw[:32] + P256_ORDER.to_bytes(32, "big"),
        "s + n": raw[:32] + ((int.from_bytes(raw[32:64], "big") + P256_ORDER) % 2**256).to_bytes(32, "big"),
        "of chance": secrets.token_bytes(len(raw)),
        "digest of it": hashlib.sha256(raw).digest(),
        "as DER" if algorithm != "sm2-sm3" else "as r and s": _other_form(raw, algorithm),
    }
    for what, bytes_ in others.items():
        yield f"signature {what}", good.with_header("Signature", b"sig1=:" + base64.b64encode(bytes_) + b":")
    for number in range(0, len(raw) * 8, 37):
        flipped = bytearray(raw)
        flipped[number // 8] ^= 1 << number % 8
        yield f"signature bit {number}", good.with_header("Signature", b"sig1=:" + base64.b64encode(flipped) + b":")
    yield from _fields_changed(good, text)


def _fields_changed(good: Sent, text: bytes) -> Iterator[tuple[str, Sent]]:
    """Labels and the form of the two fields; `text` is the signature in base64."""
    value = good.value("Signature")
    for what, other in {
        "label sig2": value.replace(b"sig1", b"sig2"),
        "label SIG1": value.replace(b"sig1", b"SIG1"),
        "no label": value[5:],
        "no colons": value.replace(b":", b""),
        "a string": b'sig1="' + text + b'"',
        "a blank at =": value.replace(b"=:", b"= :", 1),
        "a parameter": value + b";x=1",
        "a second label": value + b", sig2=::",
        "a copy": value + b", sig2" + value[4:],
        "the label twice": value + b"," + value,
        "a list": b"sig1=(" + value[5:] + b")",
    }.items():
        yield f"Signature with {what}", good.with_header("Signature", other)
    given = good.value("Signature-Input")
    for what, other in {
        "a second label": given + b", sig2" + given[4:],
        "the label twice": given + b", " + given,
        "label sig2": b"sig2" + given[4:],
        "label sig1a": b"sig1a" + given[4:],
        "a blank at =": b"sig1= " + given[5:],
        "a second label before": b"sig0" + given[4:] + b", " + given,
    }.items():
        yield f"Signature-Input with {what}", good.with_header("Signature-Input", other)
    yield (
        "both with sig2 only",
        good.with_header("Signature", b"sig2" + value[4:]).with_header("Signature-Input", b"sig2" + given[4:]),
    )
    yield (
        "both with sig1 and sig2",
        good.with_header("Signature", value + b", sig2" + value[4:]).with_header(
            "Signature-Input", given + b", sig2" + given[4:]
        ),
    )


def _spare_bits(text: bytes) -> bytes:
    """The same bytes with the bits that base64 leaves over set."""
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    kept = text.rstrip(b"=")
    if kept == text:
        return b""
    return kept[:-1] + letters[letters.index(kept[-1]) | 1 : (letters.index(kept[-1]) | 1) + 1] + text[len(kept) :]


def _other_form(raw: bytes, algorithm: str) -> bytes:
    """DER instead of r‖s, and the other way round."""
    if algorithm == "sm2-sm3":
        r_length = raw[3]
        r, s = raw[4 : 4 + r_length], raw[6 + r_length :]
        return r.lstrip(b"\0").rjust(32, b"\0") + s.lstrip(b"\0").rjust(32, b"\0")
    pieces = b""
    for number in (raw[:32], raw[32:]):
        short = number.lstrip(b"\0") or b"\0"
        short = b"\0" + short if short[0] & 0x80 else short
        pieces += b"\x02" + bytes([len(short)]) + short
    return b"\x30" + bytes([len(pieces)]) + pieces
