-- Operations with effects: what was done, for whom, and what proves that it was asked for. Append-only for the
-- application's role, partitioned by month; a reference is a UUIDv7, so its time leads to the partition.

CREATE TABLE operation (
    reference           uuid NOT NULL,
    recorded_at         timestamptz NOT NULL DEFAULT now(),
    kind                text NOT NULL,
    caller              text NOT NULL,
    card_id             uuid,
    parent              uuid,      -- the operation that this one undoes
    result              text NOT NULL,
    reason              text,      -- why it was refused
    card_status_before  smallint,  -- AAZ502
    card_status_after   smallint,
    -- the caller's signature (RFC 9421); NULL where the caller need not sign and did not
    key_id              text,
    algorithm           text,
    signed_at           timestamptz,
    base_digest         bytea,     -- SM3 of the signature base
    signature           bytea,
    public_jwk          text,      -- the key as it was registered then: it may be gone when the proof is needed
    proof_sealed        bytea,     -- signature base and body
    PRIMARY KEY (reference, recorded_at)
) PARTITION BY RANGE (recorded_at);

GRANT SELECT, INSERT ON operation TO yikatong_app;

-- a claim is updated with its answer in the same transaction: room for that on its page keeps the indexes as they are
ALTER TABLE idempotency_key SET (fillfactor = 40);

-- since when the card is lost: a report from before is closed; NULL: not lost, or lost by the registry's word
ALTER TABLE card ADD COLUMN lost_at timestamptz;
-- a formally lost card may be released only while no replacement was started (AAZ502 2 -> 1)
ALTER TABLE card ADD COLUMN replacement_started boolean NOT NULL DEFAULT false;
