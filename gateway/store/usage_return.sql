-- What is known of a chunk of returned lines: the card, whether the id was used, and of a line that takes a use back, the
-- use. $1 is the caller. Each column comes as one text with a separator, as in verify.sql.
-- One row comes back, a text for each figure: a row for each line would cost the gateway more than taking these apart.
WITH given AS MATERIALIZED (
    SELECT item, id, decode(chip_index, 'hex') AS chip_index, card_id::uuid AS asked
    FROM unnest(string_to_array($2, E'\x1f'), string_to_array($3, E'\x1f', ''), string_to_array($4, E'\x1f', ''))
         WITH ORDINALITY AS g(id, chip_index, card_id, item)
)
SELECT pg_current_xact_id()::text::bigint + (SELECT xid_offset FROM feed_origin) AS position,
       now() AS recorded_at,
       -- 36 each of the card's and its holder's id, 1 of the generation, 6 of the region, 1 whether the line's id is known;
       -- store/usage_return.py takes it apart
       string_agg(coalesce(c.card_id::text || c.person_id::text || c.generation || c.region, repeat('-', 79))
                  || CASE WHEN EXISTS (SELECT FROM usage_return WHERE caller = $1 AND id = g.id) THEN 'k' ELSE 'n' END,
                  '' ORDER BY item) AS found
FROM given g
LEFT JOIN LATERAL (
    SELECT card_id, person_id, generation, region FROM card WHERE chip_index = g.chip_index
    UNION ALL
    SELECT card_id, person_id, generation, region FROM card WHERE card_id = g.asked
) c ON true
