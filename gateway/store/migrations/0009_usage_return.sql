-- Usage that callers return: events of the kind `usage`, with the caller's own ids, once each for ever.

ALTER TABLE usage_event ALTER COLUMN reason DROP NOT NULL;
ALTER TABLE usage_event
    ADD COLUMN amount_fen       bigint CHECK (amount_fen >= 0),
    ADD COLUMN discount_fen     bigint CHECK (discount_fen >= 0),
    ADD COLUMN result           text CHECK (result IN ('success', 'failed')),
    ADD COLUMN reversal_of      text,  -- the caller's id of the use that this one takes back
    ADD COLUMN caller_event_id  text,
    ADD CONSTRAINT usage_event_verify CHECK (kind <> 'verify' OR reason IS NOT NULL),
    ADD CONSTRAINT usage_event_usage CHECK (kind <> 'usage' OR (card_id IS NOT NULL AND result IS NOT NULL
                                                                AND caller_event_id IS NOT NULL));

-- An id is good once for ever, so its table is not partitioned by time (the key would have to hold the time). A million
-- lines a day are about 60 GB a year. It is only asked by its whole key: it may be spread by a hash of it (partitions, or
-- servers) with nothing rewritten. Where the event is stands here, so what the id was used for is read from the event.
CREATE TABLE usage_return (
    caller       text NOT NULL,
    id           text NOT NULL,
    event_id     uuid NOT NULL,
    position     bigint NOT NULL,
    recorded_at  timestamptz NOT NULL,
    PRIMARY KEY (caller, id)
);

-- A use is taken back once.
CREATE TABLE usage_reversal (
    original  uuid PRIMARY KEY,  -- event of the use
    reversal  uuid NOT NULL      -- event of its reversal
);

-- How far a file of usage data has been taken up: moved by the transaction that records its lines.
CREATE TABLE usage_file (
    file_id     bytea PRIMARY KEY CHECK (length(file_id) = 32),  -- SM3 of the header line, which holds the data's digest
    caller      text NOT NULL,
    batch_no    text NOT NULL,
    lines       bigint NOT NULL,
    amount_fen  bigint NOT NULL,
    pass        smallint NOT NULL DEFAULT 1,  -- 1: uses, 2: reversals, 3: done
    at_byte     bigint NOT NULL,              -- of the plain text: where the next chunk begins
    at_line     bigint NOT NULL,
    created     bigint NOT NULL DEFAULT 0,
    duplicate   bigint NOT NULL DEFAULT 0,
    rejected    bigint NOT NULL DEFAULT 0,
    reversals   bigint NOT NULL DEFAULT 0,    -- lines left to pass 2
    began_at    timestamptz NOT NULL DEFAULT now(),
    moved_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (caller, batch_no)
);

-- Lines that were not accepted, for the report: code and field names, no values.
CREATE TABLE usage_file_reject (
    file_id  bytea NOT NULL REFERENCES usage_file,
    line     bigint NOT NULL,
    id       text,
    code     text NOT NULL,
    errors   jsonb NOT NULL,
    PRIMARY KEY (file_id, line)
);

GRANT SELECT, INSERT ON usage_return, usage_reversal, usage_file, usage_file_reject TO yikatong_app;
GRANT UPDATE (pass, at_byte, at_line, created, duplicate, rejected, reversals, moved_at) ON usage_file TO yikatong_app;
