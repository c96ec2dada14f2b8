"""An S3 server on 127.0.0.1, run by the environment `.s3-server`: prints its port and serves until it is ended.

One request at a time is answered: moto looks whether an object is there and then writes it, which S3 does in one. Buckets whose
name begins with `sealed` can be read alone. Those of `careless` take any PUT, as stores do that know no conditions, and those of `unable`
refuse any that has one (501); in those of `undecided` the first PUT of an object with a condition meets another one (409).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # type: ignore[import-not-found]
from werkzeug.serving import WSGIRequestHandler, make_server

_REFUSAL = "<Error><Code>{0}</Code><Message>{0}</Message></Error>"


class Quiet(WSGIRequestHandler):
    """Tells of no request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


class Store:
    """moto, with what it leaves out."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._lock = threading.Lock()
        self._undecided: set[str] = set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with self._lock:
            if refusal := self._refusal(environ, environ["PATH_INFO"]):
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(refusal[0], [("Content-Type", "application/xml")])
                return [_REFUSAL.format(refusal[1]).encode()]
            answer: Iterable[bytes] = self._application(environ, start_response)
            return answer

    def _refusal(self, environ: dict[str, Any], path: str) -> tuple[str, str] | None:
        if "HTTP_AUTHORIZATION" not in environ:
            return "403 Forbidden", "AccessDenied"
        if path.startswith("/sealed") and environ["REQUEST_METHOD"] == "PUT" and path.strip("/").count("/"):
            return "403 Forbidden", "AccessDenied"
        if path.startswith("/careless"):
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if path.startswith("/unable") and "HTTP_IF_NONE_MATCH" in environ:
            return "501 Not Implemented", "NotImplemented"
        if path.startswith("/undecided") and "HTTP_IF_NONE_MATCH" in environ and path not in self._undecided:
            self._undecided.add(path)
            return "409 Conflict", "ConditionalRequestConflict"
        return None


server = make_server("127.0.0.1", 0, Store(DomainDispatcherApplication(create_backend_app)), threaded=True, request_handler=Quiet)
print(server.server_port, flush=True)
server.serve_forever()
