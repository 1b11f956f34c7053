-- The durable record of every use, append-only for the application's role, partitioned by month.

CREATE TABLE usage_event (
    event_id     uuid NOT NULL,
    -- Place in the feed: the number of the writing transaction. A reader that stops below the oldest transaction still
    -- running never sees a gap; a sequence would, because its order is not the order of commits.
    position     bigint NOT NULL,
    recorded_at  timestamptz NOT NULL,
    occurred_at  timestamptz NOT NULL,
    kind         text NOT NULL,
    caller       text NOT NULL,
    card_id      uuid,
    medium       text,
    region       text,
    scene        text NOT NULL,
    terminal_id  text NOT NULL,
    reason       text NOT NULL,
    PRIMARY KEY (position, event_id, recorded_at)
) PARTITION BY RANGE (recorded_at);

-- Transaction numbers start anew in a new cluster (a logical restore): the offset keeps positions growing.
CREATE TABLE feed_origin (
    only_row           boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    system_identifier  bigint NOT NULL,
    xid_offset         bigint NOT NULL
);

GRANT SELECT, INSERT ON usage_event TO yikatong_app;
GRANT SELECT ON feed_origin TO yikatong_app;
