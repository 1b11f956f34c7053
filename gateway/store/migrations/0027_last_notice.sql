-- what a card's bank has taken last, or will: whether it has anything to free
CREATE INDEX loss_notice_last ON loss_notice (card_id, turn) WHERE state <> 'refused';
