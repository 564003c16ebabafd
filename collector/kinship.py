"""Senders alike: a new sender's message that differs from a known one's only in names is not walked.

A fleet's machines are built alike, so their messages have the same shape and length and differ in what tells the
machines apart: the resource, and the ids of GPUs. Both are length-delimited on the wire. Where all other bytes agree,
tags and lengths among them, the new message means the same with other names, and its template is the known one's
under those names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from collector.template import Cells, Plan, Template, Words
from collector.walk import TEXT_LIMIT, Point, Worker, text_attributes, worker_of
from fleetpulse.stream.dictionary import GPU, TABLES

GPU_ID: Final = "hw.id"
_GPU_TABLE: Final = TABLES.index(GPU)


@dataclass(frozen=True, slots=True)
class Kin:
    """A template, and where its message has names."""

    template: Template
    resource: slice
    gpu_ids: Mapping[str, tuple[slice, ...]]
    shared: Words  # the message without values and names
    mask: Words  # ones at bytes that relatives have in common

    @classmethod
    def of(cls, message: bytes, resource: slice, template: Template) -> Self | None:
        """The kin of a message's template; None when a GPU's rows are not named by its id."""
        names = {row.key.row for cells in template.plan.tables if cells.table == _GPU_TABLE for row in cells.rows}
        gpu_ids = {name: _places(message, name) for name in names}
        if not all(gpu_ids.values()):
            return None
        mask = template.mask.view(np.uint8).copy()
        for place in (resource, *(each for places in gpu_ids.values() for each in places)):
            mask[place] = 0
        words = mask.view("<u8")
        return cls(template, resource, gpu_ids, template.constant & words, words)

    def adopt(self, message: bytes) -> Template | None:
        """The template of a relative's message of the same length; None when it is none."""
        words = np.frombuffer(message + self.template.filling, dtype="<u8")
        if not np.array_equal(words & self.mask, self.shared):
            return None
        worker = _worker(message[self.resource])
        names = self._new_names(message)
        if worker is None or names is None:
            return None
        return replace(
            self.template, plan=_renamed(self.template.plan, worker, names), constant=words & self.template.mask
        )

    def _new_names(self, message: bytes) -> dict[str, str] | None:
        """Each GPU's new id by the old one; None unless they are as many, and each the same throughout."""
        found = {}
        for name, places in self.gpu_ids.items():
            texts = {message[place] for place in places}
            text = texts.pop()
            if texts or not text.isascii() or not text.decode().isprintable():
                return None
            found[name] = text.decode()
        return found if len(set(found.values())) == len(found) else None


def _places(message: bytes, gpu_id: str) -> tuple[slice, ...]:
    """Where the message has a GPU's id as the value of its attribute."""
    if len(gpu_id) >= TEXT_LIMIT:
        return ()
    attribute = KeyValue(key=GPU_ID, value=AnyValue(string_value=gpu_id)).SerializeToString()
    places = []
    start = message.find(attribute)
    while start >= 0:
        end = start + len(attribute)
        places.append(slice(end - len(gpu_id.encode()), end))
        start = message.find(attribute, end)
    return tuple(places)


def _worker(resource: bytes) -> Worker | None:
    parsed = Resource()
    try:
        parsed.ParseFromString(resource)
    except DecodeError:
        return None
    return worker_of(text_attributes(parsed.attributes))


def _renamed(plan: Plan, worker: Worker, names: Mapping[str, str]) -> Plan:
    return replace(
        plan,
        worker=worker,
        tables=tuple(_renamed_rows(cells, names) if cells.table == _GPU_TABLE else cells for cells in plan.tables),
        points=tuple(_renamed_point(point, names) for point in plan.points),
        gpus={names[gpu_id]: gpu for gpu_id, gpu in plan.gpus.items()},
        references=None,
    )


def _renamed_rows(cells: Cells, names: Mapping[str, str]) -> Cells:
    return replace(cells, rows=tuple(replace(row, key=row.key._replace(row=names[row.key.row])) for row in cells.rows))


def _renamed_point(point: Point, names: Mapping[str, str]) -> Point:
    if GPU_ID not in point.series.attributes:
        return point
    attributes = json.loads(point.series.attributes)
    renamed = attributes | {GPU_ID: names.get(attributes.get(GPU_ID), attributes.get(GPU_ID))}
    if GPU_ID not in attributes or renamed == attributes:
        return point
    return Point(point.series._replace(attributes=json.dumps(renamed, sort_keys=True)), point.time, point.scalar)
