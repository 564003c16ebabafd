-- What was measured. The profile's migrations turn these tables into hypertables or partitioned tables.
--
-- Measures are named, and their units and limits given, in fleetpulse/stream/dictionary.py; null is "no reading".

-- migrate:up
CREATE TABLE gpu_samples (
    time timestamptz NOT NULL,
    worker_key int NOT NULL,
    gpu_key int NOT NULL,
    utilization_ratio double precision,
    encoder_utilization_ratio double precision,
    decoder_utilization_ratio double precision,
    memory_used_bytes double precision,
    memory_total_bytes double precision,
    temperature_celsius double precision,
    memory_temperature_celsius double precision,
    temperature_limit_celsius double precision,
    power_watts double precision,
    power_limit_watts double precision,
    energy_joules_total double precision,
    sm_clock_hertz double precision,
    memory_clock_hertz double precision,
    thermal_throttle_ratio double precision,
    power_throttle_ratio double precision,
    corrected_errors_total double precision,
    uncorrected_errors_total double precision,
    xid_errors_total double precision,
    failed_ratio double precision
);

CREATE TABLE system_samples (
    time timestamptz NOT NULL,
    worker_key int NOT NULL,
    cpu_utilization_ratio double precision,
    cpu_busy_seconds_total double precision,
    cpu_idle_seconds_total double precision,
    cpu_logical_count double precision,
    memory_used_bytes double precision,
    memory_total_bytes double precision,
    memory_available_bytes double precision,
    swap_used_bytes double precision,
    disk_read_bytes_total double precision,
    disk_written_bytes_total double precision,
    filesystem_used_bytes double precision,
    filesystem_total_bytes double precision,
    network_received_bytes_total double precision,
    network_sent_bytes_total double precision,
    load_average_1m double precision,
    load_average_5m double precision,
    load_average_15m double precision,
    uptime_seconds double precision
);

CREATE TABLE engine_samples (
    time timestamptz NOT NULL,
    worker_key int NOT NULL,
    engine_key int NOT NULL,
    requests_running double precision,
    requests_waiting double precision,
    kv_cache_usage_ratio double precision,
    steps_total double precision,
    prompt_tokens_total double precision,
    generation_tokens_total double precision,
    preemptions_total double precision,
    prefix_cache_queries_total double precision,
    prefix_cache_hits_total double precision,
    requests_finished_total double precision
);

-- time is the worker's clock, received_at the collector's. status and engine_state are codes of heartbeat_statuses and
-- engine_states.
CREATE TABLE heartbeats (
    time timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    worker_key int NOT NULL,
    sequence bigint NOT NULL,
    status smallint NOT NULL,
    engine_state smallint,
    interval_seconds double precision,
    requests_waiting double precision,
    requests_running double precision,
    kv_cache_usage_ratio double precision,
    step_count double precision,
    cpu_utilization_ratio double precision,
    memory_utilization_ratio double precision,
    gpu_utilization_ratio double precision
);

CREATE TABLE metric_points (time timestamptz NOT NULL, series_key bigint NOT NULL, value double precision NOT NULL);

-- buckets[i] counts the observations up to bounds[i] and above bounds[i - 1]; the last bucket has no upper bound.
CREATE TABLE metric_histograms (
    time timestamptz NOT NULL,
    series_key bigint NOT NULL,
    count bigint NOT NULL,
    sum double precision,
    minimum double precision,
    maximum double precision,
    bounds double precision[] NOT NULL,
    buckets bigint[] NOT NULL
);

-- migrate:down
DROP TABLE metric_histograms, metric_points, heartbeats, engine_samples, system_samples, gpu_samples;
