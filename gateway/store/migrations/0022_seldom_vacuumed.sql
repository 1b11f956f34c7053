-- Partitions that are there already, like those that are made from now on (store/migrate.py says why): no vacuum whenever a
-- fifth of the rows has been added.
DO $$
DECLARE
    partition regclass;
BEGIN
    FOR partition IN
        SELECT inhrelid::regclass FROM pg_inherits JOIN pg_partitioned_table ON partrelid = inhparent
        JOIN pg_class ON pg_class.oid = inhrelid
        WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace
    LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_vacuum_insert_threshold = 10000000)', partition);
    END LOOP;
END $$;
