-- Client assertions are good once; idempotent requests are answered once.

CREATE TABLE client_assertion (
    client_id   text NOT NULL,
    jti         text NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (client_id, jti)
);
CREATE INDEX client_assertion_expiry ON client_assertion (expires_at);

CREATE TABLE idempotency_key (
    caller       text NOT NULL,
    key          text NOT NULL,
    fingerprint  bytea NOT NULL,       -- keyed digest of method, path, query and body
    created_at   timestamptz NOT NULL DEFAULT now(),
    answer_sealed  bytea,
    PRIMARY KEY (caller, key)
);
CREATE INDEX idempotency_key_age ON idempotency_key (created_at);

GRANT SELECT, INSERT, DELETE ON client_assertion TO yikatong_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_key TO yikatong_app;
GRANT SELECT ON schema_migration TO yikatong_app;
