-- The points ledger: double entry, append-only. Points belong to a person, so that a replaced card keeps them.
-- A transfer moves points between two accounts; its two entries say what each account had before and after.

CREATE TABLE points_account (
    account_id  uuid PRIMARY KEY,  -- a citizen's is the person's id; the others sort after all of them (domain/points.py)
    kind        text NOT NULL CHECK (kind IN ('citizen', 'merchant', 'issuer', 'expiry')),
    caller      text,              -- a merchant's
    balance     bigint NOT NULL DEFAULT 0,  -- what its entries sum up to
    reserved    bigint NOT NULL DEFAULT 0,  -- the part of it that reserved redemptions hold
    entries     bigint NOT NULL DEFAULT 0,  -- how many it has: the number of the last
    CHECK (balance >= 0 OR kind = 'issuer'),
    CHECK (reserved >= 0 AND (reserved = 0 OR kind = 'citizen')),
    CHECK (reserved <= balance OR kind <> 'citizen'),
    CHECK ((caller IS NOT NULL) = (kind = 'merchant'))
) WITH (fillfactor = 50);  -- every move rewrites the row: room for that on its page

-- The issuer has two, so that a long ingest and the redemptions of the county do not wait for one row.
INSERT INTO points_account (account_id, kind) VALUES
    ('ffffffff-ffff-8000-8000-000000000001', 'issuer'),  -- what was issued: its balance is negative
    ('ffffffff-ffff-8000-8000-000000000002', 'issuer'),  -- what came back for the county's own goods
    ('ffffffff-ffff-8000-8000-000000000003', 'expiry');  -- what expired

CREATE TABLE points_transfer (
    transfer_id  uuid NOT NULL,        -- of what earns: the usage event's; of a redemption: the commit's reference
    created_at   timestamptz NOT NULL, -- the time inside transfer_id
    kind         text NOT NULL CHECK (kind IN ('open', 'earn', 'take_back', 'redeem', 'expire', 'correct')),
    person_id    uuid NOT NULL,
    card_id      uuid,
    counter      uuid NOT NULL,        -- the account on the other side
    points       bigint NOT NULL,      -- what it does to the person's account
    shortfall    bigint NOT NULL DEFAULT 0 CHECK (shortfall >= 0),  -- not taken back: it was spent already
    scene        text,
    day          date NOT NULL,        -- in China: for what earns, the day of the use
    corrects     uuid,                 -- the transfer that this one takes back or corrects
    redemption   uuid,
    note         text NOT NULL DEFAULT '',
    PRIMARY KEY (transfer_id, created_at),
    -- the time is the one inside the id, so the key of both is a key of the id alone, over all months
    CHECK (('x' || translate(left(transfer_id::text, 13), '-', ''))::bit(48)::bigint
           = round(extract(epoch FROM created_at) * 1000)),
    CHECK (points <> 0 OR shortfall > 0),
    CHECK (CASE kind WHEN 'open' THEN points > 0 WHEN 'earn' THEN points > 0 WHEN 'correct' THEN true ELSE points <= 0 END),
    CHECK ((corrects IS NOT NULL) = (kind IN ('take_back', 'correct'))),
    CHECK ((redemption IS NOT NULL) = (kind = 'redeem'))
) PARTITION BY RANGE (created_at);
CREATE INDEX points_transfer_person ON points_transfer (person_id, day);
CREATE INDEX points_transfer_corrects ON points_transfer (corrects) WHERE corrects IS NOT NULL;

CREATE TABLE points_entry (
    transfer_id  uuid NOT NULL,
    account_id   uuid NOT NULL,
    created_at   timestamptz NOT NULL,  -- the transfer's
    person_id    uuid NOT NULL,         -- the transfer's
    number       bigint NOT NULL,       -- of the account: 1, 2, 3 …
    points       bigint NOT NULL CHECK (points <> 0),
    previous     bigint NOT NULL,
    current      bigint NOT NULL,
    PRIMARY KEY (transfer_id, account_id, created_at),
    CHECK (current = previous + points)
) PARTITION BY RANGE (created_at);

-- A person's points by the day on which they expire. Not partitioned: it does not grow, empty lots of the past are swept.
CREATE TABLE points_lot (
    person_id   uuid NOT NULL,
    expires_on  date NOT NULL,  -- the last day on which they can be used
    remaining   bigint NOT NULL CHECK (remaining >= 0),
    PRIMARY KEY (person_id, expires_on)
) WITH (fillfactor = 70);
CREATE INDEX points_lot_due ON points_lot (expires_on);

CREATE TABLE points_redemption (
    reference    uuid NOT NULL,
    created_at   timestamptz NOT NULL,  -- the time inside reference
    caller       text NOT NULL,
    outlet_id    text NOT NULL,
    item         text NOT NULL,
    points       bigint NOT NULL CHECK (points > 0),
    credit       uuid NOT NULL,         -- the account that gets them at the commit
    card_id      uuid,
    person_id    uuid,
    state        text NOT NULL CHECK (state IN ('reserved', 'committed', 'cancelled', 'expired', 'refused')),
    reason       text,                  -- why it was refused
    expires_at   timestamptz,
    decided_at   timestamptz,
    PRIMARY KEY (reference, created_at),
    CHECK (('x' || translate(left(reference::text, 13), '-', ''))::bit(48)::bigint
           = round(extract(epoch FROM created_at) * 1000)),
    CHECK ((reason IS NOT NULL) = (state = 'refused')),
    CHECK (state = 'refused' OR (person_id IS NOT NULL AND card_id IS NOT NULL AND expires_at IS NOT NULL)),
    CHECK ((decided_at IS NULL) = (state = 'reserved'))
) PARTITION BY RANGE (created_at);
CREATE INDEX points_redemption_due ON points_redemption (expires_at) WHERE state = 'reserved';

CREATE FUNCTION points_redemption_ends_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state <> 'reserved' OR NEW.state NOT IN ('committed', 'cancelled', 'expired') THEN
        RAISE EXCEPTION 'a redemption does not go from % to %', OLD.state, NEW.state USING ERRCODE = 'check_violation';
    END IF;
    NEW.decided_at := now();
    RETURN NEW;
END $$;
CREATE TRIGGER points_redemption_ends_once BEFORE UPDATE ON points_redemption
    FOR EACH ROW EXECUTE FUNCTION points_redemption_ends_once();

GRANT SELECT, INSERT ON points_account, points_transfer, points_entry, points_lot, points_redemption TO yikatong_app;
GRANT UPDATE (balance, reserved, entries) ON points_account TO yikatong_app;
GRANT UPDATE (remaining) ON points_lot TO yikatong_app;
GRANT DELETE ON points_lot TO yikatong_app;
GRANT UPDATE (state, decided_at) ON points_redemption TO yikatong_app;
