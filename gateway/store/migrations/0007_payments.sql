-- Payments: what was asked of a bank, one row an operation, its state moved only along payment_step, every move kept.

-- the bank account behind a card; cards without one cannot pay
ALTER TABLE card ADD COLUMN bank text;
ALTER TABLE card ADD COLUMN account_sealed bytea;
ALTER TABLE card ADD CONSTRAINT card_account CHECK ((bank IS NULL) = (account_sealed IS NULL));

-- ISO 8583 F11, unique among any 899 999 in a row; what is above is left to the links' own messages
CREATE SEQUENCE payment_trace MINVALUE 1 MAXVALUE 899999 CYCLE;

-- what may follow what; '' is: nothing yet. domain/payments.py has the same table, a test compares them
CREATE TABLE payment_step (
    kind    text NOT NULL,
    before  text NOT NULL,
    after   text NOT NULL,
    PRIMARY KEY (kind, before, after)
);
INSERT INTO payment_step VALUES
    ('payment', '', 'intent'), ('payment', '', 'declined'),
    ('payment', 'intent', 'approved'), ('payment', 'intent', 'declined'), ('payment', 'intent', 'not_sent'),
    ('payment', 'intent', 'unknown'),
    ('payment', 'unknown', 'approved'), ('payment', 'unknown', 'declined'), ('payment', 'unknown', 'reversing'),
    ('payment', 'reversing', 'reversed'),
    ('payment', 'approved', 'reversed'),
    ('refund', '', 'intent'),
    ('refund', 'intent', 'approved'), ('refund', 'intent', 'declined'), ('refund', 'intent', 'not_sent'),
    ('refund', 'intent', 'unknown'),
    ('refund', 'unknown', 'approved'), ('refund', 'unknown', 'declined'),
    ('reversal', '', 'intent'), ('reversal', '', 'reversed'),
    ('reversal', 'intent', 'reversed'), ('reversal', 'intent', 'declined'), ('reversal', 'intent', 'not_sent'),
    ('reversal', 'intent', 'unknown'),
    ('reversal', 'unknown', 'reversed'), ('reversal', 'unknown', 'declined');

CREATE TABLE payment (
    reference          uuid NOT NULL,
    created_at         timestamptz NOT NULL,
    kind               text NOT NULL,
    caller             text NOT NULL,
    idempotency_key    text NOT NULL,   -- whose answer may still be owed
    merchant_order_id  text NOT NULL,
    terminal_id        text NOT NULL,
    parent             uuid,            -- the payment that this one undoes, or gives back a part of
    card_id            uuid,
    bank               text,
    account_sealed     bytea,           -- the card's, as it was then
    amount_fen         bigint NOT NULL CHECK (amount_fen > 0),
    trace              integer,
    state              text NOT NULL,
    decline_code       text,
    tries              integer NOT NULL DEFAULT 0,
    next_try_at        timestamptz,     -- NULL: nothing is left to do
    decided_at         timestamptz,
    PRIMARY KEY (reference, created_at),
    -- the time is the one inside the reference, so the key of both is a key of the reference alone
    CHECK (('x' || translate(left(reference::text, 13), '-', ''))::bit(48)::bigint
           = round(extract(epoch FROM created_at) * 1000)),
    CHECK ((parent IS NOT NULL) = (kind <> 'payment')),
    CHECK (state = 'declined' OR (card_id IS NOT NULL AND bank IS NOT NULL AND account_sealed IS NOT NULL
                                  AND trace IS NOT NULL)),
    CHECK (next_try_at IS NOT NULL OR state NOT IN ('intent', 'unknown', 'reversing'))
) PARTITION BY RANGE (created_at);
CREATE INDEX payment_due ON payment (next_try_at) WHERE next_try_at IS NOT NULL;
CREATE INDEX payment_parent ON payment (parent) WHERE parent IS NOT NULL;
CREATE INDEX payment_bank ON payment (bank, created_at);

CREATE TABLE payment_history (
    reference   uuid NOT NULL,
    created_at  timestamptz NOT NULL,  -- the payment's
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    state       text NOT NULL,
    note        text NOT NULL DEFAULT '',
    PRIMARY KEY (reference, created_at, at, state)
) PARTITION BY RANGE (created_at);

-- a merchant's order is paid once: of its own, because a key over partitions must hold the time
CREATE TABLE payment_order (
    caller             text NOT NULL,
    merchant_order_id  text NOT NULL,
    reference          uuid NOT NULL,
    PRIMARY KEY (caller, merchant_order_id)
);

CREATE FUNCTION payment_moves() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before_it text := CASE WHEN TG_OP = 'INSERT' THEN '' ELSE OLD.state END;
BEGIN
    IF before_it <> NEW.state THEN
        IF NOT EXISTS (SELECT FROM payment_step WHERE kind = NEW.kind AND before = before_it AND after = NEW.state) THEN
            RAISE EXCEPTION 'a % does not go from % to %', NEW.kind, before_it, NEW.state USING ERRCODE = 'check_violation';
        END IF;
        NEW.decided_at := CASE WHEN NEW.state NOT IN ('intent', 'unknown', 'reversing') THEN now() END;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER payment_moves BEFORE INSERT OR UPDATE ON payment FOR EACH ROW EXECUTE FUNCTION payment_moves();

CREATE FUNCTION payment_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR OLD.state <> NEW.state THEN
        INSERT INTO payment_history (reference, created_at, state) VALUES (NEW.reference, NEW.created_at, NEW.state);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER payment_moved AFTER INSERT OR UPDATE ON payment FOR EACH ROW EXECUTE FUNCTION payment_moved();

GRANT SELECT, INSERT ON payment, payment_history TO yikatong_app;
GRANT UPDATE (state, decline_code, tries, next_try_at, decided_at) ON payment TO yikatong_app;
GRANT SELECT, INSERT, DELETE ON payment_order TO yikatong_app;
GRANT SELECT ON payment_step TO yikatong_app;
GRANT USAGE ON SEQUENCE payment_trace TO yikatong_app;
