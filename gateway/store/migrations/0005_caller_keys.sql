-- Callers' public keys that did not come from a file, and which of any source are out. Rows are never deleted: a kid is
-- never another key's, and an old signature stays attributable.

CREATE TABLE caller_key (
    caller      text NOT NULL,
    use         text NOT NULL CHECK (use IN ('token', 'signing')),
    kid         text NOT NULL CHECK (length(kid) BETWEEN 1 AND 100),
    jwk         text CHECK (length(jwk) <= 1000),  -- public, in the canonical form of RFC 7638
    source      text NOT NULL CHECK (source IN ('jwks', 'self', 'file')),  -- 'file': a file's key that is out, no more
    added_at    timestamptz NOT NULL DEFAULT now(),
    retired_at  timestamptz,
    PRIMARY KEY (caller, use, kid),
    CHECK (CASE WHEN source = 'file' THEN jwk IS NULL AND retired_at IS NOT NULL ELSE jwk IS NOT NULL END)
);
CREATE INDEX caller_key_in_force ON caller_key (caller) WHERE retired_at IS NULL;
CREATE INDEX caller_key_kid ON caller_key (kid);

GRANT SELECT, INSERT ON caller_key TO yikatong_app;
GRANT UPDATE (retired_at) ON caller_key TO yikatong_app;
