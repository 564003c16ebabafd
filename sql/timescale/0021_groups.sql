-- Groups' continuous aggregates stand on those of the series, of the same width, and show what is not materialised yet.
-- What was there before is materialised by the late-data job, whose window for groups is as long as their source is kept.

-- migrate:up
DO $$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT * FROM rollup_groups() LOOP
        EXECUTE (
            SELECT format(
                'CREATE MATERIALIZED VIEW %I WITH (timescaledb.continuous, timescaledb.materialized_only = false)'
                ' AS SELECT time_bucket(%L::interval, s.bucket) AS bucket, %s%s FROM %I AS s GROUP BY 1%s WITH NO DATA',
                made.target,
                CASE made.level WHEN '_1m' THEN '1 minute' WHEN '_1h' THEN '1 hour' ELSE '1 day' END,
                made.key || ', ',
                string_agg(format('%s AS %I', aggregate, name), ', ' ORDER BY place),
                made.source,
                ', ' || made.key
            )
            FROM group_columns(made.samples::regclass, made.from_group)
        );
    END LOOP;
END
$$;

-- migrate:down
DROP MATERIALIZED VIEW gpu_fleet_1m;
DROP MATERIALIZED VIEW gpu_fleet_1h;
DROP MATERIALIZED VIEW gpu_fleet_1d;
DROP MATERIALIZED VIEW engine_fleet_1m;
DROP MATERIALIZED VIEW engine_fleet_1h;
DROP MATERIALIZED VIEW engine_fleet_1d;
DROP MATERIALIZED VIEW gpu_worker_1m;
DROP MATERIALIZED VIEW gpu_worker_1h;
DROP MATERIALIZED VIEW gpu_worker_1d;
DROP MATERIALIZED VIEW engine_worker_1m;
DROP MATERIALIZED VIEW engine_worker_1h;
DROP MATERIALIZED VIEW engine_worker_1d;
DROP MATERIALIZED VIEW system_fleet_1m;
DROP MATERIALIZED VIEW system_fleet_1h;
DROP MATERIALIZED VIEW system_fleet_1d;
