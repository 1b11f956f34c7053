-- A payment is asked about, reversed and given back at the partner that it was made through, wherever the bank's new ones
-- go today. NULL: of before, by today's route.
ALTER TABLE payment ADD COLUMN partner text;
