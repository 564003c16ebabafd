"""The page at ``/docs``: the OpenAPI document as HTML, without scripts and without anything from elsewhere."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any, Final

from control.api.openapi import Document

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .4rem 0; padding: .3rem .7rem; }
summary { cursor: pointer; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .6rem; overflow-x: auto; border-radius: .3rem; }
.method { display: inline-block; min-width: 4.2rem; font-weight: 700; }
table { border-collapse: collapse; width: 100%; }
td, th { border-top: 1px solid var(--line); text-align: left; padding: .2rem .6rem .2rem 0; vertical-align: top; }
"""


def page(document: Document) -> str:
    """The whole page."""
    information = document["info"]
    return "".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{escape(information['title'])}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(information['title'])} {escape(information['version'])}</h1>",
            f"<p>{escape(information['description'])}</p>",
            "<p>For programs: <a href='/openapi.json'><code>/openapi.json</code></a> (OpenAPI 3.1, with a key).</p>",
            *(_group(document, tag["name"]) for tag in document["tags"]),
            "<h2>Structures</h2>",
            *(_structure(name, schema) for name, schema in document["components"]["schemas"].items()),
            "</body></html>",
        ]
    )


def _group(document: Document, tag: str) -> str:
    operations = (
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if tag in operation["tags"]
    )
    return f"<h2>{escape(tag)}</h2>{''.join(operations)}"


def _operation(method: str, path: str, operation: Document) -> str:
    return (
        f"<details id='{escape(operation['operationId'])}'><summary><span class='method'>{method.upper()}</span>"
        f"<code>{escape(path)}</code> {escape(operation['summary'])}</summary>"
        f"<p>{escape(operation.get('description', ''))}</p>{_parameters(operation)}{_body(operation)}"
        f"{_responses(operation)}</details>"
    )


def _parameters(operation: Document) -> str:
    rows = [
        (f"{one['name']} ({one['in']})", one.get("description", ""), _brief(one["schema"]))
        for one in operation["parameters"]
    ]
    return _table(("parameter", "meaning", "type"), rows) if rows else ""


def _body(operation: Document) -> str:
    if "requestBody" not in operation:
        return ""
    (content,) = operation["requestBody"]["content"].values()
    return f"<p>Body: {_brief(content['schema'])}</p>"


def _responses(operation: Document) -> str:
    return _table(
        ("status", "meaning", "content"),
        [
            (status, answer["description"], ", ".join(_content(answer)))
            for status, answer in operation["responses"].items()
        ],
    )


def _content(answer: Document) -> Iterator[str]:
    for kind, content in answer.get("content", {}).items():
        yield f"{escape(kind)} {_brief(content['schema'])}"


def _brief(schema: Document) -> str:
    """A link to a structure, or the schema itself where it is short. This is HTML already."""
    reference = schema.get("$ref")
    if reference:
        name = escape(reference.rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    return f"<code>{escape(str(schema.get('type', '')))}</code>"


def _structure(name: str, schema: Document) -> str:
    text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
    return f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary><pre>{text}</pre></details>"


def _table(headings: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """The last column is HTML already."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row[:-1]) + f"<td>{row[-1]}</td></tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
