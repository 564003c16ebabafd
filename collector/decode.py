"""Messages of the metrics topic to columns."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from collector import otlp, otlp_json
from collector.kinship import Kin
from collector.template import Decoded, Plan, Template, decoded, make_template
from collector.walk import walk
from fleetpulse.stream.errors import MalformedMetricsError

# A sender's shapes: its regular message, the first of a boot, one with an optional part.
TEMPLATES_PER_SENDER: Final = 4
# A sender whose messages never repeat a shape is walked without further attempts.
FRUITLESS_ATTEMPTS: Final = 8

# Kinds of machine, and for each the shapes of its messages, whose templates serve new senders.
MOST_KINDS: Final = 1_000
KIN_PER_KIND: Final = 4

# Messages of one sender read at once, which bounds the memory they take.
TOGETHER: Final = 128

# In protobuf this byte would begin a group of field 15, which there is not.
JSON_BEGINS: Final = b"{"
# The most a stock collector puts into a message. Larger ones would hold up the round for longer than a lease.
JSON_BYTES: Final = 1_000_000

_FIRST_FIELD_TAG: Final = 0x0A  # field 1, length-delimited: a resource in the request, and in it what describes it
# These bytes hold the lengths of both, whatever the message's size.
_LENGTHS: Final = 12
_MOST_LENGTHS: Final = 100_000


@dataclass(slots=True)
class _Sender:
    """Templates of messages with the same resource bytes and length."""

    templates: list[Template] = field(default_factory=list)
    attempts: int = 0


@dataclass(slots=True)
class Contents:
    """What a round of messages held. Messages go by their number in the round."""

    resources: list[Decoded] = field(default_factory=list)
    problems: dict[int, MalformedMetricsError] = field(default_factory=dict)
    unidentified: Counter[int] = field(default_factory=Counter)
    """How many of a message's resources do not say whose they are."""


SenderKey = tuple[int, bytes]
"""A message's length, and its bytes up to the end of what describes the resource."""

Chunk = tuple[int, bytes]
"""A message's number and a request of one resource: the message itself, or a part of it."""


class Decoder:
    """Decodes OTLP messages; remembers the shapes of at most ``most_senders`` senders, least recently used first out.

    A sender's memory is roughly twice the size of its message.
    """

    def __init__(self, most_senders: int = 20_000) -> None:
        self._most_senders = most_senders
        self._senders: OrderedDict[SenderKey, _Sender] = OrderedDict()
        self._resource_ends: dict[bytes, int] = {}
        # By the lengths of message and resource: senders of one kind differ in names alone.
        self._kin: dict[tuple[int, int], list[Kin]] = {}
        self.recognised = 0
        self.walked = 0

    def decode(self, messages: Sequence[bytes]) -> Contents:
        """Decode a round of messages, those of one sender together."""
        contents = Contents()
        parts: list[Chunk] = list(enumerate(messages))
        while parts:
            # What holds more than one resource comes back in parts, each of which is a message of one.
            parts = [part for key, group in self._by_sender(parts) for part in self._decode_group(key, group, contents)]
        return contents

    def _by_sender(self, parts: list[Chunk]) -> Iterable[tuple[SenderKey, list[Chunk]]]:
        """Messages of the same length and the same resource bytes, a few at a time."""
        groups: dict[SenderKey, list[Chunk]] = {}
        ends = self._resource_ends
        for part in parts:
            message = part[1]
            end = ends.get(message[:_LENGTHS])
            if end is None:
                end = self._remember_end(message)
            key = (len(message), message[:end])
            group = groups.get(key)
            if group is None:
                group = groups[key] = []
            group.append(part)
        for key, group in groups.items():
            for start in range(0, len(group), TOGETHER):
                yield key, group[start : start + TOGETHER]

    def _remember_end(self, message: bytes) -> int:
        if len(self._resource_ends) >= _MOST_LENGTHS:
            self._resource_ends.clear()
        end = self._resource_ends[message[:_LENGTHS]] = _resource_end(message)
        return end

    def _decode_group(self, key: SenderKey, group: list[Chunk], contents: Contents) -> list[Chunk]:
        """Returns the parts of those that hold more than one resource."""
        sender = self._senders.get(key)
        if sender is not None:
            self._senders.move_to_end(key)
            for template in sender.templates:
                group = self._recognise(template, group, contents)
        parts: list[Chunk] = []
        while group:
            adopted = self._adopt(key, group[0][1])
            if adopted is not None:
                group = self._recognise(adopted, group, contents)
                if not group:
                    break
            (number, message), *group = group
            try:
                resources = _resources(message)
            except MalformedMetricsError as error:
                contents.problems[number] = error
                continue
            if resources != [message]:
                parts += [(number, resource) for resource in resources]
                continue
            template_made = self._walk((number, message), key, contents)
            if template_made is not None:
                group = self._recognise(template_made, group, contents)
        return parts

    def _adopt(self, key: SenderKey, message: bytes) -> Template | None:
        """The template of a sender not heard before that is built like another one."""
        if key in self._senders:
            return None
        length, resource = key
        for kin in self._kin.get((length, len(resource)), ()):
            template = kin.adopt(message)
            if template is not None:
                self._add_sender(key).templates.append(template)
                return template
        return None

    def _add_sender(self, key: SenderKey) -> _Sender:
        sender = self._senders[key] = _Sender()
        if len(self._senders) > self._most_senders:
            self._senders.popitem(last=False)
        return sender

    def _recognise(self, template: Template, group: list[Chunk], contents: Contents) -> list[Chunk]:
        """Read what is of the template's shape; returns the rest."""
        if not group:
            return group
        matches, scalars, times = template.read([chunk for _, chunk in group])
        if matches.all():
            contents.resources.append(Decoded(template.plan, [number for number, _ in group], scalars, times, []))
            self.recognised += len(group)
            return []
        found = np.flatnonzero(matches)
        if len(found):
            numbers = [group[each][0] for each in found]
            contents.resources.append(Decoded(template.plan, numbers, scalars[found], times[found], []))
            self.recognised += len(found)
        return [chunk for chunk, match in zip(group, matches, strict=True) if not match]

    def _walk(self, numbered: Chunk, key: SenderKey, contents: Contents) -> Template | None:
        """Read a resource point by point; returns its template when one was made of it."""
        number, chunk = numbered
        self.walked += 1
        try:
            parsed, mended = otlp.parse(chunk)
            sketch = walk(parsed.resource_metrics[0])
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # No message of a stranger may stop the pipeline, not even one that we failed to imagine.
            contents.problems[number] = MalformedMetricsError(f"cannot be read: {error}")
            return None
        if sketch.worker is None:
            contents.unidentified[number] += 1
            return None
        if mended:
            sketch.refuse("not_utf8")
        plan = Plan.of(sketch)
        contents.resources.append(decoded(sketch, plan, number))
        sender = self._senders.get(key)
        if sender is None:
            sender = self._add_sender(key)
            if plan.sequence is None:
                return None  # not one of our agents, of whom more is to come: worth a template once it comes again
        if sender.attempts >= FRUITLESS_ATTEMPTS:
            return None
        sender.attempts += 1
        template = make_template(chunk, parsed, sketch, plan)
        if template is not None:
            sender.templates = [template, *sender.templates][:TEMPLATES_PER_SENDER]
            self._remember_kin(key, chunk, template)
        return template

    def _remember_kin(self, key: SenderKey, message: bytes, template: Template) -> None:
        length, resource = key
        kin = Kin.of(message, _resource_place(resource), template) if resource else None
        if kin is None:
            return
        if len(self._kin) >= MOST_KINDS:
            self._kin.clear()
        known = self._kin.get((length, len(resource)), [])
        self._kin[length, len(resource)] = [kin, *known][:KIN_PER_KIND]


def _from_json(message: bytes) -> bytes:
    if len(message) > JSON_BYTES:
        raise MalformedMetricsError(f"JSON of {len(message)} bytes, more than {JSON_BYTES}: send otlp_proto")
    return otlp_json.parse(message).SerializeToString()


def _resources(message: bytes) -> list[bytes]:
    """A request for each resource of the message: the message itself in the common case, told without parsing.

    What a stock collector writes with the encoding ``otlp_json`` comes out like any other.
    """
    if message and message[0] == _FIRST_FIELD_TAG:
        length, start = _varint(message, 1)
        if start and start + length == len(message):
            return [message]
    resources = otlp.resources(_from_json(message) if message[:1] == JSON_BEGINS else message)
    if not resources:
        raise MalformedMetricsError("no resource metrics in the message")
    return resources


def _resource_place(start_of_message: bytes) -> slice:
    """Where the description of the resource is, in a message cut off behind it."""
    _, position = _varint(start_of_message, 1)
    length, _ = _varint(start_of_message, position + 1)
    return slice(len(start_of_message) - length, len(start_of_message))


def _resource_end(message: bytes) -> int:
    """Where the description of the first resource ends; 0 where the message does not begin with one."""
    position = 0
    for _ in range(2):
        if position >= len(message) or message[position] != _FIRST_FIELD_TAG:
            return 0
        length, position = _varint(message, position + 1)
        if not position:
            return 0
    return position + length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A varint and the position after it; position 0 when it is cut off or too long."""
    value = shift = 0
    while position < len(data) and shift < 35:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    return 0, 0
