-- Points for thousands of uses in one statement: transfers, lots, both sides' entries. Columns of $1 to $5 come as one text
-- with a separator, as in verify.sql; $6 to $10 are the terms that a use names by number. The accounts of all holders exist
-- and are locked: what is read of them here stays.
-- No two sets of many rows are joined, and OFFSET 0 keeps tables from being: the planner does not know how many there are,
-- and would compare all with all, or read the whole county. All goes in the order of the persons: their neighbours in a
-- table or an index are at hand, which takes a fifth off (what stands in this statement keeps all other bulks waiting).
WITH asked AS MATERIALIZED (
    SELECT item, transfer_id::uuid, ($10::timestamptz[])[terms::int] AS created_at, card_id::uuid, person_id::uuid,
           ($6::text[])[terms::int] AS scene, ($7::date[])[terms::int] AS day, ($8::date[])[terms::int] AS expires_on,
           points::int, ($9::int[])[terms::int] AS daily_max
    FROM unnest(string_to_array($1, E'\x1f'), string_to_array($2, E'\x1f'), string_to_array($3, E'\x1f'),
                string_to_array($4, E'\x1f'), string_to_array($5, E'\x1f'))
         WITH ORDINALITY AS a(transfer_id, card_id, person_id, points, terms, item)
    ORDER BY person_id
), with_room AS MATERIALIZED (
    SELECT a.*, p.place, p.balance, p.entries,
           -- a shortfall was spent: whoever could earn it again would earn without a limit
           a.daily_max - (SELECT coalesce(sum(t.points), 0)::bigint FROM points_transfer t
                          WHERE t.person_id = a.person_id AND t.day = a.day AND t.scene = a.scene
                            AND t.kind IN ('earn', 'take_back') AND t.created_at > $11 AND t.created_at <= $13) AS room
    FROM asked a
    CROSS JOIN LATERAL (
        SELECT ctid AS place, balance, entries FROM points_account WHERE account_id = a.person_id OFFSET 0
    ) p
), granted AS MATERIALIZED (
    SELECT item, transfer_id, created_at, card_id, scene, day, expires_on, person_id, place, balance, entries, points
    FROM (SELECT item, transfer_id, created_at, card_id, scene, day, expires_on, person_id, place, balance, entries,
                 -- what of the room is left to it by those before it
                 (greatest(least(upto, room), 0) - greatest(least(upto - points, room), 0))::int AS points
          FROM (SELECT *, sum(points) OVER (PARTITION BY person_id, scene, day ORDER BY item) AS upto FROM with_room) counted
         ) clamped
    WHERE points > 0
), transferred AS (
    INSERT INTO points_transfer (transfer_id, created_at, kind, person_id, card_id, counter, points, day, scene)
    SELECT transfer_id, created_at, 'earn', person_id, card_id, $12, points, day, scene FROM granted
), kept AS (
    INSERT INTO points_lot (person_id, expires_on, remaining)
    SELECT person_id, expires_on, sum(points) FROM granted GROUP BY person_id, expires_on ORDER BY person_id
    ON CONFLICT (person_id, expires_on) DO UPDATE SET remaining = points_lot.remaining + EXCLUDED.remaining
), moved AS (
    -- by their places, which cannot change while they are locked: by their ids, all accounts of the county would be read
    UPDATE points_account account
    SET balance = account.balance + total.points, entries = account.entries + total.entries
    FROM (SELECT place, sum(points) AS points, count(*) AS entries FROM granted GROUP BY place) total
    WHERE account.ctid = total.place
), entered AS (
    INSERT INTO points_entry (transfer_id, account_id, created_at, person_id, number, points, previous, current)
    SELECT transfer_id, person_id, created_at, person_id, entries + row_number() OVER so_far, points,
           balance + sum(points) OVER so_far - points, balance + sum(points) OVER so_far
    FROM granted
    WINDOW so_far AS (PARTITION BY person_id ORDER BY item)
), issued AS (
    -- the account that the county shares
    UPDATE points_account account
    SET balance = account.balance - total.points, entries = account.entries + total.entries
    FROM (SELECT sum(points) AS points, count(*) AS entries FROM granted) total
    WHERE account.account_id = $12 AND total.entries > 0
    RETURNING account.balance + total.points AS balance, account.entries - total.entries AS entries
), counted AS (
    INSERT INTO points_entry (transfer_id, account_id, created_at, person_id, number, points, previous, current)
    SELECT transfer_id, $12, created_at, person_id, issued.entries + row_number() OVER so_far, -points,
           issued.balance - sum(points) OVER so_far + points, issued.balance - sum(points) OVER so_far
    FROM granted, issued
    WINDOW so_far AS (ORDER BY item)
)
SELECT coalesce(sum(points), 0)::bigint FROM granted
