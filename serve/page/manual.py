"""The API's documentation at `/docs`: the OpenAPI description as one HTML page, without scripts and without the network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Node = Mapping[str, Any]
HEAD = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>Recollect: API</title>
  <link rel="icon" href="page/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="page/page.css">
  <link rel="stylesheet" href="page/manual.css">
</head>
<body>
<main class="manual">
"""


def render(document: Node) -> str:
    """The page of an OpenAPI document."""
    parts = [HEAD, "<h1>API</h1>", _prose(document["info"].get("description", ""))]
    parts.append('<p>For programs: <a href="openapi.json">openapi.json</a>. The <a href="./">page</a> for people.</p>')
    calls = [(path, method, call) for path, methods in document["paths"].items() for method, call in methods.items()]
    parts.append("<nav aria-label='Calls'><ul>")
    parts += [
        f'<li><a href="#{_anchor(path, method)}">{_name(path, method)}</a> {_text(call)}</li>' for path, method, call in calls
    ]
    parts.append("</ul></nav>")
    for path, method, call in calls:
        parts += _call(path, method, call)
    parts.append("<h2>Schemas</h2>")
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        parts += [f'<section id="schema-{escape(name)}"><h3>{escape(name)}</h3>', _prose(schema.get("description", ""))]
        parts += [_fields(schema), "</section>"]
    return "\n".join([*parts, "</main>", "</body>", "</html>", ""])


def _call(path: str, method: str, call: Node) -> Iterator[str]:
    yield f'<section id="{_anchor(path, method)}"><h2>{_name(path, method)}</h2>'
    yield f"<p><strong>{_text(call)}</strong></p>" + _prose(call.get("description", ""))
    if call.get("parameters"):
        rows = {one["name"]: {**one.get("schema", {}), **one} for one in call["parameters"]}
        yield "<h3>Parameters</h3>" + _table(rows, {name for name, one in rows.items() if one.get("required")})
    for kind, content in call.get("requestBody", {}).get("content", {}).items():
        yield f"<h3>As <code>{escape(kind)}</code></h3>" + _fields(content["schema"])
        for title, example in content.get("examples", {}).items():
            shown = escape(json.dumps(example["value"], indent=2))
            yield f"<details><summary>Example: {escape(title)}</summary><pre>{shown}</pre></details>"
    yield "<h3>Answers</h3><dl>"
    for status, answer in call["responses"].items():
        kinds = ", ".join(
            f"<code>{escape(kind)}</code> {_type(one['schema'])}" for kind, one in answer.get("content", {}).items()
        )
        yield f"<dt>{escape(str(status))}</dt><dd>{escape(answer['description'])}{': ' + kinds if kinds else ''}</dd>"
    yield "</dl></section>"


def _fields(schema: Node) -> str:
    return _table(schema.get("properties", {}), set(schema.get("required", ()))) if schema.get("properties") else _type(schema)


def _table(fields: Node, required: set[str]) -> str:
    rows = "".join(
        f"<tr><th scope='row'><code>{escape(name)}</code>{' *' if name in required else ''}</th>"
        f"<td>{_type(one)}{_default(one)}</td><td>{_text(one, 'description')}</td></tr>"
        for name, one in fields.items()
    )
    return f"<table><thead><tr><th>field (* must be there)</th><th>what</th><th></th></tr></thead><tbody>{rows}</tbody></table>"


def _type(schema: Node) -> str:
    """What a value is, in a few words; schemas with a name are links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(map(_type, schema[several])))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"<code>{escape(json.dumps(one))}</code>" for one in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"name &rarr; {_type(schema['additionalProperties'])}"
    return "file" if schema.get("format") == "binary" else escape(str(kind))


def _default(schema: Node) -> str:
    default = schema.get("default", schema.get("schema", {}).get("default"))
    return f", else <code>{escape(json.dumps(default))}</code>" if default not in (None, "", {}, []) else ""


def _text(node: Node, key: str = "summary") -> str:
    return _marked(str(node.get(key, "")))


def _prose(text: str) -> str:
    return "".join(f"<p>{_marked(part)}</p>" for part in text.split("\n\n") if part.strip())


def _marked(text: str) -> str:
    """Text whose words in backticks are code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _name(path: str, method: str) -> str:
    return f"<code>{method.upper()} {escape(path)}</code>"


def _anchor(path: str, method: str) -> str:
    return escape(f"{method}{path}".replace("/", "-"))
