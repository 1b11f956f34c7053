-- An event that only lacked an answer is tried early when the subscriber answers again, and that counts for nothing.

ALTER TABLE outbox_held
    ADD COLUMN regular_at timestamptz;  -- of one that was woken: when its turn is; kept until then, so that it is woken once
