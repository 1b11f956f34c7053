-- By what a lot knows a car is personal: it is there while the lot may still have to be told (after an intent too: of one
-- that is paid and was not sent, it is due again), and erased with the step that ends that.
UPDATE visit SET details_sealed = NULL WHERE details_sealed IS NOT NULL AND state NOT IN ('due', 'intent');
ALTER TABLE visit ADD CONSTRAINT visit_details_while_needed CHECK (details_sealed IS NULL OR state IN ('due', 'intent'));
