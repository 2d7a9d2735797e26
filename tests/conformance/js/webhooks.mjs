// Signs and verifies webhooks with the published packages: one JSON request a line on standard input, one answer a line.
//   {"package":"standardwebhooks"|"svix","do":"sign","secret":…,"id":…,"timestamp":<s>,"body":…} → {"signature":…}
//   {"package":…,"do":"verify","secret":…,"headers":{…},"body":…}                              → {"ok":true} | {"error":…}
import { createInterface } from "node:readline";
import standardwebhooks from "standardwebhooks";
import svix from "svix";

const packages = { standardwebhooks, svix };

function answer({ package: name, do: what, secret, id, timestamp, headers, body }) {
  const webhook = new packages[name].Webhook(secret);
  if (what === "sign") return { signature: webhook.sign(id, new Date(timestamp * 1000), body) };
  try {
    webhook.verify(body, headers);
    return { ok: true };
  } catch (error) {
    return { error: String(error.message) };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(answer(JSON.parse(line))));
}
