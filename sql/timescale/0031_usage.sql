-- Usage by the week, its minutes by the day and its hours by the month. Retention is a policy, set from the settings.

-- migrate:up
SELECT create_hypertable(
    'finops.inference_usage', by_range('time', INTERVAL '7 days'), create_default_indexes => false
);
SELECT create_hypertable(
    'finops.inference_usage_1m', by_range('bucket', INTERVAL '1 day'), create_default_indexes => false
);
SELECT create_hypertable(
    'finops.inference_usage_1h', by_range('bucket', INTERVAL '30 days'), create_default_indexes => false
);

-- migrate:down
DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['inference_usage', 'inference_usage_1m', 'inference_usage_1h'] LOOP
        EXECUTE format('CREATE TABLE finops.%I (LIKE finops.%I INCLUDING ALL)', relation || '_plain', relation);
        EXECUTE format('INSERT INTO finops.%I SELECT * FROM finops.%I', relation || '_plain', relation);
        EXECUTE format('DROP TABLE finops.%I', relation);
        EXECUTE format('ALTER TABLE finops.%I RENAME TO %I', relation || '_plain', relation);
    END LOOP;
END
$$;
