-- Hypertables of one-day chunks. Columnstore: rows of one key together, newest first, because queries ask for one key
-- over a time. Which chunks are moved there and which are dropped is a policy, set from the settings at each start.

-- migrate:up
INSERT INTO database_profile VALUES ('timescale');

SELECT create_hypertable('gpu_samples', by_range('time', INTERVAL '1 day'), create_default_indexes => false);
SELECT create_hypertable('system_samples', by_range('time', INTERVAL '1 day'), create_default_indexes => false);
SELECT create_hypertable('engine_samples', by_range('time', INTERVAL '1 day'), create_default_indexes => false);
SELECT create_hypertable('heartbeats', by_range('time', INTERVAL '1 day'), create_default_indexes => false);
SELECT create_hypertable('metric_points', by_range('time', INTERVAL '1 day'), create_default_indexes => false);
SELECT create_hypertable('metric_histograms', by_range('time', INTERVAL '1 day'), create_default_indexes => false);

ALTER TABLE gpu_samples SET (
    timescaledb.enable_columnstore, timescaledb.segmentby = 'gpu_key', timescaledb.orderby = 'time DESC'
);
ALTER TABLE system_samples SET (
    timescaledb.enable_columnstore, timescaledb.segmentby = 'worker_key', timescaledb.orderby = 'time DESC'
);
ALTER TABLE engine_samples SET (
    timescaledb.enable_columnstore, timescaledb.segmentby = 'engine_key', timescaledb.orderby = 'time DESC'
);
ALTER TABLE metric_points SET (
    timescaledb.enable_columnstore, timescaledb.segmentby = 'series_key', timescaledb.orderby = 'time DESC'
);
ALTER TABLE metric_histograms SET (
    timescaledb.enable_columnstore, timescaledb.segmentby = 'series_key', timescaledb.orderby = 'time DESC'
);

-- migrate:down
DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY[
        'gpu_samples', 'system_samples', 'engine_samples', 'heartbeats', 'metric_points', 'metric_histograms'
    ] LOOP
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', relation || '_plain', relation);
        EXECUTE format('INSERT INTO %I SELECT * FROM %I', relation || '_plain', relation);
        EXECUTE format('DROP TABLE %I', relation);
        EXECUTE format('ALTER TABLE %I RENAME TO %I', relation || '_plain', relation);
    END LOOP;
    DELETE FROM database_profile;
END
$$;
