// An app of the kind that users write, on node:http, with a way to look at what it did.
//
//   SDK=3|4          which major version of the SDK
//   PORT, APP_ID     where it listens (0: any), what it is called
//   FUNCTIONS=a|b    which set of functions it serves
//   BODY_PARSER=1    behind a parser of JSON bodies, as most express apps are
//   CALLS_FILE       each executed step is appended to it as a line
//   GATES=open       no step waits at a gate
//
// The SDK reads its own variables (INNGEST_DEV and so on). Ends when its standard input does.
import http from "node:http";

import { functions } from "./functions.mjs";
import { calls, control, tap, wire } from "./record.mjs";

const major = process.env.SDK ?? "4";
const sdk = await import(`inngest${major}`);
const adapter = process.env.BODY_PARSER === "1" ? "express" : "node";
const { serve } = await import(`inngest${major}/${adapter}`);

const silent = { debug() {}, info() {}, warn: console.warn, error: console.error };
const inngest = new sdk.Inngest({ id: process.env.APP_ID ?? "conf", logger: silent });

/** One way to write functions for both signatures of createFunction. */
const define = ({ triggers, ...config }, handler) =>
  major === "3"
    ? inngest.createFunction(config, triggers, handler)
    : inngest.createFunction({ ...config, triggers }, handler);

const served = functions({ sdk, inngest, define, major, set: process.env.FUNCTIONS ?? "a" });
const handler = serve({ client: inngest, functions: served });

async function read(req) {
  const chunks = [];
  for await (const chunk of req) chunks.push(chunk);
  return Buffer.concat(chunks).toString("utf8");
}

/** What express and its JSON parser would have made of the request. */
async function behindParser(req, res) {
  const text = await read(req);
  req.body = text === "" ? {} : JSON.parse(text);
  req.protocol = "http";
  req.originalUrl = req.url;
  req.query = Object.fromEntries(new URL(req.url, "http://localhost").searchParams);
  res.status = (status) => {
    res.statusCode = status;
    return res;
  };
  res.send = (body) => res.end(body);
  return handler(req, res);
}

function answer(res, value) {
  res.writeHead(200, { "content-type": "application/json" });
  res.end(JSON.stringify(value));
}

const server = http.createServer(async (req, res) => {
  const { pathname } = new URL(req.url, "http://localhost");
  if (pathname === "/calls") return answer(res, calls);
  if (pathname === "/wire") return answer(res, wire);
  if (pathname === "/control") {
    control(JSON.parse(await read(req)));
    return answer(res, {});
  }
  if (pathname !== "/api/inngest") {
    res.writeHead(404);
    return res.end();
  }
  tap(req, res);
  return adapter === "express" ? behindParser(req, res) : handler(req, res);
});
// A server that keeps connections must not be surprised by ours closing them.
server.keepAliveTimeout = 60_000;
server.listen(Number(process.env.PORT ?? 0), "127.0.0.1", () => {
  console.log(`listening ${server.address().port}`);
});

process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
process.stdin.on("error", () => process.exit(0));
