// What the app did and what passed over the wire, for a test to read.
import fs from "node:fs";

const LARGE = 256 * 1024;

/** Every noted thing, in order: {fn, runId, step, attempt, what, at, value}. */
export const calls = [];
/** Every request to the SDK with its answer, in order of arrival. */
export const wire = [];

const file = process.env.CALLS_FILE ? fs.openSync(process.env.CALLS_FILE, "a") : null;
const gates = new Map();
const failures = new Map();

export function note(call) {
  const noted = { at: Date.now(), ...call };
  calls.push(noted);
  // One write, so that a kill leaves whole lines.
  if (file !== null && noted.what === "step") fs.writeSync(file, `${JSON.stringify(noted)}\n`);
}

function gate(name) {
  if (!gates.has(name)) {
    let open;
    const opened = new Promise((resolve) => (open = resolve));
    gates.set(name, { open, opened });
  }
  return gates.get(name);
}

/** Returns when the gate is opened by POST /control, at once with GATES=open. */
export async function pass(name) {
  if (process.env.GATES !== "open") await gate(name).opened;
}

/** Whether this is one of the first `times` calls for the key: those fail. */
export function isToFail(key, times) {
  const seen = (failures.get(key) ?? 0) + 1;
  failures.set(key, seen);
  return seen <= times;
}

export function control(command) {
  for (const name of command.open ?? []) gate(name).open();
  if (command.forget) {
    calls.length = 0;
    wire.length = 0;
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function briefly(text) {
  return text.length > LARGE ? undefined : parse(text);
}

/** Records a request and its answer without touching what the SDK sees of either. */
export function tap(req, res) {
  const entry = { method: req.method, url: req.url, headers: req.headers, at: Date.now() };
  wire.push(entry);
  const received = [];
  const emit = req.emit;
  req.emit = function (type, chunk, ...rest) {
    if (type === "data") received.push(Buffer.from(chunk));
    if (type === "end") {
      const text = Buffer.concat(received).toString("utf8");
      const body = parse(text);
      entry.bytes = Buffer.byteLength(text);
      entry.ctx = body?.ctx;
      entry.version = body?.version;
      entry.useApi = body?.use_api;
      entry.events = body?.events?.length;
      entry.event = text.length > LARGE ? undefined : body?.event;
      entry.stepIds = Object.keys(body?.steps ?? {});
      entry.steps = text.length > LARGE ? undefined : body?.steps;
    }
    return emit.call(this, type, chunk, ...rest);
  };
  const sent = [];
  const { write, end, writeHead } = res;
  const keep = (chunk) => {
    if (chunk && typeof chunk !== "function") sent.push(Buffer.from(chunk));
  };
  res.writeHead = function (status, ...rest) {
    entry.status = status;
    entry.answerHeaders = Object.fromEntries(
      Object.entries(rest.at(-1) ?? {}).map(([name, value]) => [name.toLowerCase(), value]),
    );
    return writeHead.call(this, status, ...rest);
  };
  res.write = function (chunk, ...rest) {
    keep(chunk);
    return write.call(this, chunk, ...rest);
  };
  res.end = function (chunk, ...rest) {
    keep(chunk);
    entry.status ??= res.statusCode;
    entry.answerHeaders = { ...res.getHeaders(), ...entry.answerHeaders };
    const text = Buffer.concat(sent).toString("utf8");
    entry.answerBytes = Buffer.byteLength(text);
    entry.answer = briefly(text);
    entry.answeredAt = Date.now();
    return end.call(this, chunk, ...rest);
  };
}
