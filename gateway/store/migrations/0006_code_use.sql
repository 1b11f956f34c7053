-- Codes of e-cards are good once: a claim is written by the statement that records the event (verify.sql).
-- Not partitioned: a unique key of a partitioned table has to hold the time, and then a code presented just before and
-- just after a boundary would be claimed twice. The table does not grow: claims are swept after 24 h, codes live 60 s.

CREATE TABLE code_use (
    code_digest  bytea PRIMARY KEY CHECK (length(code_digest) = 32),  -- keyed HMAC-SM3; the code itself is never kept
    event_id     uuid NOT NULL,                                       -- of the presentation that took it
    used_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX code_use_age ON code_use (used_at);

GRANT SELECT, INSERT, DELETE ON code_use TO yikatong_app;
