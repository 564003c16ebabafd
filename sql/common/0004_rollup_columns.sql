-- What a rollup of a samples table holds. Both profiles build their rollups from these functions, so that names, order
-- and meaning of the columns are the same.

-- migrate:up

-- The profile this database was migrated for: one row.
CREATE TABLE database_profile (name text PRIMARY KEY CHECK (name IN ('timescale', 'postgres')));

-- Rows of a relation before its floor may have expired: rollups of that time are final and must not be made again.
CREATE TABLE retention_floors (relation text PRIMARY KEY, floor timestamptz NOT NULL);

-- Measures of a samples table, in order. A counter only grows and its name ends in _total; the others are gauges.
CREATE FUNCTION rollup_measures(samples regclass)
RETURNS TABLE (measure text, is_counter boolean, place smallint)
LANGUAGE sql STABLE
AS $$
    SELECT attname::text, attname LIKE '%\_total', attnum
    FROM pg_attribute
    WHERE attrelid = samples AND attnum > 0 AND NOT attisdropped AND atttypid = 'float8'::regtype
    ORDER BY attnum
$$;

-- Key columns of a samples table, in order; the last one alone identifies what the sample is of.
CREATE FUNCTION rollup_keys(samples regclass)
RETURNS text[]
LANGUAGE sql STABLE
AS $$
    SELECT array_agg(attname::text ORDER BY attnum)
    FROM pg_attribute
    WHERE attrelid = samples AND attnum > 0 AND NOT attisdropped AND atttypid = 'int4'::regtype
$$;

-- Columns of a rollup after its bucket and keys, and the aggregate that makes each: from samples, or from_rollup from
-- the next finer rollup. first_of and last_of say how to take the value (%1$s) with the least and greatest time (%2$s)
-- among those that are not null.
CREATE FUNCTION rollup_columns(samples regclass, from_rollup boolean, first_of text, last_of text)
RETURNS TABLE (name text, type text, aggregate text, place bigint)
LANGUAGE sql STABLE
AS $$
    SELECT 'sample_count', 'bigint', CASE WHEN from_rollup THEN 'sum(sample_count)::bigint' ELSE 'count(*)' END, 0
    UNION ALL
    SELECT
        format('%s_%s', measure, part),
        CASE part WHEN 'count' THEN 'bigint' ELSE 'double precision' END,
        CASE
            WHEN part = 'first' THEN format(first_of, source, CASE WHEN from_rollup THEN 'bucket' ELSE 'time' END)
            WHEN part = 'last' THEN format(last_of, source, CASE WHEN from_rollup THEN 'bucket' ELSE 'time' END)
            WHEN part = 'count' AND from_rollup THEN format('sum(%s)::bigint', source)
            ELSE format('%s(%s)', part, source)
        END,
        row_number() OVER (ORDER BY m.place, p.place)
    FROM rollup_measures(samples) AS m
    JOIN (
        VALUES (1, 'sum', false), (2, 'count', NULL), (3, 'min', NULL), (4, 'max', NULL), (5, 'first', true),
            (6, 'last', NULL)
    ) AS p (place, part, counters) ON p.counters IS NULL OR p.counters = m.is_counter
    CROSS JOIN LATERAL (SELECT CASE WHEN from_rollup THEN measure || '_' || part ELSE measure END AS source) AS s
    ORDER BY 4
$$;

-- migrate:down
DROP FUNCTION rollup_columns(regclass, boolean, text, text);
DROP FUNCTION rollup_keys(regclass);
DROP FUNCTION rollup_measures(regclass);
DROP TABLE retention_floors, database_profile;
