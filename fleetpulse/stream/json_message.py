"""Reading and writing the stream's JSON messages, each of which says its schema version."""

from typing import Final, Generic, Protocol, TypeVar

import msgspec

from fleetpulse.stream.errors import MessageError, UnknownSchemaVersionError

MAX_BYTES: Final = 65_536


class _Versioned(Protocol):
    @property
    def schema_version(self) -> int: ...


Message = TypeVar("Message", bound=_Versioned)


class _Version(msgspec.Struct):
    schema_version: int


_version_decoder = msgspec.json.Decoder(_Version)
_encoder = msgspec.json.Encoder()


class JsonFormat(Generic[Message]):
    """One kind of message: its type, the one schema version known here, and the error for what is none."""

    def __init__(self, kind: type[Message], schema_version: int, malformed: type[MessageError]) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._schema_version = schema_version
        self._malformed = malformed

    def encode(self, message: Message) -> bytes:
        """The message's bytes."""
        return _encoder.encode(message)

    def decode(self, data: bytes) -> Message:
        """Read a message; unknown fields are ignored, so that newer writers can talk to older readers.

        Raises UnknownSchemaVersionError for a version this code does not know, and the kind's own error (naming the
        field) for anything else that is not such a message.
        """
        if len(data) > MAX_BYTES:
            raise self._malformed(f"{len(data)} bytes, more than the {MAX_BYTES} allowed")
        try:
            message = self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._refuse_unknown_version(data)
            raise self._malformed(str(error)) from error
        if message.schema_version != self._schema_version:
            raise self._unknown(message.schema_version)
        return message

    def _refuse_unknown_version(self, data: bytes) -> None:
        """A message of another version may differ in any field: say that first."""
        try:
            version = _version_decoder.decode(data).schema_version
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if version != self._schema_version:
            raise self._unknown(version)

    def _unknown(self, version: int) -> UnknownSchemaVersionError:
        return UnknownSchemaVersionError(f"schema_version {version}, known: {self._schema_version}")
