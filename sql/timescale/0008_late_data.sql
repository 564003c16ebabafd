-- A refresh policy looks back a few buckets only. Rows that come later than that are remembered as invalid ranges, and
-- this job refreshes those ranges, finest rollup first. It costs next to nothing when nothing came late.

-- migrate:up

-- config: {"windows": [{"source", "rollup", "width", "start_offset", "end_offset"}, …]}. A window never reaches into time
-- whose rows may have expired: refreshing it would empty the rollup.
CREATE PROCEDURE refresh_late_rollups(job_id int, config jsonb)
LANGUAGE plpgsql
AS $$
DECLARE
    late jsonb;
    window_start timestamptz;
    window_end timestamptz;
BEGIN
    FOR place IN 0 .. jsonb_array_length(config -> 'windows') - 1 LOOP
        late := config -> 'windows' -> place;
        window_start := greatest(
            now() - (late ->> 'start_offset')::interval,
            (SELECT floor FROM retention_floors WHERE relation = late ->> 'source')
        );
        window_end := now() - (late ->> 'end_offset')::interval;
        IF window_start < window_end - (late ->> 'width')::interval * 2 THEN
            CALL refresh_continuous_aggregate((late ->> 'rollup')::regclass, window_start, window_end);
        END IF;
    END LOOP;
END
$$;

-- migrate:down
SELECT delete_job(job_id) FROM timescaledb_information.jobs WHERE proc_name = 'refresh_late_rollups';
DROP PROCEDURE refresh_late_rollups(int, jsonb);
