"""The routes: the page, what it reads, and what it asks for.

Live figures go out as server-sent events, the newest picture at most every `PACE_S`, and of it only
the parts that changed: a browser that is slow, or far away, gets fewer and is never behind.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from predump.dashboard.board import LiveBoard
from predump.dashboard.choices import hunks, policies
from predump.dashboard.control import Control, ControlError, text, texts
from predump.dashboard.feed import FeedState
from predump.dashboard.finished import Finished
from predump.dashboard.guard import Guard, Guarded

PACE_S = 0.2
ALIVE_S = 1.0
"""How soon a stream sees that the dashboard ends."""
COMMENT_S = 15.0
"""A stream in which nothing happens says so this often, so that nobody takes it for dead."""
MOST_STREAMS = 32
MOST_BODY = 64 * 1024

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@dataclass(slots=True)
class Dashboard:
    """What the routes look at. `control` is None where the page may only look."""

    board: LiveBoard
    feed: FeedState
    finished: Finished
    control: Control | None
    guard: Guard
    ending: Callable[[], bool] = lambda: False
    streams: int = 0

    def about(self) -> dict[str, Any]:
        """What the page needs to know once."""
        return {
            "control": self.control is not None,
            "scenarios": self.control.choices() if self.control is not None else [],
            "policies": policies(),
            "hunks": hunks(),
        }

    def overview(self) -> dict[str, str]:
        """How the feed stands and the migrations' rows, as JSON by what changes apart."""
        rows = [row | {"run": self.finished.key_of(row["id"])} for row in self.board.rows()]
        status = {
            "hosts": self.board.hosts(),
            "feed": self.feed.kind,
            "trouble": self.feed.line(),
            "malformed": self.board.board.malformed,
            "finished": self.finished.version,
        }
        told = {"status": _json(status), "order": _json([row["id"] for row in rows])}
        return told | {f"row {row['id']}": _json(row) for row in rows}


def application(dashboard: Dashboard) -> ASGIApp:
    """The dashboard as an ASGI application."""
    routes = [
        Route("/", _Page(dashboard, "index.html")),
        *(
            Route(f"/{file.name}", _Page(dashboard, file.name))
            for file in resources.files("predump.dashboard").joinpath("page").iterdir()
            if file.name != "index.html"
        ),
        Route("/api/about", _reading(dashboard, _about)),
        Route("/api/events", _reading(dashboard, _events)),
        Route("/api/runs", _reading(dashboard, _runs)),
        Route("/api/runs/{key}", _reading(dashboard, _run)),
        Route("/api/results/{key}.json", _reading(dashboard, _result)),
        Route("/api/start", _acting(dashboard, _start), methods=["POST"]),
        Route("/api/abort", _acting(dashboard, _abort), methods=["POST"]),
        Route("/api/policy", _acting(dashboard, _policy), methods=["POST"]),
    ]
    return Guarded(Starlette(routes=routes), dashboard.guard)


class _Page:
    """A file of the page, read once; the token is put into the HTML."""

    def __init__(self, dashboard: Dashboard, name: str) -> None:
        content = resources.files("predump.dashboard").joinpath("page", name).read_text("utf-8")
        self._content = content.replace("$token", escape(dashboard.guard.token))
        self._type = _TYPES[name.rpartition(".")[2]]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await Response(self._content, media_type=self._type)(scope, receive, send)


def _reading(dashboard: Dashboard, handler: Any) -> Any:
    async def answer(request: Request) -> Response:
        if not dashboard.guard.may_read(request.headers):
            return _refusal("not from the dashboard's own page", 403)
        made: Response = await handler(dashboard, request)
        return made

    return answer


def _acting(dashboard: Dashboard, handler: Any) -> Any:
    """A route that does something: only for our own page, and one line for what goes wrong."""

    async def answer(request: Request) -> Response:
        if not dashboard.guard.may_act(request.headers):
            return _refusal("not from the dashboard's own page: load it again", 403)
        if dashboard.control is None:
            return _refusal("this dashboard only looks on", 403)
        try:
            done: dict[str, Any] = await handler(dashboard.control, await _body(request))
        except ControlError as error:
            return _refusal(" ".join(str(error).split()), 400)
        return JSONResponse(done)

    return answer


def _refusal(line: str, status: int) -> JSONResponse:
    return JSONResponse({"error": line}, status_code=status)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


@dataclass(slots=True)
class _Changes:
    """What a stream has said already, so that it says only what changed since."""

    _said: dict[str, str] = field(default_factory=dict)

    def of(self, parts: dict[str, str]) -> str:
        """JSON values by name -> one JSON object of those that are not as they were; "": none."""
        new = {name: text for name, text in parts.items() if self._said.get(name) != text}
        self._said = parts
        if not new:
            return ""
        return "{" + ",".join(f"{_json(name)}:{text}" for name, text in new.items()) + "}"


async def _body(request: Request) -> dict[str, Any]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            raise ControlError(f"the request is longer than {MOST_BODY} bytes")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ControlError("the request is not JSON") from error
    if not isinstance(fields, dict):
        raise ControlError("the request is not a JSON object")
    return fields


async def _about(dashboard: Dashboard, request: Request) -> Response:
    return JSONResponse(dashboard.about())


async def _runs(dashboard: Dashboard, request: Request) -> Response:
    return JSONResponse(await asyncio.to_thread(dashboard.finished.listing))


async def _run(dashboard: Dashboard, request: Request) -> Response:
    found = dashboard.finished.detail(request.path_params["key"])
    return _refusal("there is no such run", 404) if found is None else JSONResponse(found)


async def _result(dashboard: Dashboard, request: Request) -> Response:
    key = request.path_params["key"]
    result = dashboard.finished.result(key)
    if result is None:
        return _refusal("there is no such result", 404)
    name = f"predump-{result.migration_id}.json"
    safe = "".join(c if c.isascii() and (c.isalnum() or c in ".-_") else "_" for c in name)
    return Response(
        result.to_json() + "\n",
        media_type="application/json",
        headers={"content-disposition": f'attachment; filename="{safe}"'},
    )


async def _start(control: Control, fields: dict[str, Any]) -> dict[str, Any]:
    return {"id": await control.start(text(fields, "scenario"), texts(fields.get("settings", [])))}


async def _abort(control: Control, fields: dict[str, Any]) -> dict[str, Any]:
    await control.abort(text(fields, "id"))
    return {}


async def _policy(control: Control, fields: dict[str, Any]) -> dict[str, Any]:
    await control.change_policy(text(fields, "id"), texts(fields.get("settings", [])))
    return {}


async def _events(dashboard: Dashboard, request: Request) -> Response:
    if dashboard.streams >= MOST_STREAMS:
        return _refusal(f"{MOST_STREAMS} pages look on already; close one", 503)
    migration_id = request.query_params.get("migration", "")
    return StreamingResponse(_stream(dashboard, migration_id), media_type="text/event-stream")


async def _stream(dashboard: Dashboard, migration_id: str) -> AsyncIterator[str]:
    """The overview and one migration, whenever they changed: first all of it, then what changed."""
    dashboard.streams += 1
    loop = asyncio.get_running_loop()
    overview, migration = _Changes(), _Changes()
    last = loop.time()
    try:
        while not dashboard.ending():
            seen = dashboard.board.version
            parts = dashboard.board.parts(migration_id) if migration_id else None
            told = {
                "overview": overview.of(dashboard.overview()),
                "migration": migration.of(parts or {"facts": "null"}) if migration_id else "",
            }
            for name, text in told.items():
                if text:
                    last = loop.time()
                    yield f"event: {name}\ndata: {text}\n\n"
            await asyncio.sleep(PACE_S)
            if not await dashboard.board.changed(seen, ALIVE_S) and loop.time() - last > COMMENT_S:
                last = loop.time()
                yield ": nothing new\n\n"
    finally:
        dashboard.streams -= 1
