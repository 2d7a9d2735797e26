"""An app of the kind that users write, on flask, with a way to look at what it did.

  PORT, APP_ID     where it listens (0: any), what it is called
  FUNCTIONS=a|b    which set of functions it serves
  CALLS_FILE       each executed step is appended to it as a line
  GATES=open       no step waits at a gate

The SDK reads its own variables (INNGEST_DEV and so on). Ends when its standard input does.
"""

import logging
import os
import sys
import threading

import flask
import inngest
import inngest.flask
import werkzeug.serving

import functions
import record


class Handler(werkzeug.serving.WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, code="-", size="-"):
        pass


app = flask.Flask(__name__)
logging.getLogger("werkzeug").setLevel(logging.ERROR)
client = inngest.Inngest(app_id=os.environ.get("APP_ID", "conf"), logger=logging.getLogger("inngest"))
inngest.flask.serve(app, client, functions.functions(client, os.environ.get("FUNCTIONS", "a")))


@app.get("/calls")
def calls():
    return flask.jsonify(record.calls)


@app.get("/wire")
def wire():
    return flask.jsonify(record.wire)


@app.post("/control")
def control():
    record.control(flask.request.get_json(force=True))
    return {}


def end_with_stdin():
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=end_with_stdin, daemon=True).start()
server = werkzeug.serving.make_server(
    "127.0.0.1", int(os.environ.get("PORT", "0")), record.Tap(app), threaded=True, request_handler=Handler
)
print(f"listening {server.server_port}", flush=True)
server.serve_forever()
