-- The outward feed. usage_event is a log with places already, so nothing of it is copied: a subscriber has a cursor into
-- it, and rows only for what it refused, or did not answer.

CREATE TABLE outbox_subscriber (
    name           text PRIMARY KEY,
    -- acknowledged up to this event: each before it is in the subscriber's hands, held back, or given up
    position       bigint NOT NULL DEFAULT 0,
    event_id       uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    -- sent up to this event, perhaps: written before anything leaves, so that what may arrive twice says so
    sent_position  bigint NOT NULL DEFAULT 0,
    sent_event_id  uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    sequence       bigint NOT NULL DEFAULT 0,
    tries          smallint NOT NULL DEFAULT 0,  -- of the first event after the cursor, by itself
    next_try_at    timestamptz,
    -- one process at a time brings a subscriber its events
    holder         uuid,
    leased_until   timestamptz NOT NULL DEFAULT '-infinity'
);

-- What waits aside. A card's first row has next_try_at; those behind it wait for it to go, in the feed's order.
CREATE TABLE outbox_held (
    subscriber    text NOT NULL REFERENCES outbox_subscriber,
    position      bigint NOT NULL,
    event_id      uuid NOT NULL,
    recorded_at   timestamptz NOT NULL,
    card          uuid NOT NULL,        -- of an event without a card its own id: such have no order
    code          text,                 -- with which it was refused; none: there was no clear answer, or it only waits
    tries         smallint NOT NULL,
    next_try_at   timestamptz,
    sent          boolean NOT NULL,     -- it may have arrived
    replayed      boolean NOT NULL DEFAULT false,
    PRIMARY KEY (subscriber, position, event_id)
);
CREATE INDEX outbox_held_card ON outbox_held (subscriber, card, position, event_id);
CREATE INDEX outbox_held_due ON outbox_held (subscriber, next_try_at) WHERE next_try_at IS NOT NULL;

-- What was given up after its last try, until an operator has it sent again.
CREATE TABLE outbox_dead_letter (
    subscriber   text NOT NULL,
    position     bigint NOT NULL,
    event_id     uuid NOT NULL,
    recorded_at  timestamptz NOT NULL,
    card         uuid NOT NULL,
    code         text,
    tries        smallint NOT NULL,
    dead_at      timestamptz NOT NULL,
    replayed_at  timestamptz,
    PRIMARY KEY (subscriber, position, event_id, dead_at)
) PARTITION BY RANGE (dead_at);
CREATE INDEX outbox_dead_letter_left ON outbox_dead_letter (subscriber, recorded_at) WHERE replayed_at IS NULL;

GRANT SELECT, INSERT, UPDATE ON outbox_subscriber TO yikatong_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_held TO yikatong_app;
GRANT SELECT, INSERT ON outbox_dead_letter TO yikatong_app;
GRANT UPDATE (replayed_at) ON outbox_dead_letter TO yikatong_app;
