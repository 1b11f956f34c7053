-- Usage monitoring: what the rules of anomalies.toml found, for operators to look at. Append-only, partitioned by month.

CREATE TABLE anomaly (
    anomaly_id   uuid NOT NULL,          -- follows from the event that brought it about: the same event, the same id
    at           timestamptz NOT NULL,   -- when that event was recorded
    rule         text NOT NULL,
    caller       text,                   -- the subject: some of these four
    outlet       text,
    terminal_id  text,
    card_id      uuid,
    from_at      timestamptz NOT NULL,   -- the window, by when the uses occurred
    until_at     timestamptz NOT NULL,
    weight       integer NOT NULL,       -- what the rule counts
    stands       boolean NOT NULL,       -- false: a reversal has taken the evidence away
    restates     uuid,                   -- the first of the same finding
    event_ids    uuid[] NOT NULL CHECK (cardinality(event_ids) BETWEEN 1 AND 20),
    figures      jsonb NOT NULL,
    PRIMARY KEY (anomaly_id, at)
) PARTITION BY RANGE (at);
CREATE INDEX anomaly_at ON anomaly (at);

-- How far the events were looked at, and what the rules remember of them. One reader moves it; another that finds it moved
-- begins anew from here.
CREATE TABLE anomaly_watch (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version   bigint NOT NULL,
    position  bigint NOT NULL,
    event_id  uuid NOT NULL,
    memory    bytea,                     -- NULL: nothing yet
    kept_at   timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT, INSERT ON anomaly TO yikatong_app;
GRANT SELECT, INSERT, UPDATE ON anomaly_watch TO yikatong_app;
