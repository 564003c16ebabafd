-- A chart of a worker's day reads 1440 of its minutes, which lie a page each, among those of all other workers. With the
-- averages beside the key it reads some ninety pages of an index instead.

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
DO $$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT * FROM rollup_groups() WHERE level = '_1m' AND key IS NOT NULL LOOP
        EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', made.target, made.target || '_pkey');
        EXECUTE format('ALTER TABLE %I ADD PRIMARY KEY (%I, bucket)', made.target, made.key);
    END LOOP;
END
$$;
