"""An S3 server on 127.0.0.1, run by the environment `.s3-server`: prints its port and serves until it is ended.

One request at a time is answered: moto looks whether an object is there and then writes it, which S3 does in one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # type: ignore[import-not-found]
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    """Tells of no request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


class OneAtATime:
    """An application whose requests wait for each other."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with self._lock:
            answer: Iterable[bytes] = self._application(environ, start_response)
            return answer


server = make_server("127.0.0.1", 0, OneAtATime(DomainDispatcherApplication(create_backend_app)), threaded=True, request_handler=Quiet)
print(server.server_port, flush=True)
server.serve_forever()
