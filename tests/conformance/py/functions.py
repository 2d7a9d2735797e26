"""The functions under test: those of js/functions.mjs as far as this SDK has what they use.

A function `x` is triggered by `conf/x` unless it says otherwise. Every call of a function notes "enter", every
execution of a step's body "step", and the end of the function "end".
"""

import datetime
import os
import time

import inngest

from record import gate_pass, is_to_fail, note

MIB = 1024 * 1024


class Tools:
    """What a function is given, with every step noted."""

    def __init__(self, fn, ctx):
        self._about = {"fn": fn, "runId": ctx.run_id, "attempt": ctx.attempt}
        self.ctx = ctx
        self.step = ctx.step
        self.group = ctx.group
        self.event = ctx.event
        self.data = ctx.event.data

    def say(self, what, value=None):
        note(**self._about, step=None, what=what, value=value)

    def run(self, step, body, *args):
        def noted(*args):
            note(**self._about, step=step, what="step")
            return body(*args)

        return self.step.run(step, noted, *args)

    def fail(self, step, times, error):
        """Raises in the first `times` calls for this step of this run."""
        if is_to_fail(f"{self.ctx.run_id}/{step}", times):
            raise error


def told(error):
    cause = error.__cause__
    return {
        "name": getattr(error, "name", type(error).__name__),
        "message": getattr(error, "message", str(error)),
        "cause": str(cause) if cause is not None else None,
    }


def dump(event):
    return event.model_dump() if event is not None else None


def throwing(error):
    def body():
        raise error

    return body


def pointless():
    try:
        raise ValueError("the reason")
    except ValueError as reason:
        raise inngest.NonRetriableError("pointless") from reason


def seconds(text):
    """The few durations that the tests write: `2s`, `10m`."""
    return datetime.timedelta(seconds=int(text[:-1]) * {"s": 1, "m": 60}[text[-1]])


def functions(client, chosen):
    app = os.environ.get("APP_ID", "conf")
    made = []

    def wrap(fn_id, handler):
        def wrapped(ctx):
            tools = Tools(fn_id, ctx)
            tools.say("enter", {"event": ctx.event.name})
            value = handler(tools)
            tools.say("end", value)
            return value

        return wrapped

    def fn(fn_id, triggers=None, on_failure=None, **config):
        def decorate(handler):
            if on_failure is not None:
                config["on_failure"] = wrap(f"{fn_id}-failure", on_failure)
            event = inngest.TriggerEvent(event=f"conf/{fn_id}")
            made.append(
                client.create_function(fn_id=fn_id, trigger=triggers or [event], **config)(wrap(fn_id, handler))
            )
            return handler

        return decorate

    def on(event, expression=None):
        return inngest.TriggerEvent(event=event, expression=expression)

    def failure_told(t):
        """What a failure handler was given."""
        data = t.data
        t.run("told", lambda: None)
        raw = data["error"]
        error = {"name": raw.get("name"), "message": raw.get("message")}
        t.say(
            "failure",
            {
                "error": error,
                "raw": raw,
                "run_id": data["run_id"],
                "function_id": data["function_id"],
                "original": data["event"],
                "name": t.event.name,
            },
        )

    if chosen == "b":

        @fn("hello")
        def _(t):
            return {"set": t.run("which", lambda: "b")}

        @fn("only-b")
        def _(t):
            return {"set": t.run("which", lambda: "b")}

        return made
    if chosen == "cron":

        @fn("every-minute", [inngest.TriggerCron(cron="* * * * *")])
        def _(t):
            t.say("tick", {"name": t.event.name, "data": t.data})
            return t.run("ticked", lambda: None)

        return made
    if chosen == "invalid":

        @fn("broken-if", [on("conf/broken", "event.data.x ==")])
        def _(t):
            return None

        return made

    @fn("hello")
    def _(t):
        return {"set": t.run("which", lambda: "a")}

    # Every kind of step.

    @fn("kinds")
    def _(t):
        obj = t.run("object", lambda: {"n": 1, "text": "ä€😀", "float": 0.1, "big": 1e21})
        named = t.run("named", lambda n, word: f"{word}{n + 1}", obj["n"], "got ")
        undef = t.run("undefined", lambda: None)
        empty = t.run("null", lambda: None)
        number = t.run("number", lambda: 42.5)
        several = t.run("list", lambda: [1, "two", None])
        t.step.sleep("nap", datetime.timedelta(seconds=1))
        t.step.sleep_until("until", datetime.datetime.now() + datetime.timedelta(seconds=1))
        t.step.sleep_until("past", datetime.datetime(1970, 1, 2, tzinfo=datetime.timezone.utc))
        ids = t.step.send_event(
            "send",
            [inngest.Event(name="conf/sink", data={"n": 1}), inngest.Event(name="conf/sink", data={"n": 2})],
        )
        return {
            "object": obj,
            "named": named,
            "undef": undef,
            "empty": empty,
            "number": number,
            "list": several,
            "ids": ids,
        }

    @fn("sink")
    def _(t):
        t.say("got", t.data)
        return t.data

    @fn("lookalikes")
    def _(t):
        # Shaped like an error and like a wrapped value: neither must be taken for one.
        data = t.run("data", lambda: {"data": {"data": 1}})
        error = t.run("error", lambda: {"error": {"message": "not one"}})
        return {"data": data, "error": error}

    @fn("echo")
    def _(t):
        return {"event": dump(t.event), "count": len(t.ctx.events)}

    @fn("void")
    def _(t):
        return None

    @fn("check/slashed", [on("conf/slashed")])
    def _(t):
        return t.run("only", lambda: "slashed")

    @fn("parallel")
    def _(t):
        one, two, _ = t.group.parallel(
            (
                lambda: t.run("one", lambda: 1),
                lambda: t.run("two", lambda: 2),
                lambda: t.step.sleep("three", datetime.timedelta(seconds=1)),
            )
        )
        return {"after": t.run("after", lambda: one + two)}

    @fn("fan-in")
    def _(t):
        ms = t.data.get("ms", 0)

        def branch(i):
            def body():
                time.sleep(ms / 1000)
                return i

            return lambda: t.run(f"p{i}", body)

        everything = t.group.parallel(tuple(branch(i) for i in range(t.data["n"])))
        return {"sum": t.run("after", lambda: sum(everything))}

    @fn("race-mode")
    def _(t):
        fast, _ = t.group.parallel(
            (
                lambda: t.run("fast", lambda: "fast"),
                lambda: t.step.sleep("slow", seconds(t.data["slow"])),
            ),
            parallel_mode=inngest.ParallelMode.RACE,
        )
        return {"winner": fast, "after": t.run("after", lambda: fast)}

    @fn("loop")
    def _(t):
        return {"seen": [t.run("tick", lambda i=i: i) for i in range(t.data["times"])]}

    @fn("large")
    def _(t):
        total = 0
        for i in range(t.data["steps"]):
            total += len(t.run(f"chunk-{i}", lambda i=i: str(i % 10) * t.data["bytes"]))
        t.step.sleep("nap", datetime.timedelta(seconds=1))
        return {"total": t.run("after", lambda: total)}

    @fn("too-large", retries=0)
    def _(t):
        return len(t.run("huge", lambda: "x" * (4 * MIB + 1)))

    @fn("huge-result", retries=0)
    def _(t):
        return "x" * (9 * MIB)

    # Errors.

    @fn("flaky", retries=2)
    def _(t):
        def flaky():
            t.fail("flaky", t.data["fails"], Exception("flaky failed"))
            return "at last"

        before = t.run("before", lambda: "before")
        result = t.run("flaky", flaky)
        return {"before": before, "flaky": result, "after": t.run("after", lambda: "after")}

    @fn("caught", retries=1)
    def _(t):
        try:
            t.run("doomed", throwing(TypeError("never works")))
        except inngest.StepError as error:
            t.say("caught", told(error))
            return {"caught": told(error), "after": t.run("after", lambda: "after")}

    @fn("uncaught", retries=1, on_failure=failure_told)
    def _(t):
        t.run("doomed", throwing(TypeError("never works")))
        t.run("never", lambda: None)

    @fn("no-retries", retries=0, on_failure=failure_told)
    def _(t):
        t.run("doomed", throwing(Exception("only once")))

    @fn("non-retriable-step", on_failure=failure_told)
    def _(t):
        t.run("doomed", pointless)

    @fn("non-retriable-function", on_failure=failure_told)
    def _(t):
        t.run("before", lambda: None)
        pointless()

    @fn("retry-after-step")
    def _(t):
        def busy():
            t.fail("busy", 1, inngest.RetryAfterError("too busy", 4000))
            return True

        return {"done": t.run("busy", busy)}

    @fn("retry-after-function")
    def _(t):
        t.run("before", lambda: None)
        t.fail("function", 1, inngest.RetryAfterError("too busy", datetime.timedelta(seconds=4)))
        return {"done": True}

    @fn("function-flaky", retries=2)
    def _(t):
        t.run("before", lambda: None)
        t.fail("function", t.data["fails"], ValueError("function failed"))
        return {"done": t.run("after", lambda: True)}

    # Triggers.

    @fn("if", [on("conf/if", "event.data.x > 1 && event.data.who == 'me'")])
    def _(t):
        return "if"

    @fn("wildcard", [on("conf.w/*")])
    def _(t):
        return t.event.name

    @fn("deep-wildcard", [on("conf.w/deep.*")])
    def _(t):
        return t.event.name

    @fn("both", [on("conf.w/*"), on("conf.w/exact")])
    def _(t):
        return t.event.name

    @fn("several", [on("conf/several-1"), on("conf/several-2", "event.data.x > 1")])
    def _(t):
        return t.event.name

    for kind in ["finished", "failed", "cancelled"]:

        @fn(f"on-{kind}", [on(f"inngest/function.{kind}", f"event.data.function_id == '{app}-source'")])
        def _(t):
            t.say("got", {"id": t.event.id, "name": t.event.name, "data": t.data})

    @fn("on-invoked", [on("inngest/function.invoked")])
    def _(t):
        return {"name": t.event.name, "x": t.data.get("x")}

    @fn("source", retries=0, on_failure=failure_told)
    def _(t):
        t.run("begin", lambda: None)
        if t.data["how"] == "fail":
            raise inngest.NonRetriableError("source failed")
        if t.data["how"] == "hang":
            t.step.sleep("hang", datetime.timedelta(minutes=10))
        return {"how": t.data["how"]}

    # Cancelling and timeouts.

    def hang(t):
        t.run("begin", lambda: None)
        t.step.sleep("hang", datetime.timedelta(minutes=10))
        t.run("never", lambda: None)

    is_meant = "event.data.u == async.data.u && async.data.really == true"
    cancel = [inngest.Cancel(event="conf/cancel", if_exp=is_meant)]
    fn("cancel-on", on_failure=failure_told, cancel=cancel)(hang)
    same_u = "event.data.u == async.data.u"
    fn("cancel-match", cancel=[inngest.Cancel(event="conf/cancel-match", if_exp=same_u)])(hang)
    fn("finish-timeout", on_failure=failure_told, timeouts=inngest.Timeouts(finish=seconds("2s")))(hang)

    @fn(
        "start-timeout",
        on_failure=failure_told,
        timeouts=inngest.Timeouts(start=seconds("2s")),
        concurrency=[inngest.Concurrency(limit=1)],
    )
    def _(t):
        def held():
            gate_pass("start-timeout")
            return "held"

        return t.run("held", held)

    # Waits and invocations.

    @fn("wait")
    def _(t):
        got = t.step.wait_for_event(
            "wait",
            event="conf/awaited",
            if_exp="async.data.k == event.data.k",
            timeout=seconds(t.data["timeout"]),
        )
        return {"got": dump(got), "after": t.run("after", lambda: t.data["k"])}

    @fn("wait-own")
    def _(t):
        t.step.send_event("send", inngest.Event(name="conf/own", data={"k": t.data["k"]}))
        got = t.step.wait_for_event(
            "wait", event="conf/own", if_exp="async.data.k == event.data.k", timeout=seconds("4s")
        )
        return {"got": got.data if got is not None else None}

    @fn("invoke")
    def _(t):
        timeout = t.data.get("timeout")
        try:
            outcome = {
                "ok": t.step.invoke_by_id(
                    "call",
                    app_id=t.data.get("app"),
                    function_id=t.data["target"],
                    data=t.data.get("data"),
                    timeout=seconds(timeout) if timeout else None,
                )
            }
        except inngest.StepError as error:
            outcome = {"error": told(error)}
        t.run("after", lambda: None)
        return outcome

    @fn("child")
    def _(t):
        return {"x": t.run("work", lambda: t.data["x"]), "name": t.event.name, "of": app}

    @fn("failing-child", retries=0)
    def _(t):
        raise ValueError("child broke")

    @fn("sleepy-child")
    def _(t):
        t.step.sleep("nap", seconds(t.data["nap"]))
        return t.run("woke", lambda: "woke")

    @fn("single-child", singleton=inngest.Singleton(mode="skip"))
    def _(t):
        t.step.sleep("nap", seconds(t.data["nap"]))
        return "done"

    # Runs to be interrupted.

    @fn("held", retries=10)
    def _(t):
        def held():
            gate_pass(t.data["gate"])
            return 2

        one = t.run("one", lambda: 1)
        two = t.run("held", held)
        return {"sum": t.run("two", lambda: one + two)}

    @fn("journey", retries=10)
    def _(t):
        def leg(i):
            def body():
                time.sleep(t.data["ms"] / 1000)
                return i

            return body

        return {"sum": sum(t.run(f"s{i}", leg(i)) for i in range(t.data["steps"]))}

    @fn("asleep", retries=10)
    def _(t):
        t.run("before", lambda: None)
        t.step.sleep("nap", seconds(t.data["nap"]))
        return {"after": t.run("after", lambda: int(time.time() * 1000))}

    return made
