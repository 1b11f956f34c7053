-- Loss notices: the bank's half of a loss report or release, one row an operation that the bank is told of. Its state
-- moves only along loss_notice_step, every move is kept.

-- what may follow what; '' is: nothing yet. domain/loss_notices.py has the same table, a test compares them
CREATE TABLE loss_notice_step (
    before  text NOT NULL,
    after   text NOT NULL,
    PRIMARY KEY (before, after)
);
INSERT INTO loss_notice_step VALUES
    ('', 'intent'),
    ('intent', 'unknown'), ('intent', 'accepted'), ('intent', 'refused'),
    ('unknown', 'accepted'), ('unknown', 'refused');

-- taken while the card is locked: for one card it is the order in which it was reported and released, whatever the
-- clocks of the machines say
CREATE SEQUENCE loss_notice_turn;

CREATE TABLE loss_notice (
    reference         uuid NOT NULL,   -- the operation's
    created_at        timestamptz NOT NULL,
    turn              bigint NOT NULL DEFAULT nextval('loss_notice_turn'),
    kind              text NOT NULL CHECK (kind IN ('loss_report', 'loss_release')),
    loss_kind         text NOT NULL CHECK (loss_kind IN ('temporary', 'formal')),
    caller            text NOT NULL,
    idempotency_key   text NOT NULL,   -- whose answer may still be owed
    card_id           uuid NOT NULL,
    card_status       smallint NOT NULL,  -- AAZ502 after the operation
    bank              text NOT NULL,
    -- what is told, as it was then: it is the same in every try
    account_sealed    bytea NOT NULL,
    person_id         uuid NOT NULL,
    id_number_sealed  bytea NOT NULL,
    state             text NOT NULL,
    reason            text,            -- the bank's, of a refusal
    tries             integer NOT NULL DEFAULT 0,
    next_try_at       timestamptz,     -- NULL: nothing is left to do
    decided_at        timestamptz,
    PRIMARY KEY (reference, created_at),
    -- the time is the one inside the reference, so the key of both is a key of the reference alone
    CHECK (('x' || translate(left(reference::text, 13), '-', ''))::bit(48)::bigint
           = round(extract(epoch FROM created_at) * 1000)),
    CHECK ((next_try_at IS NOT NULL) = (state IN ('intent', 'unknown'))),
    CHECK ((reason IS NOT NULL) = (state = 'refused'))
) PARTITION BY RANGE (created_at);
CREATE INDEX loss_notice_due ON loss_notice (next_try_at) WHERE next_try_at IS NOT NULL;
CREATE INDEX loss_notice_open ON loss_notice (card_id, turn) WHERE next_try_at IS NOT NULL;

CREATE TABLE loss_notice_history (
    reference   uuid NOT NULL,
    created_at  timestamptz NOT NULL,  -- the notice's
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    state       text NOT NULL,
    PRIMARY KEY (reference, created_at, at, state)
) PARTITION BY RANGE (created_at);

CREATE FUNCTION loss_notice_moves() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before_it text := CASE WHEN TG_OP = 'INSERT' THEN '' ELSE OLD.state END;
BEGIN
    IF before_it <> NEW.state THEN
        IF NOT EXISTS (SELECT FROM loss_notice_step WHERE before = before_it AND after = NEW.state) THEN
            RAISE EXCEPTION 'a loss notice does not go from % to %', before_it, NEW.state
                USING ERRCODE = 'check_violation';
        END IF;
        NEW.decided_at := CASE WHEN NEW.state NOT IN ('intent', 'unknown') THEN now() END;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER loss_notice_moves BEFORE INSERT OR UPDATE ON loss_notice
    FOR EACH ROW EXECUTE FUNCTION loss_notice_moves();

CREATE FUNCTION loss_notice_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR OLD.state <> NEW.state THEN
        INSERT INTO loss_notice_history (reference, created_at, state)
        VALUES (NEW.reference, NEW.created_at, NEW.state);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER loss_notice_moved AFTER INSERT OR UPDATE ON loss_notice
    FOR EACH ROW EXECUTE FUNCTION loss_notice_moved();

GRANT SELECT, INSERT ON loss_notice, loss_notice_history TO yikatong_app;
GRANT UPDATE (state, reason, tries, next_try_at, decided_at) ON loss_notice TO yikatong_app;
GRANT SELECT ON loss_notice_step TO yikatong_app;
GRANT USAGE ON SEQUENCE loss_notice_turn TO yikatong_app;
