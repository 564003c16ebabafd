-- Reading goes by key and time. There is no unique index: rows are written once because the offsets are, and COPY does
-- not have to look each row up. Rollups read all keys of a short time; rows arrive nearly in time order, so a BRIN
-- index, which costs the writer next to nothing, finds them.

-- migrate:up
CREATE INDEX gpu_samples_key ON gpu_samples (gpu_key, time DESC);
CREATE INDEX system_samples_key ON system_samples (worker_key, time DESC);
CREATE INDEX engine_samples_key ON engine_samples (engine_key, time DESC);
CREATE INDEX gpu_samples_time ON gpu_samples USING brin (time) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX system_samples_time ON system_samples USING brin (time) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX engine_samples_time ON engine_samples USING brin (time) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX heartbeats_key ON heartbeats (worker_key, time DESC);
CREATE INDEX metric_points_key ON metric_points (series_key, time DESC);
CREATE INDEX metric_histograms_key ON metric_histograms (series_key, time DESC);

-- migrate:down
DROP INDEX gpu_samples_key, system_samples_key, engine_samples_key;
DROP INDEX gpu_samples_time, system_samples_time, engine_samples_time;
DROP INDEX heartbeats_key, metric_points_key, metric_histograms_key;
