-- Groups' rollups are made with the rollup that they are grouped from, for the same buckets and in the same transaction.

-- migrate:up
DO $$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT * FROM rollup_groups() LOOP
        EXECUTE (
            SELECT format(
                'CREATE TABLE %I (bucket timestamptz NOT NULL, %s%s, PRIMARY KEY (%sbucket)) %s',
                made.target, made.key || ' int NOT NULL, ', string_agg(format('%I %s', name, type), ', ' ORDER BY place),
                made.key || ', ', CASE WHEN made.level <> '_1d' THEN 'PARTITION BY RANGE (bucket)' END
            )
            FROM group_columns(made.samples::regclass, made.from_group)
        );
    END LOOP;
END
$$;

-- All series of one bucket are read at once; buckets come nearly in order.
DO $$
DECLARE
    source text;
BEGIN
    FOR source IN SELECT DISTINCT g.source FROM rollup_groups() AS g LOOP
        EXECUTE format(
            'CREATE INDEX %I ON %I USING brin (bucket) WITH (pages_per_range = 32, autosummarize = on)',
            source || '_bucket', source
        );
    END LOOP;
END
$$;

-- Make these buckets of a group's rollup anew from all rows that are there; returns the number of rows changed. Where the
-- rows have expired nothing changes.
CREATE FUNCTION roll_up_group(target text, buckets timestamptz[])
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    made record;
    changed bigint;
BEGIN
    SELECT * INTO STRICT made FROM rollup_groups() AS g WHERE g.target = roll_up_group.target;
    EXECUTE (
        SELECT format(
            'INSERT INTO %1$I AS r (bucket, %2$s%3$s) SELECT bucket, %2$s%4$s FROM %5$I WHERE bucket = ANY ($1)'
            ' GROUP BY %2$sbucket'
            ' ON CONFLICT (%2$sbucket) DO UPDATE SET (%3$s) = ROW (%6$s)'
            -- As many samples as before are the same samples.
            ' WHERE r.sample_count <> EXCLUDED.sample_count',
            made.target,
            made.key || ', ',
            string_agg(quote_ident(name), ', ' ORDER BY place),
            string_agg(aggregate, ', ' ORDER BY place),
            made.source,
            string_agg('EXCLUDED.' || quote_ident(name), ', ' ORDER BY place)
        )
        FROM group_columns(made.samples::regclass, made.from_group)
    ) USING buckets;
    GET DIAGNOSTICS changed = ROW_COUNT;
    RETURN changed;
END
$$;

ALTER FUNCTION roll_up_buckets(text, timestamptz[]) RENAME TO roll_up_series;

-- Make these buckets of the rollup of a relation anew, and of its groups; see roll_up_series.
CREATE FUNCTION roll_up_buckets(relation text, dirty timestamptz[])
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    rollup rollup_levels := (SELECT l FROM rollup_levels AS l WHERE source = relation);
    changed bigint := roll_up_series(relation, dirty);
    made record;
BEGIN
    FOR made IN
        SELECT * FROM rollup_groups() AS g
        WHERE g.samples = rollup.samples AND g.level = right(rollup.target, 3)
    LOOP
        changed := changed + roll_up_group(made.target, dirty);
    END LOOP;
    RETURN changed;
END
$$;

-- What the rollups hold by now.
DO $$
DECLARE
    made record;
    first_bucket timestamptz;
    last_bucket timestamptz;
BEGIN
    FOR made IN SELECT * FROM rollup_groups() LOOP
        EXECUTE format('SELECT min(bucket), max(bucket) FROM %I', made.source) INTO first_bucket, last_bucket;
        IF made.level <> '_1d' AND first_bucket IS NOT NULL THEN
            PERFORM make_partitions(
                made.target, CASE made.level WHEN '_1m' THEN 'day' ELSE 'month' END, first_bucket,
                last_bucket + INTERVAL '1 second'
            );
        END IF;
        EXECUTE (
            SELECT format(
                'INSERT INTO %I (bucket, %s%s) SELECT bucket, %2$s%4$s FROM %5$I GROUP BY %2$sbucket',
                made.target, made.key || ', ', string_agg(quote_ident(name), ', ' ORDER BY place),
                string_agg(aggregate, ', ' ORDER BY place), made.source
            )
            FROM group_columns(made.samples::regclass, made.from_group)
        );
    END LOOP;
END
$$;

-- migrate:down
DROP FUNCTION roll_up_buckets(text, timestamptz[]);
ALTER FUNCTION roll_up_series(text, timestamptz[]) RENAME TO roll_up_buckets;
DROP FUNCTION roll_up_group(text, timestamptz[]);
DROP INDEX gpu_samples_1m_bucket, gpu_samples_1h_bucket, gpu_samples_1d_bucket;
DROP INDEX system_samples_1m_bucket, system_samples_1h_bucket, system_samples_1d_bucket;
DROP INDEX engine_samples_1m_bucket, engine_samples_1h_bucket, engine_samples_1d_bucket;
DROP TABLE gpu_worker_1m, gpu_worker_1h, gpu_worker_1d, gpu_fleet_1m, gpu_fleet_1h, gpu_fleet_1d;
DROP TABLE engine_worker_1m, engine_worker_1h, engine_worker_1d, engine_fleet_1m, engine_fleet_1h, engine_fleet_1d;
DROP TABLE system_fleet_1m, system_fleet_1h, system_fleet_1d;
