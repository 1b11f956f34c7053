-- A release that frees nothing at the bank is not told; its notice says at once what the bank's side is.
INSERT INTO loss_notice_step VALUES ('', 'accepted'), ('', 'refused');

-- what a card's bank took last, or will
CREATE INDEX loss_notice_last ON loss_notice (card_id, turn) WHERE state <> 'refused';
