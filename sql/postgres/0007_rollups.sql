-- Rollup tables, kept by the collectors from a list of changed buckets.

-- migrate:up

-- Which relation is rolled up into which, by what time column and width.
CREATE TABLE rollup_levels (
    source text PRIMARY KEY,
    target text NOT NULL UNIQUE,
    samples text NOT NULL,
    time_column text NOT NULL,
    width interval NOT NULL
);
INSERT INTO rollup_levels
SELECT samples || finer, samples || coarser, samples, time_column, width
FROM unnest(ARRAY['gpu_samples', 'system_samples', 'engine_samples']) AS samples
CROSS JOIN (
    VALUES ('', '_1m', 'time', INTERVAL '1 minute'), ('_1m', '_1h', 'bucket', INTERVAL '1 hour'),
        ('_1h', '_1d', 'bucket', INTERVAL '1 day')
) AS level (finer, coarser, time_column, width);

-- Buckets of relation's rollup that are out of date. Only ever added to, in the transaction that adds the rows: a mark
-- that a reader cannot see yet is not lost but stays for its next round. No unique index, so writers never wait.
CREATE TABLE rollup_dirty (relation text NOT NULL, bucket timestamptz NOT NULL)
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Minutes are partitioned by day and hours by month, so that they expire whole; days are kept.
DO $$
DECLARE
    level record;
    keys text[];
BEGIN
    FOR level IN SELECT * FROM rollup_levels LOOP
        keys := rollup_keys(level.samples::regclass);
        EXECUTE (
            SELECT format(
                'CREATE TABLE %I (bucket timestamptz NOT NULL, %s, %s, PRIMARY KEY (%I, bucket)) %s',
                level.target,
                (
                    SELECT string_agg(key || ' int NOT NULL', ', ' ORDER BY place)
                    FROM unnest(keys) WITH ORDINALITY AS k (key, place)
                ),
                string_agg(format('%I %s', name, type), ', ' ORDER BY place),
                keys[cardinality(keys)],
                CASE WHEN level.width < INTERVAL '1 day' THEN 'PARTITION BY RANGE (bucket)' END
            )
            FROM rollup_columns(level.samples::regclass, true, '', '')
        );
    END LOOP;
END
$$;

-- Start of the bucket that a moment is in; buckets are aligned to midnight UTC.
CREATE FUNCTION bucket_of(width interval, moment timestamptz)
RETURNS timestamptz
LANGUAGE sql STABLE
AS $$ SELECT date_bin(width, moment, TIMESTAMPTZ '2000-01-01 00:00:00+00') $$;

-- Make these buckets of the rollup of a relation anew from all its rows; returns the number of rows changed. Marks the
-- touched buckets of the next coarser rollup as dirty. Buckets whose rows have expired are left as they are.
--
-- The caller has deleted the marks before, in the same transaction: the statement below sees at least the rows that
-- those marks stood for, because under READ COMMITTED it takes its own, later snapshot.
CREATE FUNCTION roll_up_buckets(relation text, dirty timestamptz[])
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    level rollup_levels := (SELECT l FROM rollup_levels AS l WHERE source = relation);
    keys text[] := rollup_keys(level.samples::regclass);
    wanted timestamptz[] := ARRAY(
        SELECT DISTINCT bucket FROM unnest(dirty) AS d (bucket)
        WHERE bucket >= coalesce((SELECT floor FROM retention_floors AS f WHERE f.relation = level.source), '-infinity')
    );
    changed bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'roll_up_buckets needs READ COMMITTED, not %', current_setting('transaction_isolation');
    END IF;
    EXECUTE (
        SELECT format(
            'INSERT INTO %1$I AS r (bucket, %2$s, %3$s)'
            ' SELECT wanted.bucket, %4$s, %5$s FROM unnest($1) AS wanted (bucket)'
            ' JOIN %6$I AS s ON s.%7$I >= wanted.bucket AND s.%7$I < wanted.bucket + $2'
            ' GROUP BY wanted.bucket, %4$s'
            ' ON CONFLICT (%8$I, bucket) DO UPDATE SET (%3$s) = ROW (%9$s)'
            -- Rows are added and never changed: as many samples as before are the same samples.
            ' WHERE r.sample_count <> EXCLUDED.sample_count',
            level.target,
            array_to_string(keys, ', '),
            string_agg(quote_ident(name), ', ' ORDER BY place),
            array_to_string(keys, ', '),
            string_agg(aggregate, ', ' ORDER BY place),
            level.source,
            level.time_column,
            keys[cardinality(keys)],
            string_agg('EXCLUDED.' || quote_ident(name), ', ' ORDER BY place)
        )
        FROM rollup_columns(
            level.samples::regclass, level.time_column = 'bucket',
            '(array_agg(%1$s ORDER BY s.%2$s) FILTER (WHERE %1$s IS NOT NULL))[1]',
            '(array_agg(%1$s ORDER BY s.%2$s DESC) FILTER (WHERE %1$s IS NOT NULL))[1]'
        )
    ) USING wanted, level.width;
    GET DIAGNOSTICS changed = ROW_COUNT;
    INSERT INTO rollup_dirty (relation, bucket)
    SELECT DISTINCT coarser.source, bucket_of(coarser.width, bucket)
    FROM rollup_levels AS coarser CROSS JOIN unnest(wanted) AS bucket
    WHERE coarser.source = level.target;
    RETURN changed;
END
$$;

-- migrate:down
DROP FUNCTION roll_up_buckets(text, timestamptz[]);
DROP FUNCTION bucket_of(interval, timestamptz);
DROP TABLE gpu_samples_1m, gpu_samples_1h, gpu_samples_1d;
DROP TABLE system_samples_1m, system_samples_1h, system_samples_1d;
DROP TABLE engine_samples_1m, engine_samples_1h, engine_samples_1d;
DROP TABLE rollup_dirty, rollup_levels;
