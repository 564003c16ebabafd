"""Text Generation Inference. It names no model in its series and has no KV-cache reading."""

from typing import Final

from agent.engines.adapter import Series, SeriesAdapter

ADAPTER: Final = SeriesAdapter(
    kind="tgi",
    table=(
        Series("requests_running", ("tgi_batch_current_size",)),
        Series("requests_waiting", ("tgi_queue_size",)),
        # By method (prefill, decode): one count for each batch step.
        Series("steps_total", ("tgi_batch_inference_count",)),
        Series("prompt_tokens_total", ("tgi_request_input_length_sum",)),
        Series("generation_tokens_total", ("tgi_request_generated_tokens_sum",)),
        Series("requests_finished_total", ("tgi_request_success",)),
    ),
)
