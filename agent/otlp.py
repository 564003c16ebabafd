"""Samples to any OTLP/HTTP endpoint as well, by OpenTelemetry's own exporter."""

import asyncio
import logging
from typing import Final

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData

from agent.blocking import BlockingThread, StillBusyError
from agent.signals import Signals
from fleetpulse.telemetry import logger

_log = logger(__name__)

TIMEOUT_SECONDS: Final = 10.0


class OtlpExport:
    """Sends the newest sample. A slow endpoint costs samples, which are counted, and never the agent's time."""

    def __init__(self, endpoint: str, signals: Signals) -> None:
        self._exporter = _exporter(endpoint)
        self._endpoint = endpoint
        self._signals = signals
        self._newest: MetricsData | None = None
        self._news = asyncio.Event()
        self._thread = BlockingThread("agent-otlp")
        self._failing = False

    def submit(self, message: MetricsData) -> None:
        """Take a sample; one that has not been sent yet is given up for it."""
        if self._newest is not None:
            self._signals.otlp_failures.inc()
        self._newest = message
        self._news.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            message, self._newest = self._newest, None
            if message is not None:
                await self._export(message)

    async def stop(self) -> None:
        """Give up what is being sent and let the thread end."""
        self._exporter.shutdown()
        await self._thread.stop(0.5)

    async def _export(self, message: MetricsData) -> None:
        try:
            result = await self._thread.call(lambda: self._exporter.export(message), TIMEOUT_SECONDS)
        except (StillBusyError, TimeoutError, OSError) as error:
            self._failed(repr(error))
            return
        if result is MetricExportResult.SUCCESS:
            self._failing = False
        else:
            self._failed("refused or unreachable")

    def _failed(self, why: str) -> None:
        self._signals.otlp_failures.inc()
        if not self._failing:
            _log.warning("OTLP endpoint does not take samples", extra={"endpoint": self._endpoint, "error": why})
        self._failing = True


def _exporter(endpoint: str) -> MetricExporter:
    """Imported here, because it brings an HTTP client of its own, and few agents have such an endpoint."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    # It logs every attempt; an outage is told once, by us.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    return OTLPMetricExporter(endpoint=endpoint, timeout=TIMEOUT_SECONDS)
