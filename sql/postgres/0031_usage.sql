-- Usage by the month, its minutes by the day and its hours by the month; partitions of relations in any schema.

-- migrate:up

-- A relation's name, with or without its schema, as an identifier.
CREATE FUNCTION quote_qualified(name text)
RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT string_agg(quote_ident(part), '.' ORDER BY place)
    FROM unnest(parse_ident(name)) WITH ORDINALITY AS p (part, place)
$$;

-- As before, but a relation may be named with its schema; its partitions are in the same one.
CREATE OR REPLACE FUNCTION make_partitions(relation text, step text, from_time timestamptz, until_time timestamptz)
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
            EXECUTE format(
                'CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                quote_qualified(partition), quote_qualified(relation)
            );
            EXECUTE format(
                'ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                quote_qualified(relation), quote_qualified(partition), starts_at, ends_at
            );
            made := made + 1;
        END IF;
        starts_at := ends_at;
    END LOOP;
    RETURN made;
END
$$;

-- As before, with the schema in the name where it is not ours.
CREATE OR REPLACE FUNCTION partitions_of(relation regclass)
RETURNS TABLE (partition text, ends_at timestamptz)
LANGUAGE sql STABLE
AS $$
    SELECT
        CASE relnamespace WHEN current_schema()::regnamespace THEN '' ELSE relnamespace::regnamespace || '.' END || relname,
        substring(pg_get_expr(c.relpartbound, 0) FROM 'TO \(''(.*)''\)')::timestamptz
    FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid
    WHERE inhparent = relation
$$;

-- As before, for any schema.
CREATE OR REPLACE PROCEDURE drop_partition(relation text, partition text, ends_at timestamptz)
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('fleetpulse partitions', 0));
    EXECUTE format('DROP TABLE IF EXISTS %s', quote_qualified(partition));
    INSERT INTO retention_floors VALUES (relation, ends_at)
    ON CONFLICT ON CONSTRAINT retention_floors_pkey
    DO UPDATE SET floor = greatest(retention_floors.floor, EXCLUDED.floor);
END
$$;

DO $$
DECLARE
    relation text;
    time_column text;
BEGIN
    FOR relation, time_column IN
        VALUES ('inference_usage', 'time'), ('inference_usage_1m', 'bucket'), ('inference_usage_1h', 'bucket')
    LOOP
        EXECUTE format('ALTER TABLE finops.%I RENAME TO %I', relation, relation || '_plain');
        EXECUTE format(
            'CREATE TABLE finops.%I (LIKE finops.%I INCLUDING ALL) PARTITION BY RANGE (%I)',
            relation, relation || '_plain', time_column
        );
        EXECUTE format('DROP TABLE finops.%I', relation || '_plain');
    END LOOP;
END
$$;

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

CREATE OR REPLACE FUNCTION make_partitions(relation text, step text, from_time timestamptz, until_time timestamptz)
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

CREATE OR REPLACE FUNCTION partitions_of(relation regclass)
RETURNS TABLE (partition text, ends_at timestamptz)
LANGUAGE sql STABLE
AS $$
    SELECT c.relname::text, substring(pg_get_expr(c.relpartbound, 0) FROM 'TO \(''(.*)''\)')::timestamptz
    FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid
    WHERE inhparent = relation
$$;

CREATE OR REPLACE PROCEDURE drop_partition(relation text, partition text, ends_at timestamptz)
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

DROP FUNCTION quote_qualified(text);
