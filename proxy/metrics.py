"""The proxy's own metrics: golden signals by model, and OpenTelemetry's GenAI server metrics with vLLM's bounds.

A model's label is its Hugging Face id, from the database; a client's own words never become one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fleetpulse.stream.consumer import StreamReader
from proxy.access_reader import Access
from proxy.fleet import Fleet, Worker, clock
from proxy.relay.attempts import Attempt
from proxy.relay.connection import Pool

# vLLM's own bounds, so that both sides can be laid over each other.
DURATION_BOUNDS: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0),
    *(30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
FIRST_TOKEN_BOUNDS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
PER_TOKEN_BOUNDS: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
SELECTION_BOUNDS: Final = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1)
_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "chat",
}
_LABELS: Final = ("gen_ai_operation_name", "gen_ai_request_model")
NO_MODEL: Final = ""
# Answers that are kept at most.
ANSWERS_MOST: Final = 1_000


class ModelSeries:
    """The series of one model and operation, looked up once."""

    def __init__(self, metrics: "ProxyMetrics", path: str, model: str) -> None:
        operation = _OPERATIONS.get(path, "other")
        self.duration = metrics.duration.labels(operation, model)
        self.first_token = metrics.first_token.labels(operation, model)
        self.per_token = metrics.per_token.labels(operation, model)
        self.prompt_tokens = metrics.tokens.labels(model, "input")
        self.made_tokens = metrics.tokens.labels(model, "output")


class _Settling(Collector):
    """Asked first at each scrape."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle

    def collect(self) -> Iterable[Metric]:
        """Has no metrics of its own."""
        self._settle()
        return ()


class ProxyMetrics:
    """Counts and times. What each request adds is kept as it is, and added when somebody looks: at once it would cost a
    request several times as much."""

    def __init__(self, registry: CollectorRegistry) -> None:
        registry.register(_Settling(self.settle))
        self.requests = Counter(
            "fleetpulse_proxy_requests_total",
            "Requests by how they ended, which for a stream is known at its end",
            ("model", "outcome", "status"),
            registry=registry,
        )
        self.attempts = Counter(
            "fleetpulse_proxy_attempts_total",
            "Attempts at workers by how they ended",
            ("outcome",),
            registry=registry,
        )
        self.ejections = Counter(
            "fleetpulse_proxy_ejections_total", "Workers taken off the route for their failures", registry=registry
        )
        self.tokens = Counter(
            "fleetpulse_proxy_tokens_total",
            "Tokens, as far as they are known",
            ("model", "direction"),
            registry=registry,
        )
        self.in_flight = Gauge("fleetpulse_proxy_requests_in_flight", "Requests under way", registry=registry)
        self.malformed = Counter(
            "fleetpulse_proxy_malformed_requests_total",
            "Requests refused because they are not HTTP as it should be; they are not in the log",
            registry=registry,
        )
        self.refused_messages = Counter(
            "fleetpulse_proxy_messages_refused_total",
            "Messages of the stream that could not be read, by reason",
            ("reason",),
            registry=registry,
        )
        self.duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Time from the request to the end of its answer",
            _LABELS,
            buckets=DURATION_BOUNDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Time from the request to the first event of a stream that ended well",
            _LABELS,
            buckets=FIRST_TOKEN_BOUNDS,
            registry=registry,
        )
        self.per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time for each token after the first, of a stream that ended well",
            _LABELS,
            buckets=PER_TOKEN_BOUNDS,
            registry=registry,
        )
        self._series: dict[tuple[str, str], ModelSeries] = {}
        self._ends: dict[tuple[str, str, int], int] = defaultdict(int)
        self._attempts: dict[str, int] = defaultdict(int)
        self._answers: list[tuple[str, str, Attempt, float]] = []

    def ended(self, model: str, outcome: str, status: int) -> None:
        """A request is over."""
        self._ends[model, outcome, status] += 1

    def attempted(self, outcome: str) -> None:
        """An attempt is over."""
        self._attempts[outcome] += 1

    def answered(self, path: str, model: str, attempt: Attempt, seconds: float) -> None:
        """An answer has ended; of those that broke off only the duration is known."""
        self._answers.append((path, model, attempt, seconds))
        if len(self._answers) >= ANSWERS_MOST:
            self.settle()

    def settle(self) -> None:
        """Add what was kept."""
        ends, self._ends = self._ends, defaultdict(int)
        for (model, outcome, status), count in ends.items():
            self.requests.labels(model, outcome, str(status)).inc(count)
        attempts, self._attempts = self._attempts, defaultdict(int)
        for outcome, count in attempts.items():
            self.attempts.labels(outcome).inc(count)
        answers, self._answers = self._answers, []
        for answer in answers:
            self._settle(*answer)

    def _settle(self, path: str, model: str, attempt: Attempt, seconds: float) -> None:
        series = self._series.get((path, model))
        if series is None:
            series = self._series[path, model] = ModelSeries(self, path, model)
        series.duration.observe(seconds)
        usage = attempt.usage
        if usage is not None:
            series.prompt_tokens.inc(usage.read)
            series.made_tokens.inc(usage.made)
        first = attempt.first_seconds
        if first is None or attempt.ending.outcome != "relayed":
            return
        series.first_token.observe(first)
        made = usage.made if usage is not None else attempt.events
        if made > 1:
            series.per_token.observe((attempt.duration_seconds - first) / (made - 1))


class StateCollector(Collector):
    """Fleet, stream and access as they are at the moment of the scrape."""

    def __init__(self, fleet: Fleet, reader: StreamReader, access: Access, pool: Pool) -> None:
        self._fleet = fleet
        self._reader = reader
        self._access = access
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client with every scrape."""
        now = clock()
        workers = list(self._fleet.workers())
        ready = [worker for worker in workers if worker.is_ready]
        counts: dict[str, Callable[[], int]] = {
            "known": lambda: len(workers),
            "ready": lambda: len(ready),
            "serving": lambda: sum(worker.is_serving and worker.is_progressing for worker in ready),
            "fresh": lambda: sum(self._fleet.is_fresh(worker) for worker in ready),
            "ejected": lambda: sum(worker.ejection.is_out(now) for worker in ready),
        }
        family = GaugeMetricFamily("fleetpulse_proxy_workers", "Workers by what is true of them", labels=("are",))
        for name, count in counts.items():
            family.add_metric((name,), count())
        yield family
        yield self._model_workers(now)
        yield GaugeMetricFamily(
            "fleetpulse_proxy_engine_requests_waiting",
            "Requests waiting in the engines of ready workers, by their newest heartbeats",
            value=sum(worker.waiting for worker in ready),
        )
        yield GaugeMetricFamily(
            "fleetpulse_proxy_engine_connections_idle", "Connections to engines kept open", value=len(self._pool)
        )
        yield GaugeMetricFamily(
            "fleetpulse_proxy_stream_connected",
            "1 while the stream is followed",
            value=float(self._reader.connected),
        )
        yield GaugeMetricFamily(
            "fleetpulse_proxy_access_current",
            "1 while keys and models are as the database has them",
            value=float(self._access.failing is None),
        )
        age = GaugeMetricFamily(
            "fleetpulse_proxy_access_age_seconds", "Time since keys and models were read", labels=()
        )
        if self._access.read_at is not None:
            age.add_metric((), now - self._access.read_at)
        yield age

    def _model_workers(self, now: float) -> Metric:
        """Of active models alone: their names are the database's, and those in heartbeats anybody's."""
        family = GaugeMetricFamily(
            "fleetpulse_proxy_model_workers", "Workers that take requests for a model", labels=("model",)
        )
        for model in {one.model_id: one for one in self._access.snapshot.models.values() if one.active}.values():
            _, workers = self._fleet.serving(model.names)
            able = sum(_takes_requests(self._fleet, worker, now) for worker in workers)
            family.add_metric((model.hugging_face_id,), able)
        return family


def _takes_requests(fleet: Fleet, worker: Worker, now: float) -> bool:
    well = worker.is_serving and worker.is_progressing and fleet.is_fresh(worker)
    return well and not worker.ejection.is_out(now)
