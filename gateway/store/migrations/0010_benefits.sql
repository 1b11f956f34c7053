-- Benefits with caps: what was taken, by whom, and how much of each cap is used up. Payments that a benefit made cheaper.

-- One count: of a holder's day or month, or of everybody's day. Swept some weeks after its time, so it does not grow.
CREATE TABLE benefit_use (
    since    date NOT NULL,            -- the first day of what is counted over, in +08:00
    span     text NOT NULL,            -- day | month | total
    benefit  text NOT NULL,
    holder   uuid NOT NULL,            -- a person or a card, as the benefit says; 0 for everybody
    used     integer NOT NULL,
    cap      integer NOT NULL,         -- as it was when it was last claimed
    PRIMARY KEY (since, span, benefit, holder),
    CHECK (used BETWEEN 0 AND cap)     -- whatever the gateway does, no cap is passed
);

-- The record: a claim raises a count by one, giving back lowers it again. Append-only; its sum is benefit_use.used.
CREATE TABLE benefit_claim (
    source       uuid NOT NULL,        -- the usage event of a verify, or the reference of a payment
    made_at      timestamptz NOT NULL, -- the time inside the source, so a key of both is a key of the source alone
    benefit      text NOT NULL,
    span         text NOT NULL,
    delta        smallint NOT NULL CHECK (delta IN (1, -1)),
    since        date NOT NULL,
    holder       uuid NOT NULL,
    card_id      uuid NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, benefit, span, delta, made_at)
) PARTITION BY RANGE (made_at);

GRANT SELECT, INSERT, DELETE ON benefit_use TO yikatong_app;
GRANT UPDATE (used, cap) ON benefit_use TO yikatong_app;
GRANT SELECT, INSERT ON benefit_claim TO yikatong_app;

-- what a payment was made cheaper by; NULL: nobody asked for it
ALTER TABLE payment ADD COLUMN discount_fen bigint CHECK (discount_fen >= 0);
ALTER TABLE payment ADD COLUMN benefit text CHECK (benefit IS NULL OR discount_fen > 0);

-- a payment of nothing is approved by us: no bank is asked, and the card needs no account. The two checks that say
-- otherwise are also those of partitions that were attached, which dropping them from the parent leaves
DO $$
DECLARE
    old record;
BEGIN
    FOR old IN
        SELECT conrelid::regclass AS relation, conname FROM pg_constraint
        WHERE contype = 'c' AND (conrelid = 'payment'::regclass
              OR conrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'payment'::regclass))
          AND (pg_get_constraintdef(oid) ~ '^CHECK \(\(amount_fen > 0\)\)$'
               OR pg_get_constraintdef(oid) LIKE '%account_sealed IS NOT NULL%')
        ORDER BY conrelid <> 'payment'::regclass
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I', old.relation, old.conname);
    END LOOP;
END $$;
ALTER TABLE payment ADD CONSTRAINT payment_amount CHECK (amount_fen > 0 OR (amount_fen = 0 AND trace IS NULL));
ALTER TABLE payment ADD CONSTRAINT payment_account CHECK (
    state = 'declined' OR amount_fen = 0
    OR (card_id IS NOT NULL AND bank IS NOT NULL AND account_sealed IS NOT NULL AND trace IS NOT NULL));
INSERT INTO payment_step VALUES ('payment', '', 'approved');
