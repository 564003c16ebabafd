-- Rollups of many series together: by worker (of GPUs and engines), and of the whole fleet. A chart of a thousand
-- workers' average then reads a row a minute, and not eight thousand.

-- migrate:up

-- What is grouped from what, in the order to make it in: each level of a fleet from the same level of its workers, and
-- that from the same level of the series. key is null for the fleet.
CREATE FUNCTION rollup_groups()
RETURNS TABLE (level text, source text, target text, samples text, key text, from_group boolean)
LANGUAGE sql IMMUTABLE
AS $$
    SELECT l.level, g.source || l.level, g.target || l.level, g.samples, g.key, g.source <> g.samples
    FROM (VALUES (1, '_1m'), (2, '_1h'), (3, '_1d')) AS l (place, level)
    CROSS JOIN (
        VALUES (1, 'gpu_samples', 'gpu_worker', 'gpu_samples', 'worker_key'),
            (2, 'gpu_worker', 'gpu_fleet', 'gpu_samples', NULL),
            (3, 'system_samples', 'system_fleet', 'system_samples', NULL),
            (4, 'engine_samples', 'engine_worker', 'engine_samples', 'worker_key'),
            (5, 'engine_worker', 'engine_fleet', 'engine_samples', NULL)
    ) AS g (place, source, target, samples, key)
    ORDER BY l.place, g.place
$$;

-- Columns of a group's rollup after its bucket and key, and the aggregate that makes each from the series' rollup of the
-- same width, or from_group from another group's.
--
-- A counter's reading says nothing of a group, its increase does: from the first to the last reading of each series in
-- the bucket. A counter whose minimum is below its first value was reset: it rose to the maximum, if that was not at the
-- end, and then from zero. _series and _count say how many series had how many readings.
CREATE FUNCTION group_columns(samples regclass, from_group boolean)
RETURNS TABLE (name text, type text, aggregate text, place bigint)
LANGUAGE sql STABLE
AS $$
    SELECT 'series_count', 'bigint', CASE WHEN from_group THEN 'sum(series_count)::bigint' ELSE 'count(*)' END, -1
    UNION ALL
    SELECT 'sample_count', 'bigint', 'sum(sample_count)::bigint', 0
    UNION ALL
    SELECT
        column_name,
        CASE WHEN part IN ('count', 'series') THEN 'bigint' ELSE 'double precision' END,
        CASE
            WHEN part = 'increase' AND NOT from_group THEN format(
                'sum(CASE WHEN %1$s_min < %1$s_first'
                ' THEN %1$s_last + CASE WHEN %1$s_max > %1$s_last THEN %1$s_max - %1$s_first ELSE 0 END'
                ' ELSE %1$s_last - %1$s_first END)',
                measure
            )
            WHEN part = 'series' AND NOT from_group THEN format('count(*) FILTER (WHERE %s_count > 0)', measure)
            WHEN part IN ('count', 'series') THEN format('sum(%s)::bigint', column_name)
            WHEN part IN ('min', 'max') THEN format('%s(%s)', part, column_name)
            ELSE format('sum(%s)', column_name)
        END,
        row_number() OVER (ORDER BY m.place, p.place)
    FROM rollup_measures(samples) AS m
    JOIN (
        VALUES (1, 'sum', false), (2, 'increase', true), (3, 'count', NULL), (4, 'series', true), (5, 'min', false),
            (6, 'max', false)
    ) AS p (place, part, counters) ON p.counters IS NULL OR p.counters = m.is_counter
    CROSS JOIN LATERAL (SELECT measure || '_' || part AS column_name) AS c
    ORDER BY 4
$$;

-- migrate:down
DROP FUNCTION group_columns(regclass, boolean);
DROP FUNCTION rollup_groups();
