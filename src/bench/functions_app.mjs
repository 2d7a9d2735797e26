// A Node app with one function of three steps, and an echo beside it: what this server could answer at most.
import http from "node:http";

const name = process.env.SDK;
const sdk = await import(name);
const { serve } = await import(`${name}/node`);
const silent = { debug() {}, info() {}, warn() {}, error: console.error };
const inngest = new sdk.Inngest({ id: "bench", logger: silent });
const body = async ({ event, step }) => {
  const a = await step.run("a", () => event.data.n + 1);
  const b = await step.run("b", () => a + 1);
  return step.run("c", () => b + 1);
};
const define = (config, event, handler) =>
  process.env.MAJOR === "3"
    ? inngest.createFunction(config, { event }, handler)
    : inngest.createFunction({ ...config, triggers: [{ event }] }, handler);
const three = define({ id: "three-steps" }, "bench/run", body);
// Its one slot is never given back.
const held = define({ id: "held", concurrency: { limit: 1, key: '"one"' } }, "bench/held", () => new Promise(() => {}));
const handler = serve({ client: inngest, functions: [three, held] });

const server = http.createServer((req, res) => {
  if (req.url !== "/echo") return handler(req, res);
  const chunks = [];
  req.on("data", (chunk) => chunks.push(chunk));
  req.on("end", () => {
    res.writeHead(200, { "content-type": "application/json" });
    res.end(JSON.stringify(JSON.parse(Buffer.concat(chunks).toString("utf8"))));
  });
});
server.keepAliveTimeout = 60_000;
server.listen(0, "127.0.0.1", () => console.log(`listening ${server.address().port}`));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
