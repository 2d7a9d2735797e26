// The functions under test, the same for every version of the SDK; py/functions.py has them for Python.
//
// A function `x` is triggered by `conf/x` unless it says otherwise. Every call of a function notes "enter", every
// execution of a step's body "step", and the end of the function "end".
import { isToFail, note, pass } from "./record.mjs";

const MIB = 1024 * 1024;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const told = (error) => ({
  name: error.name,
  message: error.message,
  cause: error.cause instanceof Error ? error.cause.message : (error.cause ?? null),
});

export function functions({ sdk, define, major, set }) {
  const { NonRetriableError, RetryAfterError, referenceFunction } = sdk;
  const app = process.env.APP_ID ?? "conf";
  const made = [];

  function wrap(id, handler) {
    return async (ctx) => {
      const about = { fn: id, runId: ctx.runId, attempt: ctx.attempt };
      const say = (what, value) => note({ ...about, step: null, what, value });
      const run = (options, body, ...input) => {
        const step = typeof options === "string" ? options : options.id;
        const noted = async (...args) => {
          note({ ...about, step, what: "step" });
          return body(...args);
        };
        return ctx.step.run(options, noted, ...input);
      };
      // Throws in the first `times` calls for this step of this run.
      const fail = (step, times, make) => {
        if (isToFail(`${ctx.runId}/${step}`, times)) throw make();
      };
      say("enter", { event: ctx.event.name, maxAttempts: ctx.maxAttempts ?? null });
      const value = await handler({ ...ctx, run, say, fail });
      say("end", value);
      return value;
    };
  }

  function fn(id, config, handler) {
    const { onFailure, ...rest } = config;
    const full = { id, triggers: [{ event: `conf/${id}` }], ...rest };
    if (onFailure) full.onFailure = wrap(`${id}-failure`, onFailure);
    made.push(define(full, wrap(id, handler)));
  }

  // What a failure handler was given.
  const onFailure = async ({ event, error, run, say }) => {
    const { run_id, function_id, event: original } = event.data;
    await run("told", () => null);
    say("failure", { error: told(error), raw: event.data.error, run_id, function_id, original, name: event.name });
  };

  if (set === "b") {
    fn("hello", {}, async ({ run }) => ({ set: await run("which", () => "b") }));
    fn("only-b", {}, async ({ run }) => ({ set: await run("which", () => "b") }));
    return made;
  }
  if (set === "cron") {
    fn("every-minute", { triggers: [{ cron: "* * * * *" }] }, async ({ event, run, say }) => {
      say("tick", { name: event.name, data: event.data });
      return run("ticked", () => null);
    });
    return made;
  }
  if (set === "limits") {
    // How many steps run at once, by whatever limits them; noted as each begins.
    const live = new Map();
    const work = ({ run, say }, keys, ms = 150, name = "work") =>
      run(name, async () => {
        const now = {};
        for (const key of keys) live.set(key, (now[key] = (live.get(key) ?? 0) + 1));
        say("live", now);
        await pause(ms);
        for (const key of keys) live.set(key, live.get(key) - 1);
        return null;
      });
    const user = (ctx) => ctx.event.data.user;

    fn("plain", { concurrency: 2 }, (ctx) => work(ctx, ["plain"]));
    fn("keyed", { concurrency: [{ limit: 1, key: "event.data.user" }] }, (ctx) => work(ctx, [`keyed/${user(ctx)}`]));
    for (const name of ["a", "b"]) {
      const account = (key) => ({ concurrency: [{ limit: 1, scope: "account", key }] });
      fn(`shared-${name}`, account('"api"'), (ctx) => work(ctx, ["api"]));
      fn(`odd-${name}`, account("granola-mcp"), (ctx) => work(ctx, ["odd"]));
    }
    fn("both", { concurrency: [{ limit: 2 }, { limit: 1, key: "event.data.user" }] }, (ctx) =>
      work(ctx, ["both", `both/${user(ctx)}`]),
    );
    // Keeps its slot until the test opens the gate.
    const hold = ({ run, event }, gate) => (event.data.waits ? run("wait", () => pass(gate)) : null);
    fn("older", { concurrency: 1 }, async (ctx) => {
      await hold(ctx, "older");
      await work(ctx, ["older"], 50, "one");
      await work(ctx, ["older"], 50, "two");
    });
    fn("throttled", { throttle: { limit: 2, period: "4s" } }, async () => null);
    fn("limited", { rateLimit: { limit: 10, period: "1m", key: "event.data.user" } }, async () => null);
    fn("once", { idempotency: "event.data.id" }, async () => null);
    fn("debounced", { debounce: { period: "2s", key: "event.data.user" } }, async ({ event }) => event.data.n);
    fn("batched", { batchEvents: { maxSize: 3, timeout: "2s", key: "event.data.user" } }, async ({ events }) =>
      events.map((event) => event.data.n),
    );
    fn("first", { concurrency: 1, priority: { run: "event.data.p" } }, async (ctx) => {
      await hold(ctx, "first");
      await work(ctx, ["first"], 50);
    });
    fn("skipping", { singleton: { key: "event.data.user", mode: "skip" } }, async ({ run }) => {
      await run("wait", () => pass("singleton"));
      return "done";
    });
    fn("newest", { singleton: { mode: "cancel" } }, async ({ step, event }) => {
      await step.sleep("nap", event.data.nap);
      return event.data.n;
    });
    fn("twice", { retries: 1 }, async ({ run }) => {
      await run("fails", () => {
        throw new Error("always");
      });
    });
    fn("asks", {}, async ({ step, event }) => {
      const child = referenceFunction({ appId: app, functionId: event.data.child });
      try {
        return { got: await step.invoke("ask", { function: child, data: event.data.with ?? {}, timeout: "20s" }) };
      } catch (error) {
        return { error: error.message };
      }
    });
    fn("slow", { concurrency: { limit: 2 }, retries: 10 }, async (ctx) => {
      await work(ctx, ["slow"], 400, "one");
      await work(ctx, ["slow"], 400, "two");
    });
    fn("quiet", { debounce: { period: "3s" }, retries: 10 }, async ({ event }) => event.data.n);
    fn("gathered", { batchEvents: { maxSize: 5, timeout: "4s" }, retries: 10 }, async ({ events }) =>
      events.map((event) => event.data.n),
    );
    fn("every-minute", { triggers: [{ cron: "* * * * *" }] }, async ({ event, run }) => {
      await run("ticked", () => null);
      return event.data.scheduledAt;
    });
    return made;
  }
  if (set === "invalid") {
    fn("broken-if", { triggers: [{ event: "conf/broken", if: "event.data.x ==" }] }, async () => null);
    return made;
  }

  fn("hello", {}, async ({ run }) => ({ set: await run("which", () => "a") }));

  // Every kind of step.

  fn("kinds", {}, async ({ run, step }) => {
    const object = await run("object", () => ({ n: 1, text: "ä€😀", float: 0.1, big: 1e21 }));
    const named = await run({ id: "named", name: "Named step" }, (n, word) => `${word}${n + 1}`, object.n, "got ");
    const undef = await run("undefined", () => undefined);
    const empty = await run("null", () => null);
    const number = await run("number", () => 42.5);
    const list = await run("list", () => [1, "two", null]);
    await step.sleep("nap", "1s");
    await step.sleepUntil("until", new Date(Date.now() + 1000));
    await step.sleepUntil("past", new Date(86_400_000));
    const sent = await step.sendEvent("send", [
      { name: "conf/sink", data: { n: 1 } },
      { name: "conf/sink", data: { n: 2 } },
    ]);
    return { object, named, undef: undef ?? null, empty, number, list, ids: sent.ids };
  });
  fn("sink", {}, async ({ event, say }) => {
    say("got", event.data);
    return event.data;
  });
  // Shaped like an error and like a wrapped value: neither must be taken for one.
  fn("lookalikes", {}, async ({ run }) => {
    const data = await run("data", () => ({ data: { data: 1 } }));
    const error = await run("error", () => ({ error: { message: "not one" } }));
    return { data, error };
  });
  fn("echo", {}, async ({ event, events }) => ({ event, count: events.length }));
  fn("void", {}, async () => undefined);
  fn("check/slashed", { triggers: [{ event: "conf/slashed" }] }, async ({ run }) => run("only", () => "slashed"));

  fn("parallel", {}, async ({ run, step }) => {
    const [one, two] = await Promise.all([
      run("one", () => 1),
      run("two", () => 2),
      step.sleep("three", "1s"),
    ]);
    const after = await run("after", () => one + two);
    return { after };
  });
  fn("fan-in", {}, async ({ run, event }) => {
    const { n, ms = 0 } = event.data;
    const branch = (i) =>
      run(`p${i}`, async () => {
        if (ms) await pause(ms);
        return i;
      });
    const all = await Promise.all(Array.from({ length: n }, (_, i) => branch(i)));
    return { sum: await run("after", () => all.reduce((sum, i) => sum + i, 0)) };
  });
  fn("race", {}, async ({ run, step, event }) => {
    const winner = await Promise.race([
      run("fast", () => "fast"),
      step.sleep("slow", event.data.slow).then(() => "slow"),
    ]);
    return { winner, after: await run("after", () => winner) };
  });
  if (major === "4") {
    fn("race-mode", {}, async ({ run, step, event, group }) => {
      const winner = await group.parallel({ mode: "race" }, () =>
        Promise.race([run("fast", () => "fast"), step.sleep("slow", event.data.slow).then(() => "slow")]),
      );
      return { winner, after: await run("after", () => winner) };
    });
  }
  fn("loop", {}, async ({ run, event }) => {
    const seen = [];
    for (let i = 0; i < event.data.times; i++) seen.push(await run("tick", () => i));
    return { seen };
  });

  fn("large", {}, async ({ run, step, event }) => {
    const { steps, bytes } = event.data;
    let total = 0;
    for (let i = 0; i < steps; i++) total += (await run(`chunk-${i}`, () => String(i % 10).repeat(bytes))).length;
    await step.sleep("nap", "1s");
    return { total: await run("after", () => total) };
  });
  fn("too-large", { retries: 0 }, async ({ run }) => {
    const text = await run("huge", () => "x".repeat(4 * MIB + 1));
    return text.length;
  });
  fn("huge-result", { retries: 0 }, async () => "x".repeat(9 * MIB));

  // Errors.

  fn("flaky", { retries: 2 }, async ({ run, fail, event }) => {
    const before = await run("before", () => "before");
    const flaky = await run("flaky", () => {
      fail("flaky", event.data.fails, () => new Error("flaky failed"));
      return "at last";
    });
    return { before, flaky, after: await run("after", () => "after") };
  });
  fn("caught", { retries: 1 }, async ({ run, say }) => {
    try {
      await run("doomed", () => {
        throw new TypeError("never works");
      });
    } catch (error) {
      say("caught", told(error));
      return { caught: told(error), after: await run("after", () => "after") };
    }
  });
  fn("uncaught", { retries: 1, onFailure }, async ({ run }) => {
    await run("doomed", () => {
      throw new TypeError("never works");
    });
    await run("never", () => null);
  });
  fn("no-retries", { retries: 0, onFailure }, async ({ run }) => {
    await run("doomed", () => {
      throw new Error("only once");
    });
  });
  fn("non-retriable-step", { onFailure }, async ({ run }) => {
    await run("doomed", () => {
      throw new NonRetriableError("pointless", { cause: new Error("the reason") });
    });
  });
  fn("non-retriable-caught", {}, async ({ run }) => {
    try {
      await run("doomed", () => {
        throw new NonRetriableError("pointless", { cause: new Error("the reason") });
      });
    } catch (error) {
      return { caught: told(error) };
    }
  });
  fn("non-retriable-function", { onFailure }, async ({ run }) => {
    await run("before", () => null);
    throw new NonRetriableError("pointless", { cause: new Error("the reason") });
  });
  fn("retry-after-step", {}, async ({ run, fail }) => ({
    done: await run("busy", () => {
      fail("busy", 1, () => new RetryAfterError("too busy", "4s"));
      return true;
    }),
  }));
  fn("retry-after-function", {}, async ({ run, fail }) => {
    await run("before", () => null);
    fail("function", 1, () => new RetryAfterError("too busy", new Date(Date.now() + 4000)));
    return { done: true };
  });
  fn("function-flaky", { retries: 2 }, async ({ run, fail, event }) => {
    await run("before", () => null);
    fail("function", event.data.fails, () => new RangeError("function failed"));
    return { done: await run("after", () => true) };
  });

  // Triggers.

  fn("if", { triggers: [{ event: "conf/if", if: "event.data.x > 1 && event.data.who == 'me'" }] }, async () => "if");
  fn("wildcard", { triggers: [{ event: "conf.w/*" }] }, async ({ event }) => event.name);
  fn("deep-wildcard", { triggers: [{ event: "conf.w/deep.*" }] }, async ({ event }) => event.name);
  fn("both", { triggers: [{ event: "conf.w/*" }, { event: "conf.w/exact" }] }, async ({ event }) => event.name);
  fn(
    "several",
    { triggers: [{ event: "conf/several-1" }, { event: "conf/several-2", if: "event.data.x > 1" }] },
    async ({ event }) => event.name,
  );
  const fromSource = { if: `event.data.function_id == '${app}-source'` };
  for (const kind of ["finished", "failed", "cancelled"]) {
    fn(`on-${kind}`, { triggers: [{ event: `inngest/function.${kind}`, ...fromSource }] }, async ({ event, say }) => {
      say("got", { id: event.id, name: event.name, data: event.data });
    });
  }
  fn("on-invoked", { triggers: [{ event: "inngest/function.invoked" }] }, async ({ event }) => ({
    name: event.name,
    x: event.data.x,
  }));
  fn("source", { retries: 0, onFailure }, async ({ run, step, event }) => {
    await run("begin", () => null);
    if (event.data.how === "fail") throw new NonRetriableError("source failed");
    if (event.data.how === "hang") await step.sleep("hang", "10m");
    return { how: event.data.how };
  });

  // Cancelling and timeouts.

  const hang = async ({ run, step }) => {
    await run("begin", () => null);
    await step.sleep("hang", "10m");
    await run("never", () => null);
  };
  fn(
    "cancel-on",
    { onFailure, cancelOn: [{ event: "conf/cancel", if: "event.data.u == async.data.u && async.data.really == true" }] },
    hang,
  );
  fn("cancel-match", { cancelOn: [{ event: "conf/cancel-match", match: "data.u" }] }, hang);
  fn("finish-timeout", { onFailure, timeouts: { finish: "2s" } }, hang);
  fn("start-timeout", { onFailure, timeouts: { start: "2s" }, concurrency: 1 }, async ({ run }) =>
    run("held", async () => {
      await pass("start-timeout");
      return "held";
    }),
  );

  // Waits, invocations, signals.

  fn("wait", {}, async ({ step, run, event }) => {
    const { timeout, k } = event.data;
    const options = { event: "conf/awaited", timeout, if: "async.data.k == event.data.k" };
    const got = await step.waitForEvent("wait", options);
    return { got, after: await run("after", () => k) };
  });
  fn("wait-match", {}, async ({ step, event }) => {
    const got = await step.waitForEvent("wait", { event: "conf/awaited", timeout: event.data.timeout, match: "data.k" });
    return { got };
  });
  fn("wait-own", {}, async ({ step, event }) => {
    await step.sendEvent("send", { name: "conf/own", data: { k: event.data.k } });
    const got = await step.waitForEvent("wait", { event: "conf/own", timeout: "4s", if: "async.data.k == event.data.k" });
    return { got: got?.data ?? null };
  });
  fn("invoke", {}, async ({ step, run, event }) => {
    const { target, app: appId, timeout, data } = event.data;
    const options = { function: referenceFunction({ functionId: target, ...(appId ? { appId } : {}) }), data };
    if (timeout) options.timeout = timeout;
    let outcome;
    try {
      outcome = { ok: await step.invoke("call", options) };
    } catch (error) {
      outcome = { error: told(error) };
    }
    await run("after", () => null);
    return outcome;
  });
  fn("child", {}, async ({ event, run }) => {
    const x = await run("work", () => event.data.x);
    return { x, name: event.name, of: app };
  });
  fn("failing-child", { retries: 0 }, async () => {
    throw new RangeError("child broke");
  });
  fn("sleepy-child", {}, async ({ step, run, event }) => {
    await step.sleep("nap", event.data.nap);
    return run("woke", () => "woke");
  });
  fn("fetches", { retries: 1 }, async ({ step, event }) => {
    const { url, ...options } = event.data;
    const answer = await step.fetch(url, options);
    return { status: answer.status, kind: answer.headers.get("x-kind"), text: await answer.text() };
  });
  fn("single-child", { singleton: { mode: "skip" } }, async ({ step, event }) => {
    await step.sleep("nap", event.data.nap);
    return "done";
  });
  fn("signal-wait", { retries: 0 }, async ({ step, event }) => {
    const { signal, timeout, onConflict } = event.data;
    return { got: await step.waitForSignal("wait", { signal, timeout, onConflict }) };
  });
  fn("signal-send", { retries: 0 }, async ({ step, event }) => {
    const { signal, data } = event.data;
    return { sent: (await step.sendSignal("send", { signal, data })) ?? null };
  });

  // Runs to be interrupted.

  fn("held", { retries: 10 }, async ({ run, event }) => {
    const one = await run("one", () => 1);
    const held = await run("held", async () => {
      await pass(event.data.gate);
      return 2;
    });
    return { sum: await run("two", () => one + held) };
  });
  // Its first execution of `held` is overtaken by the second, which does not wait.
  fn("overtaken", {}, async ({ run, step, runId }) => {
    await run("one", () => null);
    await run("held", async () => {
      if (isToFail(`${runId}/held`, 1)) await pass("overtaken");
    });
    await run("mid", () => null);
    await step.sleep("nap", "1s");
    await run("later", () => pass("later"));
    return "done";
  });
  fn("journey", { retries: 10 }, async ({ run, event }) => {
    const { steps, ms } = event.data;
    let sum = 0;
    for (let i = 0; i < steps; i++) {
      sum += await run(`s${i}`, async () => {
        await pause(ms);
        return i;
      });
    }
    return { sum };
  });
  fn("asleep", { retries: 10 }, async ({ run, step, event }) => {
    await run("before", () => null);
    await step.sleep("nap", event.data.nap);
    return { after: await run("after", () => Date.now()) };
  });

  return made;
}
