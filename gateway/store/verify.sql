-- One statement for a batch of presentations: read the cards, decide, write the events. The answers leave after its commit.
-- The order of the WHENs is the order in which reasons go before one another.
-- Lines that begin with --ref are of batches with anything but chip cards (references, e-card codes, what is refused before
-- the card is read), those that begin with --code of batches with codes (verify.py): the others do not pay for them.
-- Each column comes as one text with a separator: encoding an array element by element would cost the gateway more than
-- taking it apart costs here.
WITH presented AS (
    SELECT item, event_id::uuid, decode(chip_index, 'hex') AS chip_index, caller, scene, terminal_id,
           to_timestamp(occurred_us::bigint / 1e6::float8) AS occurred_at,  -- exact: 53 bits are enough for microseconds
           date '1970-01-01' + ((occurred_us::bigint + 28800000000) / 86400000000)::int AS china_day,
--ref      card_id::uuid, preset, medium,
--code     decode(code, 'hex') AS code_digest,
           media::smallint
    FROM ROWS FROM (string_to_table($1, E'\x1f'), string_to_table($2, E'\x1f', ''), string_to_table($3, E'\x1f'),
                    string_to_table($4, E'\x1f'), string_to_table($5, E'\x1f'), string_to_table($6, E'\x1f'),
--ref               string_to_table($10, E'\x1f', ''), string_to_table($11, E'\x1f', ''),
--ref               string_to_table($12, E'\x1f', ''),
--code              string_to_table($13, E'\x1f', ''),
                    string_to_table($7, E'\x1f'))
         WITH ORDINALITY AS p(event_id, chip_index, caller, scene, terminal_id, occurred_us,
--ref                         card_id, preset, medium,
--code                        code,
                              media, item)
--code ), coded AS (
--code     SELECT item, event_id, code_digest FROM presented WHERE code_digest IS NOT NULL
--code ), claimed AS (
--code     INSERT INTO code_use (code_digest, event_id)
--code     SELECT code_digest, event_id FROM coded ORDER BY code_digest, item  -- in one order: none waits in a circle
--code     ON CONFLICT DO NOTHING RETURNING event_id
--code ), replayed AS (
--code     SELECT item FROM coded WHERE event_id NOT IN (SELECT event_id FROM claimed)
), judged AS (
    SELECT p.item, p.event_id, p.caller, p.scene, p.terminal_id, p.occurred_at,
           c.card_id, c.region, c.holder_sealed,
           greatest(c.status_as_of, s.as_of) AS status_as_of,
           coalesce(
--ref          p.medium,
               CASE c.generation WHEN 2 THEN 'second_gen' WHEN 3 THEN 'third_gen' END) AS medium,
           CASE
--code         WHEN p.item IN (SELECT item FROM replayed) THEN 'code_replayed'
--ref          WHEN p.preset IS NOT NULL AND p.chip_index IS NULL AND p.card_id IS NULL THEN p.preset
               WHEN c.card_id IS NULL THEN 'unrecognised'
--ref          WHEN p.preset IS NOT NULL THEN p.preset
               WHEN (SELECT string_to_array($8, E'\x1f'))[c.status + 1] <> 'ok'
                   THEN (SELECT string_to_array($8, E'\x1f'))[c.status + 1]
--code         WHEN p.medium = 'ecard' AND (SELECT true FROM ecard e WHERE e.card_id = c.card_id) IS NULL
--code             THEN 'not_activated'
               WHEN c.valid_until < p.china_day THEN 'expired'
               WHEN (p.media >>
--ref                CASE WHEN p.medium IS NOT NULL THEN 1 ELSE
                     c.generation
--ref                END
                    ) & 1 = 0 THEN 'scene_not_allowed'
               WHEN greatest(c.status_as_of, s.as_of) < now() - $9::interval THEN 'status_stale'
               ELSE 'ok'
           END AS reason
    FROM presented p
    LEFT JOIN LATERAL (
        SELECT card_id, generation, status, status_as_of, valid_until, region, source_id, holder_sealed
        FROM card WHERE chip_index = p.chip_index
--ref    UNION ALL
--ref    SELECT card_id, generation, status, status_as_of, valid_until, region, source_id, holder_sealed
--ref    FROM card WHERE card_id = p.card_id
--code     AND p.item NOT IN (SELECT item FROM replayed)  -- whoever replays a code learns nothing of its card
    ) c ON true
    LEFT JOIN registry_source s USING (source_id)
    ORDER BY item  -- as they come: PostgreSQL 17 and later then sort neither here nor below
), recorded AS (
    INSERT INTO usage_event (event_id, position, recorded_at, occurred_at, kind, caller, card_id, medium, region,
                             scene, terminal_id, reason)
    SELECT event_id, (SELECT pg_current_xact_id()::text::bigint + xid_offset FROM feed_origin), now(), occurred_at,
           'verify', caller, card_id, medium, region, scene, terminal_id, reason
    FROM judged
)
SELECT reason, card_id, medium, region, date_part('epoch', status_as_of), CASE WHEN reason = 'ok' THEN holder_sealed END
FROM judged
ORDER BY item
