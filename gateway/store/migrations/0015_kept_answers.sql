-- A claim is a small row that grows to several times its size when its answer is kept, in the same transaction. Pages that
-- are filled by a fifth with claims have the room for it, so that no index is touched again.
ALTER TABLE idempotency_key SET (fillfactor = 20);
