"""The description of the agent's HTTP API, in OpenAPI 3.1, made of the types that it takes and gives."""

from __future__ import annotations

from typing import Any

import msgspec

from scitags_core import __version__
from scitags_core.flow_json import FlowEventJson

_JSON = "application/json"


class Taken(msgspec.Struct):
    """How many events were accepted, and why each of the others was not."""

    accepted: int
    refused: list[str]


class Mark(msgspec.Struct):
    """How a backend marks a transfer's packets, and why there is no better way."""

    by: str
    why: str


class Transfer(msgspec.Struct):
    """A transfer under way; its marks by the names of backends.

    namespace is the network namespace where it is not the agent's own.
    """

    protocol: str
    src: str
    src_port: int
    dst: str
    dst_port: int
    experiment: int
    activity: int
    start_time: str
    id: str
    application: str
    transfers_on_connection: int
    marks: dict[str, Mark]
    namespace: str | msgspec.UnsetType = msgspec.UNSET


class Table(msgspec.Struct):
    """A part of the table of flows, and how many transfers there are in all."""

    total: int
    flows: list[Transfer]


class Problem(msgspec.Struct):
    """What went wrong (RFC 9457)."""

    status: int
    detail: str


def document() -> dict[str, Any]:
    """The OpenAPI document, ready for JSON."""
    types = (FlowEventJson, Taken, Table, Problem)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    event, taken, table, problem = schemas
    whole = components["FlowEventJson"]
    components["FlowEnd"] = {**whole, "required": [name for name in whole["required"] if name != "state"]}
    end = {"$ref": "#/components/schemas/FlowEnd"}
    anything = {"type": "object"}
    paths: dict[str, Any] = {
        "/v1/flows": {
            "get": _operation(
                "The table of flows, in parts",
                {"200": table, "400": problem},
                parameters=[
                    {"name": "from", "in": "query", "schema": {"type": "integer", "minimum": 0}},
                    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 1000}},
                ],
            ),
            "post": _operation(
                "Tell of flows; answered when they are marked",
                {"200": taken, "400": taken},
                requestBody=_one_or_many(event),
            ),
            "delete": _operation(
                "Tell that transfers have ended; state is not needed",
                {"200": taken, "400": taken},
                requestBody=_one_or_many(end),
            ),
        },
        "/v1/status": {"get": _operation("All that the agent counts", {"200": anything})},
        "/v1/health": {"get": _operation("Whether the agent lives", {"200": anything})},
        "/v1/ready": {"get": _operation("Whether a backend works", {"200": anything, "503": anything})},
        "/v1/version": {"get": _operation("The agent's version", {"200": anything})},
        "/v1/reload": {"post": _operation("Read the configuration again", {"200": anything, "409": problem})},
        "/flow": {
            "post": _operation(
                "One flow event as flowd-go has it",
                {"200": taken, "400": problem},
                requestBody={"required": True, "content": {_JSON: {"schema": anything}}},
            )
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "scitags-agent", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _one_or_many(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {_JSON: {"schema": {"anyOf": [schema, {"type": "array", "items": schema}]}}}}


def _operation(summary: str, answers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {
            status: {"description": summary, "content": {_JSON: {"schema": schema}}}
            for status, schema in answers.items()
        },
        **more,
    }
