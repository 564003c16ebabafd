-- Continuous aggregates: minutes from samples, hours from minutes, days from hours. Each also shows what is not yet
-- materialised (materialized_only is off), on every level, because one level without it hides new rows from all above.
-- What is refreshed when is a policy, set from the settings at each start.

-- migrate:up
DO $$
DECLARE
    samples text;
    level record;
BEGIN
    FOREACH samples IN ARRAY ARRAY['gpu_samples', 'system_samples', 'engine_samples'] LOOP
        FOR level IN
            VALUES (samples, samples || '_1m', INTERVAL '1 minute', 'time'),
                (samples || '_1m', samples || '_1h', INTERVAL '1 hour', 'bucket'),
                (samples || '_1h', samples || '_1d', INTERVAL '1 day', 'bucket')
        LOOP
            EXECUTE (
                SELECT format(
                    'CREATE MATERIALIZED VIEW %I'
                    ' WITH (timescaledb.continuous, timescaledb.materialized_only = false)'
                    ' AS SELECT time_bucket(%L::interval, %I) AS bucket, %s, %s FROM %I GROUP BY 1, %4$s WITH NO DATA',
                    level.column2, level.column3, level.column4, array_to_string(rollup_keys(samples), ', '),
                    string_agg(format('%s AS %I', aggregate, name), ', ' ORDER BY place), level.column1
                )
                FROM rollup_columns(
                    samples, level.column4 = 'bucket',
                    'first(%1$s, %2$s) FILTER (WHERE %1$s IS NOT NULL)',
                    'last(%1$s, %2$s) FILTER (WHERE %1$s IS NOT NULL)'
                )
            );
        END LOOP;
    END LOOP;
END
$$;

-- migrate:down
DROP MATERIALIZED VIEW gpu_samples_1d;
DROP MATERIALIZED VIEW gpu_samples_1h;
DROP MATERIALIZED VIEW gpu_samples_1m;
DROP MATERIALIZED VIEW system_samples_1d;
DROP MATERIALIZED VIEW system_samples_1h;
DROP MATERIALIZED VIEW system_samples_1m;
DROP MATERIALIZED VIEW engine_samples_1d;
DROP MATERIALIZED VIEW engine_samples_1h;
DROP MATERIALIZED VIEW engine_samples_1m;
