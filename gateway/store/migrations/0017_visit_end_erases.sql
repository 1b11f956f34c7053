-- The step that ends a visit erases by what the lot knew the car, whoever writes it: workers of an older version, which are
-- still there while it is being upgraded, write it back with every step. This comes before the CHECK of 0016, which stays.
CREATE OR REPLACE FUNCTION visit_moves() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before_it text := CASE WHEN TG_OP = 'INSERT' THEN '' ELSE OLD.state END;
BEGIN
    IF before_it <> NEW.state THEN
        IF NOT EXISTS (SELECT FROM visit_step WHERE before = before_it AND after = NEW.state) THEN
            RAISE EXCEPTION 'a visit does not go from % to %', before_it, NEW.state USING ERRCODE = 'check_violation';
        END IF;
        NEW.decided_at := CASE WHEN NEW.next_try_at IS NULL THEN now() END;
        -- after an intent too it may still have to be told: what is paid and was not sent is due again
        IF NEW.state NOT IN ('due', 'intent') THEN
            NEW.details_sealed := NULL;
        END IF;
    END IF;
    RETURN NEW;
END $$;
