-- since when a temporary loss is a formal one, by a report that came later: that report takes back no more than this
ALTER TABLE card ADD COLUMN raised_at timestamptz;
