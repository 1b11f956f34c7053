-- What is known of a subscriber's outage outlives the process that has it in hand, and a lease.

ALTER TABLE outbox_subscriber
    -- events set aside for want of an answer since the last acknowledgement, and when the last of them was
    ADD COLUMN asides    integer NOT NULL DEFAULT 0,
    ADD COLUMN aside_at  timestamptz;

ALTER TABLE outbox_held
    ADD COLUMN woken_at  timestamptz;  -- when it was last woken: it may be again some time after
