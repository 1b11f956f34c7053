// A client of the 一卡通 gateway to copy into your own program: tokens, verify, signed effects that are safe to retry.
//
// Node 18 or later, no packages; a caller that signs with SM2 also needs `sm-crypto` (0.5.8 or later: old ones guess
// their random numbers).
import { createHash, createPrivateKey, randomUUID, sign as nodeSign } from "node:crypto";
import { existsSync, readFileSync, realpathSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const COVERED = ["@method", "@authority", "@path", "@query", "content-digest", "authorization", "idempotency-key"];
const ATTEMPTS = 4;
const WAIT_MAX_S = 10;
const USAGE = `yikatong.mjs CALLER_FILE token
yikatong.mjs CALLER_FILE verify CARD_NUMBER CARD_IDENTIFIER SCENE
yikatong.mjs CALLER_FILE lose CARD_NUMBER CARD_IDENTIFIER [IDEMPOTENCY_KEY]
yikatong.mjs CALLER_FILE release REFERENCE [IDEMPOTENCY_KEY]
yikatong.mjs CALLER_FILE pay CARD_NUMBER CARD_IDENTIFIER FEN ORDER_ID [IDEMPOTENCY_KEY [SCENE]]
yikatong.mjs CALLER_FILE reverse REFERENCE [IDEMPOTENCY_KEY]
yikatong.mjs CALLER_FILE visit CARD_NUMBER CARD_IDENTIFIER SCENE TERMINAL DETAILS [IDEMPOTENCY_KEY]    # DETAILS: JSON
yikatong.mjs CALLER_FILE open REFERENCE PAYMENT [IDEMPOTENCY_KEY]
yikatong.mjs CALLER_FILE points CARD_NUMBER CARD_IDENTIFIER
yikatong.mjs CALLER_FILE redeem CARD_NUMBER CARD_IDENTIFIER ITEM POINTS OUTLET [IDEMPOTENCY_KEY]
yikatong.mjs CALLER_FILE commit REFERENCE [IDEMPOTENCY_KEY]
yikatong.mjs CALLER_FILE cancel REFERENCE [IDEMPOTENCY_KEY]`;
const COUNTS = {
  token: [0], verify: [3], points: [2], lose: [2, 3], release: [1, 2], pay: [4, 5, 6], reverse: [1, 2], visit: [5, 6],
  open: [2, 3], redeem: [5, 6], commit: [1, 2], cancel: [1, 2],
};
const KEY_IS = { lose: 2, release: 1, pay: 4, reverse: 1, visit: 5, open: 2, redeem: 5, commit: 1, cancel: 1 };

export class Client {
  #token = "";
  #tokenUntil = 0;

  /** `caller` is the content of a caller's file. */
  constructor(caller) {
    this.caller = caller;
    const url = new URL(caller.token_url);
    this.origin = url.origin;
    this.authority = url.host; // as fetch sends it: lower case, and a port only if it is not the scheme's own
  }

  /** An access token, kept until it nears its end. Like an effect, it is asked for up to four times. */
  async token() {
    const now = Math.floor(Date.now() / 1000);
    if (now > this.#tokenUntil - 60) {
      const answer = await this.#withRetries(() => this.#tokenRequest());
      if (answer.status !== 200) throw new Error(`no token: ${answer.status} ${answer.body}`);
      const granted = JSON.parse(answer.body);
      this.#token = granted.access_token;
      this.#tokenUntil = now + granted.expires_in;
    }
    return this.#token;
  }

  /** With a new assertion: each is good once. */
  #tokenRequest() {
    const { client_id: me, issuer, alg, kid } = this.caller;
    const now = Math.floor(Date.now() / 1000);
    const claims = { iss: me, sub: me, aud: issuer, iat: now, exp: now + 60, jti: randomUUID() };
    const signed = [{ alg, kid, typ: "JWT" }, claims]
      .map((part) => Buffer.from(JSON.stringify(part)).toString("base64url"))
      .join(".");
    const form = new URLSearchParams({
      grant_type: "client_credentials",
      client_assertion_type: "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
      client_assertion: `${signed}.${sign(this.caller, signed).toString("base64url")}`,
    });
    return ["/oauth2/token", form.toString(), { "content-type": "application/x-www-form-urlencoded" }];
  }

  async verify(presentation, scene, terminalId) {
    const body = JSON.stringify({ presentation, scene, terminal_id: terminalId });
    const headers = { "content-type": "application/json", authorization: `Bearer ${await this.token()}` };
    return this.#post("/v1/cards/verify", body, headers);
  }

  reportLoss(presentation, key, kind = "temporary") {
    return this.effect("/v1/cards/loss-reports", { presentation, kind }, key);
  }

  release(reference, key) {
    return this.effect(`/v1/cards/loss-reports/${reference}/release`, {}, key);
  }

  /** 202 is `pending`: ask GET /v1/operations/{reference} until it is not, or reverse it. */
  pay(presentation, amountFen, orderId, key, scene = "market.till", applyBenefits = false) {
    const body = { presentation, scene, terminal_id: "T-0001", amount_fen: amountFen, merchant_order_id: orderId };
    return this.effect("/v1/payments", applyBenefits ? { ...body, apply_benefits: true } : body, key);
  }

  reverse(reference, key) {
    return this.effect(`/v1/payments/${reference}/reversals`, {}, key);
  }

  /** A card at a terminal behind which your own system stands: it opens, checks in or takes off by itself.
   * `due`: pay `amount_fen`, without benefits, then open(). 202 is `pending`: ask GET /v1/operations/{reference}. */
  visit(presentation, scene, terminalId, details, key) {
    return this.effect("/v1/visits", { presentation, scene, terminal_id: terminalId, details }, key);
  }

  /** `payment`: the reference of an approved one of at least what is due. */
  open(reference, payment, key) {
    return this.effect(`/v1/visits/${reference}/open`, { payment }, key);
  }

  /** What the card's holder has. With a `card_ref` that you have kept, the first call is not needed. */
  async points(presentation) {
    const verdict = await this.verify(presentation, "kiosk.service", "T-0001");
    const cardRef = JSON.parse(verdict.body).card_ref;
    if (cardRef === undefined) return verdict;
    return this.#send("GET", `/v1/points/${cardRef}`, undefined, { authorization: `Bearer ${await this.token()}` });
  }

  /** `reserved`: hand the item over and commit, or cancel, before `expires_at`. `refused`: the reason says why. */
  redeem(presentation, item, points, outletId, key) {
    return this.effect("/v1/points/redemptions", { presentation, item, points, outlet_id: outletId }, key);
  }

  commit(reference, key) {
    return this.effect(`/v1/points/redemptions/${reference}/commit`, {}, key);
  }

  cancel(reference, key) {
    return this.effect(`/v1/points/redemptions/${reference}/cancel`, {}, key);
  }

  /** Put a new signing key in the place of the present one, which signs this request.
   * If the answer is lost, or 401 after a lost one: take the new key into caller.signing and ask again with the same
   * key and body. */
  rotate(publicJwk, key) {
    return this.effect("/v1/callers/self/keys", { use: "signing", jwk: publicJwk, retire: this.caller.signing.kid }, key);
  }

  /** A signed POST. Store `key` first, and call again with it until there is an answer: it is done once. */
  async effect(target, body, key) {
    const raw = JSON.stringify(body);
    return this.#withRetries(async () => [target, raw, await this.#effectHeaders(target, raw, key)]);
  }

  /** Asks again, with the request made anew, after a broken connection and where it is told when (Retry-After). */
  async #withRetries(request) {
    for (let attempt = 1; ; attempt++) {
      let wait = attempt;
      const [target, body, headers] = await request();
      const checked = new Headers(headers);
      try {
        const answer = await this.#post(target, body, checked);
        const later = answer.headers.get("retry-after");
        if (attempt === ATTEMPTS || answer.status < 400 || later === null) return answer;
        if (/^[0-9]+$/.test(later)) wait = Math.min(Number(later), WAIT_MAX_S); // a proxy may name a date
      } catch (error) {
        if (attempt === ATTEMPTS) throw error;
      }
      const apart = 1 + Math.random() / 2; // not in step with the others that were refused
      await new Promise((resume) => setTimeout(resume, wait * apart * 1000));
    }
  }

  /** RFC 9421, with a new `created`: an old signature is refused after five minutes. */
  async #effectHeaders(target, raw, key) {
    const authorization = `Bearer ${await this.token()}`;
    const headers = { "content-type": "application/json", authorization, "idempotency-key": key };
    const signing = this.caller.signing;
    if (signing === undefined) return headers; // the gateway lets this caller send effects unsigned
    headers["content-digest"] = digest(signing.alg, raw);
    const [path, query = ""] = target.split(/\?(.*)/s);
    const values = { "@method": "POST", "@authority": this.authority, "@path": path, "@query": `?${query}`, ...headers };
    const created = Math.floor(Date.now() / 1000);
    const names = COVERED.map((name) => `"${name}"`).join(" ");
    const parameters = `(${names});created=${created};keyid="${signing.kid}";alg="${signing.alg}";tag="yikatong-v1"`;
    const lines = [...COVERED.map((name) => `"${name}": ${values[name]}`), `"@signature-params": ${parameters}`];
    const signature = sign(signing, lines.join("\n")).toString("base64");
    return { ...headers, "signature-input": `sig1=${parameters}`, signature: `sig1=:${signature}:` };
  }

  #post(target, body, headers) {
    return this.#send("POST", target, body, headers);
  }

  async #send(method, target, body, headers) {
    const options = { method, body, headers, redirect: "error", signal: AbortSignal.timeout(10_000) };
    const answer = await fetch(this.origin + target, options);
    return { status: answer.status, headers: answer.headers, body: await answer.text() };
  }
}

/** `key`: a caller's file (for its tokens) or the `signing` block in it (for its effects). */
export function sign(key, message) {
  const bytes = Buffer.from(message);
  if (key.alg === "sm2-sm3") {
    const options = { der: true, hash: true, publicKey: key.public_key_hex, userId: "1234567812345678" };
    return Buffer.from(smCrypto().sm2.doSignature(bytes, key.private_key_hex, options), "hex");
  }
  const secret = createPrivateKey({ key: key.private_jwk, format: "jwk" });
  if (key.alg === "EdDSA" || key.alg === "ed25519") return nodeSign(null, bytes, secret);
  return nodeSign("sha256", bytes, { key: secret, dsaEncoding: "ieee-p1363" }); // r‖s, 64 bytes
}

/** Content-Digest: a caller that signs with SM2 stays with the national algorithms. */
export function digest(algorithm, raw) {
  if (algorithm === "sm2-sm3") return `sm3=:${Buffer.from(smCrypto().sm3(Buffer.from(raw)), "hex").toString("base64")}:`;
  return `sha-256=:${createHash("sha256").update(raw).digest("base64")}:`;
}

function smCrypto() {
  return createRequire(import.meta.url)("sm-crypto"); // only those who need it install it
}

async function main(file, command, ...given) {
  const client = new Client(JSON.parse(readFileSync(file, "utf8")));
  if (command === "token") return console.log(await client.token());
  const key = given[KEY_IS[command]] ?? randomUUID();
  if (command in KEY_IS) console.error(`Idempotency-Key: ${key}`); // before it is used: with it you may ask again
  const card = { type: "chip_card", card_number: given[0], card_identifier: given[1] };
  const answer = await {
    verify: () => client.verify(card, given[2], "T-0001"),
    lose: () => client.reportLoss(card, key),
    release: () => client.release(given[0], key),
    pay: () => client.pay(card, Number(given[2]), given[3], key, given[5], given.length === 6),
    reverse: () => client.reverse(given[0], key),
    visit: () => client.visit(card, given[2], given[3], JSON.parse(given[4]), key),
    open: () => client.open(given[0], given[1], key),
    points: () => client.points(card),
    redeem: () => client.redeem(card, given[2], Number(given[3]), given[4], key),
    commit: () => client.commit(given[0], key),
    cancel: () => client.cancel(given[0], key),
  }[command]();
  console.error(`${answer.status}${answer.headers.has("idempotency-replayed") ? " (replayed)" : ""}`);
  console.log(answer.body);
  process.exitCode = answer.status >= 400 ? 1 : 0;
}

if (existsSync(process.argv[1] ?? "") && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const given = process.argv.slice(2);
  try {
    if (!Object.hasOwn(COUNTS, given[1] ?? "") || !COUNTS[given[1]].includes(given.length - 2)) throw new Error(USAGE);
    await main(...given);
  } catch (error) {
    const why = error.cause ?? error;
    console.error(why.message || why.code);
    process.exitCode = 1;
  }
}
