"""What the app did and what passed over the wire, for a test to read."""

import io
import json
import os
import threading
import time

LARGE = 256 * 1024

calls = []
"""Every noted thing, in order: fn, runId, step, attempt, what, at, value."""
wire = []
"""Every request to the SDK with its answer, in order of arrival."""

_lock = threading.Lock()
_file = open(os.environ["CALLS_FILE"], "a", buffering=1) if os.environ.get("CALLS_FILE") else None
_gates = {}
_failures = {}


def _now():
    return int(time.time() * 1000)


def note(**call):
    noted = {"at": _now(), **call}
    with _lock:
        calls.append(noted)
        if _file is not None and noted["what"] == "step":
            _file.write(json.dumps(noted) + "\n")


def _gate(name):
    with _lock:
        return _gates.setdefault(name, threading.Event())


def gate_pass(name):
    """Returns when the gate is opened by POST /control, at once with GATES=open."""
    if os.environ.get("GATES") != "open":
        _gate(name).wait()


def is_to_fail(key, times):
    """Whether this is one of the first `times` calls for the key: those fail."""
    with _lock:
        _failures[key] = _failures.get(key, 0) + 1
        return _failures[key] <= times


def control(command):
    for name in command.get("open", []):
        _gate(name).set()
    if command.get("forget"):
        with _lock:
            calls.clear()
            wire.clear()


def _parse(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


class Tap:
    """Records each request to the SDK and its answer without touching either."""

    def __init__(self, app):
        self._app = app

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] != "/api/inngest":
            return self._app(environ, start_response)
        text = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(text)
        body = _parse(text)
        body = body if isinstance(body, dict) else {}
        query = environ.get("QUERY_STRING", "")
        headers = {key[5:].lower().replace("_", "-"): value for key, value in environ.items() if key.startswith("HTTP_")}
        steps = body.get("steps") or {}
        is_large = len(text) > LARGE
        entry = {
            "method": environ["REQUEST_METHOD"],
            "url": environ["PATH_INFO"] + (f"?{query}" if query else ""),
            "headers": headers,
            "at": _now(),
            "bytes": len(text),
            "ctx": body.get("ctx"),
            "version": body.get("version"),
            "useApi": body.get("use_api"),
            "events": len(body.get("events") or []),
            "event": None if is_large else body.get("event"),
            "stepIds": list(steps),
            "steps": None if is_large else steps,
        }
        with _lock:
            wire.append(entry)

        def started(status, answer_headers, *rest):
            entry["status"] = int(status.split()[0])
            entry["answerHeaders"] = {name.lower(): value for name, value in answer_headers}
            return start_response(status, answer_headers, *rest)

        chunks = list(self._app(environ, started))
        answer = b"".join(chunks)
        entry["answerBytes"] = len(answer)
        entry["answer"] = None if len(answer) > LARGE else _parse(answer)
        entry["answeredAt"] = _now()
        return chunks
