"""A database that refuses a step of payments or visits: of what goes with it nothing is committed either."""

from typing import Literal

import asyncpg


async def refuse_steps(dsn: str, table: Literal["payment", "visit"], after: str, times: int) -> None:
    """The first `times` steps from `intent` to `after`. A sequence counts them: it is not rolled back."""
    owner = await asyncpg.connect(dsn)
    try:
        await owner.execute(
            f"""
            DROP SEQUENCE IF EXISTS refusals;
            CREATE SEQUENCE refusals;
            GRANT USAGE ON SEQUENCE refusals TO yikatong_app;
            CREATE OR REPLACE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF nextval('refusals') <= {times} THEN
                    RAISE EXCEPTION 'refused';
                END IF;
                RETURN NEW;
            END $$;
            CREATE OR REPLACE TRIGGER refuses BEFORE UPDATE ON {table} FOR EACH ROW
            WHEN (OLD.state = 'intent' AND NEW.state = '{after}') EXECUTE FUNCTION refuses();
            """
        )
    finally:
        await owner.close()
