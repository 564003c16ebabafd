-- Daily partitions, made ahead and dropped whole when they have expired. A row outside all partitions is refused.

-- migrate:up
INSERT INTO database_profile VALUES ('postgres');

-- Name of the partition that starts at a moment: gpu_samples_p20260131, or gpu_samples_1h_p202601 for months.
CREATE FUNCTION partition_name(relation text, step text, starts_at timestamptz)
RETURNS text
LANGUAGE sql STABLE
AS $$
    SELECT format(
        '%s_p%s', relation, to_char(starts_at AT TIME ZONE 'UTC', CASE step WHEN 'day' THEN 'YYYYMMDD' ELSE 'YYYYMM' END)
    )
$$;

-- Make the partitions that are missing between two moments, by step 'day' or 'month' in UTC; returns how many were
-- made. They are attached when complete, which does not stop readers and writers.
CREATE FUNCTION make_partitions(relation text, step text, from_time timestamptz, until_time timestamptz)
RETURNS int
LANGUAGE plpgsql
AS $$
DECLARE
    starts_at timestamptz := date_trunc(step, from_time, 'UTC');
    ends_at timestamptz;
    partition text;
    made int := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('fleetpulse partitions', 0));
    WHILE starts_at < until_time LOOP
        ends_at := (starts_at AT TIME ZONE 'UTC' + ('1 ' || step)::interval) AT TIME ZONE 'UTC';
        partition := partition_name(relation, step, starts_at);
        IF to_regclass(partition) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition, relation);
            EXECUTE format(
                'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                relation, partition, starts_at, ends_at
            );
            made := made + 1;
        END IF;
        starts_at := ends_at;
    END LOOP;
    RETURN made;
END
$$;

-- Partitions of a relation with the moment each ends. Bounds name no columns, so they are read without the partition's
-- own id: it may be dropped meanwhile.
CREATE FUNCTION partitions_of(relation regclass)
RETURNS TABLE (partition text, ends_at timestamptz)
LANGUAGE sql STABLE
AS $$
    SELECT c.relname::text, substring(pg_get_expr(c.relpartbound, 0) FROM 'TO \(''(.*)''\)')::timestamptz
    FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid
    WHERE inhparent = relation
$$;

-- Drop a partition, unless another process just did, and remember that rollups of its time are final.
CREATE PROCEDURE drop_partition(relation text, partition text, ends_at timestamptz)
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('fleetpulse partitions', 0));
    EXECUTE format('DROP TABLE IF EXISTS %I', partition);
    INSERT INTO retention_floors VALUES (relation, ends_at)
    ON CONFLICT ON CONSTRAINT retention_floors_pkey
    DO UPDATE SET floor = greatest(retention_floors.floor, EXCLUDED.floor);
END
$$;

DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY[
        'gpu_samples', 'system_samples', 'engine_samples', 'heartbeats', 'metric_points', 'metric_histograms'
    ] LOOP
        EXECUTE format('ALTER TABLE %I RENAME TO %I', relation, relation || '_plain');
        EXECUTE format(
            'CREATE TABLE %I (LIKE %I INCLUDING ALL) PARTITION BY RANGE (time)', relation, relation || '_plain'
        );
        EXECUTE format('DROP TABLE %I', relation || '_plain');
    END LOOP;
END
$$;

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
DROP PROCEDURE drop_partition(text, text, timestamptz);
DROP FUNCTION partitions_of(regclass);
DROP FUNCTION make_partitions(text, text, timestamptz, timestamptz);
DROP FUNCTION partition_name(text, text, timestamptz);
