"""What FastAPI cannot know of our requests and answers: one path takes two content types, and answers with two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from serve.answers import TranslateAnswer


def request_body(form: type[BaseModel], request: type[BaseModel], examples: Mapping[str, Any]) -> dict[str, Any]:
    """The body of an endpoint that takes a form or JSON, with examples of the latter."""
    documented = json_body(request, examples)
    documented["requestBody"]["content"]["multipart/form-data"] = {"schema": _inlined(form.model_json_schema())}
    return documented


def json_body(request: type[BaseModel], examples: Mapping[str, Any]) -> dict[str, Any]:
    """The body of an endpoint that reads its own JSON."""
    shown = {name: {"value": value} for name, value in examples.items()}
    content = {"application/json": {"schema": _inlined(request.model_json_schema()), "examples": shown}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without `$defs`: in OpenAPI, references start at the document's root, where they are not."""
    definitions = schema.pop("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolved(definitions[node["$ref"].rpartition("/")[2]])
            return {key: resolved(value) for key, value in node.items()}
        return [resolved(item) for item in node] if isinstance(node, list) else node

    result: dict[str, Any] = resolved(schema)
    return result


def picture_answer() -> dict[str, Any]:
    """The answer of /v1/translate."""
    text = {"schema": {"type": "string"}}
    headers = {
        "X-Recollect-Model": {**text, "description": "the model's name"},
        "X-Recollect-Digest": {**text, "description": "SHA-256 of the bundle that answered"},
        "X-Recollect-Seed": {**text, "description": "the seed of the style; absent for the deterministic translation"},
        "X-Recollect-Batch": {**text, "description": "how many pictures shared the forward, for those who tune the server"},
    }
    pictures = {f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in ("png", "jpeg", "webp")}
    description = "the translated picture; JSON if the request was JSON, or wants several samples or something beside the picture"
    return {"description": description, "headers": headers, "model": TranslateAnswer, "content": pictures}
