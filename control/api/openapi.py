"""The OpenAPI 3.1 document, made of the endpoints and of the models that check requests and make answers."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

import fleetpulse
from control.api.authentication import COOKIE
from control.api.endpoint import JSON, Endpoint
from control.api.problems import CONTENT_TYPE, Problem
from control.api.validation import PATH_TYPES

Document = dict[str, Any]
_REFERENCE: Final = "#/components/schemas/"
EVENT_STREAM: Final = "text/event-stream"
# Refused by the server before the service sees it.
NOT_HTTP: Final = {
    "description": "The request is not proper HTTP, or a line of its head is longer than 8,190 bytes",
    "content": {"text/plain": {"schema": {"type": "string"}}},
}
_VARIABLE: Final = re.compile(r"\{(\w+)\}")
_MEANINGS: Final[Mapping[int, str]] = {
    401: "The credential is missing or wrong",
    403: "The scope is too weak, or another site's page asked with a session's cookie",
    404: "There is no such thing, or it is another organisation's",
    409: "It contradicts what is there",
    413: "The body is too large",
    415: "The body is not JSON, or compressed",
    422: "A field is wrong; errors names each one",
    500: "A fault of ours; the log has it under the correlation id",
    503: "The database is away, or the request takes too long; try again after Retry-After seconds",
}
_DESCRIPTION: Final = (
    "Keys go into Authorization: Bearer; people log in at POST /sessions and have a cookie. Lists are answered in "
    "parts: pass next_cursor as cursor. Errors are problems (RFC 9457). A POST that creates something may be sent "
    "again with the same Idempotency-Key and then has the first answer."
)


def document(endpoints: Sequence[Endpoint]) -> Document:
    """The whole document."""
    paths: Document = {}
    schemas = _schemas(endpoints)
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "fleetpulse control", "version": fleetpulse.__version__, "description": _DESCRIPTION},
        "tags": [{"name": tag} for tag in dict.fromkeys(endpoint.tag for endpoint in endpoints)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, or the admin key"},
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "Set by POST /sessions"},
            },
        },
    }


def _schemas(endpoints: Sequence[Endpoint]) -> Document:
    """Every structure that bodies and answers are made of, by name."""
    bodies = dict.fromkeys(endpoint.body for endpoint in endpoints if endpoint.has_body)
    _, asked = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFERENCE + "{model}")
    answers = dict.fromkeys(one for endpoint in endpoints for one in _structures(endpoint))
    _, answered = msgspec.json.schema_components([*answers, Problem], ref_template=_REFERENCE + "{name}")
    return dict(sorted({**asked.get("$defs", {}), **answered}.items()))


def _structures(endpoint: Endpoint) -> list[type]:
    """Types of its answers, where those are not schemas already."""
    answers = [endpoint.answer_type, *endpoint.other_answers.values()]
    return [one for one in answers if isinstance(one, type) and one is not str]


def _operation(endpoint: Endpoint, schemas: Document) -> Document:
    operation: Document = {
        "operationId": _identity(endpoint),
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "parameters": [*_path_parameters(endpoint), *_query_parameters(endpoint.query), *_headers(endpoint)],
        "responses": _responses(endpoint),
        "security": [] if endpoint.scope is None else [{"key": []}, {"session": []}],
    }
    rights = _rights(endpoint)
    if rights:
        operation["description"] = rights
    if endpoint.has_body:
        assert endpoint.body.__name__ in schemas
        schema = {"$ref": _REFERENCE + endpoint.body.__name__}
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return operation


def _identity(endpoint: Endpoint) -> str:
    words = re.findall(r"\w+", endpoint.path.replace("-", "_"))
    return "_".join([endpoint.method.lower(), *words])


def _rights(endpoint: Endpoint) -> str:
    if endpoint.scope is None:
        return "Open to all."
    text = "Any key or session." if endpoint.scope == "any" else f"Scope {endpoint.scope}."
    return f"{text} Operators only." if endpoint.operators else text


def _path_parameters(endpoint: Endpoint) -> list[Document]:
    return [
        {"name": name, "in": "path", "required": True, "schema": PATH_TYPES[name].json_schema()}
        for name in _VARIABLE.findall(endpoint.path)
    ]


def _query_parameters(model: type[BaseModel]) -> list[Document]:
    schema = TypeAdapter(model).json_schema()
    parameters = []
    for name, field in schema.get("properties", {}).items():
        # A parameter that is not given is null for the model; it cannot be given as null.
        choices = [choice for choice in field.pop("anyOf", []) if choice != {"type": "null"}]
        description = field.pop("description", "")
        shown = {key: value for key, value in field.items() if key != "title" and value is not None}
        shown |= choices[0] if choices else {}
        parameters.append({"name": name, "in": "query", "description": description, "schema": shown})
    return parameters


def _headers(endpoint: Endpoint) -> list[Document]:
    if EVENT_STREAM in endpoint.contents:
        text = "Go on after this event; it is the id of the last one that was received"
        return [_header("Last-Event-ID", text, {"type": "string", "maxLength": 200})]
    if not endpoint.creates:
        return []
    text = "Sent again with the same key, a request does nothing and has the first answer"
    return [_header("Idempotency-Key", text, {"type": "string", "pattern": "^[\\x21-\\x7e]{1,200}$"})]


def _header(name: str, description: str, schema: Document) -> Document:
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _responses(endpoint: Endpoint) -> Document:
    status = 204 if endpoint.answer_type is None else endpoint.status
    good = {status: endpoint.answer_type, **endpoint.other_answers}
    return {
        **{str(code): _good(code, answer, endpoint.contents) for code, answer in good.items()},
        "400": NOT_HTTP,
        **{str(code): _problem(meaning) for code, meaning in sorted(refusals(endpoint).items()) if code not in good},
    }


def _good(status: int, answer: Any, contents: Sequence[str]) -> Document:
    described: Document = {"description": HTTPStatus(status).phrase}
    if answer is not None:
        described["content"] = {content: {"schema": _answer_schema(answer)} for content in contents}
    return described


def _answer_schema(answer: Any) -> Document:
    if isinstance(answer, Mapping):
        return dict(answer)
    return {"type": "string"} if answer is str else {"$ref": _REFERENCE + answer.__name__}


def refusals(endpoint: Endpoint) -> dict[int, str]:
    """Every status of an endpoint that is a problem, and when it comes."""
    codes = {500}
    if endpoint.handler is not None:
        codes.add(422)
    if endpoint.scope is not None:
        codes |= {401, 403, 503}
    if _VARIABLE.search(endpoint.path):
        codes.add(404)
    if endpoint.has_body:
        codes |= {413, 415, 503}
    if endpoint.creates or endpoint.conflict:
        codes.add(409)
    return {code: _MEANINGS[code] for code in codes} | dict(endpoint.refusals)


def _problem(meaning: str) -> Document:
    return {"description": meaning, "content": {CONTENT_TYPE: {"schema": {"$ref": f"{_REFERENCE}Problem"}}}}
