"""What a handler gets: who asks, what for, and what there is to answer from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from aiohttp import web
from psycopg import AsyncConnection
from pydantic import BaseModel

from control.access.admission import Admission
from control.access.attempts import Attempts
from control.access.principal import Principal
from control.api.event_log import EventLog
from control.database import Database, Row
from control.directory import Directory
from fleetpulse.settings import ControlSettings, DatabaseSettings, JobSettings, load
from fleetpulse.stream.consumer import StreamReader
from fleetpulse.stream.fleet_view import FleetView

QueryModel = TypeVar("QueryModel", bound=BaseModel)
BodyModel = TypeVar("BodyModel", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the endpoints answer from."""

    settings: ControlSettings
    retention: DatabaseSettings
    database: Database
    directory: Directory
    view: FleetView
    reader: StreamReader
    admission: Admission
    attempts: Attempts
    events: EventLog
    jobs: JobSettings = field(default_factory=partial(load, JobSettings))


@dataclass(frozen=True, slots=True)
class Call(Generic[QueryModel, BodyModel]):
    """One request, checked."""

    request: web.Request
    parts: Parts
    path: Mapping[str, Any]
    query: QueryModel
    body: BodyModel
    principal: Principal | None
    transaction: AsyncConnection[Row] | None

    @property
    def connection(self) -> AsyncConnection[Row]:
        """The transaction of a request that changes something."""
        assert self.transaction is not None, "only requests that change something have a transaction"
        return self.transaction

    @property
    def caller(self) -> Principal:
        """Who asks, at an endpoint that needs a credential."""
        assert self.principal is not None, "this endpoint is open"
        return self.principal
