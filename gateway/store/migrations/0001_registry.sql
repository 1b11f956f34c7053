-- The registry: people, their cards, and how fresh our copy of it is.
-- *_sealed: ciphertext that names its data key (crypto/sealing.py). *_index: keyed HMAC-SM3 (crypto/blind_index.py).

DO $$
BEGIN
    CREATE ROLE yikatong_app NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- roles belong to the server, not to this database
END $$;

DO $$
DECLARE
    -- since 16, who creates a role may grant it but is not yet allowed to become it
    needed text := CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END;
BEGIN
    IF NOT pg_has_role(current_user, 'yikatong_app', needed) THEN
        EXECUTE format('GRANT yikatong_app TO %I', current_user);
    END IF;
END $$;

CREATE TABLE data_key (
    data_key_id  integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_group  text NOT NULL,
    month        date NOT NULL,
    kek_id       text NOT NULL,
    algorithm    text NOT NULL,
    wrapped      bytea NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (table_group, month)
);

CREATE TABLE registry_source (
    source_id  smallint PRIMARY KEY,
    name       text NOT NULL UNIQUE,
    -- up to when the upstream registry has told us every change; a card it did not mention is as it was
    as_of      timestamptz NOT NULL
);

CREATE TABLE person (
    person_id         uuid PRIMARY KEY,
    id_number_index   bytea NOT NULL UNIQUE,
    id_number_sealed  bytea NOT NULL,
    birth_year        smallint NOT NULL,  -- for counts by age; the full date is sealed with the card's holder
    town              text
);

CREATE TABLE card (
    card_id            uuid PRIMARY KEY,
    person_id          uuid NOT NULL REFERENCES person,
    chip_index         bytea NOT NULL UNIQUE,  -- of card number and identifier together: the one key of a chip card
    number_index       bytea NOT NULL,         -- of the card number alone; a replaced card may keep its number
    number_sealed      bytea NOT NULL,
    identifier_sealed  bytea NOT NULL,
    holder_sealed      bytea NOT NULL,         -- name and birth date: what a verdict shows of a person
    generation         smallint NOT NULL CHECK (generation IN (2, 3)),
    status             smallint NOT NULL CHECK (status IN (0, 1, 2, 3, 4, 6, 9)),  -- AAZ502
    status_as_of       timestamptz NOT NULL,
    issued_on          date NOT NULL,
    valid_until        date NOT NULL,
    region             text NOT NULL CHECK (region ~ '^[0-9]{6}$'),  -- AAB301
    source_id          smallint NOT NULL REFERENCES registry_source
) WITH (fillfactor = 90);
CREATE INDEX card_number_index ON card (number_index);
CREATE INDEX card_person ON card (person_id);

CREATE TABLE ecard (
    card_id     uuid PRIMARY KEY REFERENCES card,
    sign_level  smallint NOT NULL CHECK (sign_level IN (1, 2)),
    signed_on   date NOT NULL
);

GRANT SELECT ON data_key, registry_source, person, card, ecard TO yikatong_app;
GRANT INSERT ON data_key, person, card, ecard TO yikatong_app;
GRANT INSERT, UPDATE ON registry_source TO yikatong_app;
GRANT UPDATE ON card, ecard TO yikatong_app;
