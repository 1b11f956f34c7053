-- Visits: a card presented where a merchant's own system acts on it. Its state moves only along visit_step, every move
-- is kept.

-- what may follow what; '' is: nothing yet. domain/visits.py has the same table, a test compares them
CREATE TABLE visit_step (
    before  text NOT NULL,
    after   text NOT NULL,
    PRIMARY KEY (before, after)
);
INSERT INTO visit_step VALUES
    ('', 'asking'), ('', 'intent'), ('', 'refused'),
    ('asking', 'due'), ('asking', 'intent'), ('asking', 'refused'), ('asking', 'not_sent'),
    ('due', 'intent'), ('due', 'expired'),
    ('intent', 'done'), ('intent', 'refused'), ('intent', 'not_sent'), ('intent', 'unsure'), ('intent', 'due'),
    ('unsure', 'done'), ('unsure', 'refused'), ('unsure', 'unknown');

CREATE TABLE visit (
    reference        uuid NOT NULL,   -- the merchant knows it by this
    created_at       timestamptz NOT NULL,
    kind             text NOT NULL CHECK (kind IN ('entry', 'exit', 'check_in', 'bill')),
    caller           text NOT NULL,
    idempotency_key  text NOT NULL,   -- whose answer may still be owed: of the visit, then of its opening
    terminal_id      text NOT NULL,
    partner          text NOT NULL,
    card_id          uuid,
    state            text NOT NULL,
    reason           text,            -- of a refusal: that of a verdict, or the merchant's
    benefits         text NOT NULL DEFAULT '',  -- their names, with blanks between
    rate_percent     smallint CHECK (rate_percent BETWEEN 0 AND 100),
    fee_fen          bigint CHECK (fee_fen >= 0),
    discount_fen     bigint CHECK (discount_fen BETWEEN 0 AND fee_fen),
    payment          uuid,            -- by which an exit is paid
    opening          uuid,            -- the operation that opened it, when it was paid
    details_sealed   bytea,           -- of an exit that is due: by what the lot knows the car
    tries            integer NOT NULL DEFAULT 0,
    expires_at       timestamptz,     -- the merchant acts before this, or not at all; of one that is due: pay before this
    next_try_at      timestamptz,     -- NULL: nothing is left to do
    decided_at       timestamptz,
    PRIMARY KEY (reference, created_at),
    -- the time is the one inside the reference, so the key of both is a key of the reference alone
    CHECK (('x' || translate(left(reference::text, 13), '-', ''))::bit(48)::bigint
           = round(extract(epoch FROM created_at) * 1000)),
    CHECK ((next_try_at IS NOT NULL) = (state IN ('asking', 'due', 'intent', 'unsure'))),
    CHECK (expires_at IS NOT NULL OR state IN ('asking', 'refused', 'not_sent')),
    CHECK ((reason IS NOT NULL) = (state = 'refused')),
    CHECK (state <> 'due' OR (fee_fen > discount_fen AND details_sealed IS NOT NULL))
) PARTITION BY RANGE (created_at);
CREATE INDEX visit_due ON visit (next_try_at) WHERE next_try_at IS NOT NULL;

CREATE TABLE visit_history (
    reference   uuid NOT NULL,
    created_at  timestamptz NOT NULL,  -- the visit's
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    state       text NOT NULL,
    PRIMARY KEY (reference, created_at, at, state)
) PARTITION BY RANGE (created_at);

-- a payment opens one barrier. Append-only: a visit keeps the payment that it was opened with
CREATE TABLE visit_payment (
    payment  uuid NOT NULL,
    paid_at  timestamptz NOT NULL,     -- the time inside the payment, so a key of both is a key of the payment alone
    visit    uuid NOT NULL,
    PRIMARY KEY (payment, paid_at)
) PARTITION BY RANGE (paid_at);

CREATE FUNCTION visit_moves() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before_it text := CASE WHEN TG_OP = 'INSERT' THEN '' ELSE OLD.state END;
BEGIN
    IF before_it <> NEW.state THEN
        IF NOT EXISTS (SELECT FROM visit_step WHERE before = before_it AND after = NEW.state) THEN
            RAISE EXCEPTION 'a visit does not go from % to %', before_it, NEW.state USING ERRCODE = 'check_violation';
        END IF;
        NEW.decided_at := CASE WHEN NEW.next_try_at IS NULL THEN now() END;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER visit_moves BEFORE INSERT OR UPDATE ON visit FOR EACH ROW EXECUTE FUNCTION visit_moves();

CREATE FUNCTION visit_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR OLD.state <> NEW.state THEN
        INSERT INTO visit_history (reference, created_at, state) VALUES (NEW.reference, NEW.created_at, NEW.state);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER visit_moved AFTER INSERT OR UPDATE ON visit FOR EACH ROW EXECUTE FUNCTION visit_moved();

GRANT SELECT, INSERT ON visit, visit_history, visit_payment TO yikatong_app;
GRANT UPDATE (idempotency_key, state, reason, benefits, fee_fen, discount_fen, payment, opening, details_sealed, tries,
              expires_at, next_try_at, decided_at) ON visit TO yikatong_app;
GRANT SELECT ON visit_step TO yikatong_app;
