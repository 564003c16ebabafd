-- Requests of each instance, whoever asked for whatever: the sums of usage, by instance.

-- migrate:up
DO $$
DECLARE
    made record;
BEGIN
    FOR made IN
        VALUES ('instance_request_metrics', 'inference_usage_1m'), ('instance_request_metrics_1h', 'inference_usage_1h'),
            ('instance_request_metrics_1d', 'inference_usage_1d')
    LOOP
        EXECUTE format(
            'CREATE VIEW %I AS SELECT
                bucket,
                instance_id,
                sum(total_requests)::bigint AS total_requests,
                sum(successful_requests)::bigint AS successful_requests,
                sum(refused_requests)::bigint AS refused_requests,
                sum(failed_requests)::bigint AS failed_requests,
                sum(broken_requests)::bigint AS broken_requests,
                sum(cancelled_requests)::bigint AS cancelled_requests,
                sum(unknown_token_requests)::bigint AS unknown_token_requests,
                sum(input_tokens)::bigint AS input_tokens,
                sum(output_tokens)::bigint AS output_tokens,
                sum(total_tokens)::bigint AS total_tokens,
                sum(cached_tokens)::bigint AS cached_tokens,
                sum(duration_seconds_sum) AS duration_seconds_sum,
                min(duration_seconds_min) AS duration_seconds_min,
                max(duration_seconds_max) AS duration_seconds_max,
                sum(first_token_seconds_sum) AS first_token_seconds_sum,
                sum(first_token_seconds_count)::bigint AS first_token_seconds_count,
                min(first_token_seconds_min) AS first_token_seconds_min,
                max(first_token_seconds_max) AS first_token_seconds_max,
                sum(busy_seconds) AS busy_seconds,
                sum(cost) AS cost,
                max(currency) AS currency,
                sum(unpriced_requests)::bigint AS unpriced_requests,
                max(last_request_at) AS last_request_at
            FROM finops.%I GROUP BY bucket, instance_id',
            made.column1, made.column2
        );
    END LOOP;
END
$$;

-- migrate:down
DROP VIEW instance_request_metrics, instance_request_metrics_1h, instance_request_metrics_1d;
