-- A chart of a worker's day reads 1440 of its minutes, which lie a page each, among those of all other workers. With the
-- averages beside the key it reads the pages of an index in its order instead.

-- migrate:up
DO $$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT * FROM rollup_groups() WHERE level = '_1m' AND key IS NOT NULL LOOP
        EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', made.target, made.target || '_pkey');
        EXECUTE (
            SELECT format(
                'ALTER TABLE %I ADD PRIMARY KEY (%I, bucket) INCLUDE (series_count, %s)',
                made.target, made.key, string_agg(format('%1$I, %2$I', measure || '_sum', measure || '_count'), ', ')
            )
            FROM (
                SELECT measure FROM rollup_measures(made.samples::regclass) WHERE NOT is_counter
                -- An index has at most 32 columns.
                ORDER BY place LIMIT 14
            ) AS averaged
        );
    END LOOP;
END
$$;

-- migrate:down
ALTER TABLE gpu_worker_1m DROP CONSTRAINT gpu_worker_1m_pkey, ADD PRIMARY KEY (worker_key, bucket);
ALTER TABLE engine_worker_1m DROP CONSTRAINT engine_worker_1m_pkey, ADD PRIMARY KEY (worker_key, bucket);
