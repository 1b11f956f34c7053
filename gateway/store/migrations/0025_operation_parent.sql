-- What undid an operation is found by it (GET /v1/operations of a loss report). By itself: nothing else waits for it.
CREATE INDEX operation_parent ON operation (parent) WHERE parent IS NOT NULL;
