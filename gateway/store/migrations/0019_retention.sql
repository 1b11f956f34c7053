-- Rejected lines of files, and dead letters, are swept after the days that are configured.

-- the lines that are there already get the time of this migration
ALTER TABLE usage_file_reject ADD COLUMN at timestamptz NOT NULL DEFAULT now();
CREATE INDEX usage_file_reject_age ON usage_file_reject (at);
CREATE INDEX outbox_dead_letter_age ON outbox_dead_letter (dead_at);

GRANT DELETE ON usage_file_reject, outbox_dead_letter TO yikatong_app;
