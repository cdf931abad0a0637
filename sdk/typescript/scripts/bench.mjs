// Measures the overhead of the client over a bare fetch: with a server on loopback, and with a
// fetch that returns immediately.
import { fork } from "node:child_process";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { Karta } from "@karta/sdk";

const BODY = JSON.stringify({ kind: "api_key", organization_id: 1, organization_slug: "acme", scopes: ["read"], api_key_id: 2 });

if (process.argv[2] === "serve") {
  const server = createServer((_, response) => response.writeHead(200, { "content-type": "application/json" }).end(BODY));
  server.listen(0, "127.0.0.1", () => process.send(server.address().port));
} else {
  const server = fork(fileURLToPath(import.meta.url), ["serve"]);
  const port = await new Promise((resolve) => server.once("message", resolve));
  await compare("loopback", `http://127.0.0.1:${port}`, fetch, 3000);
  await compare("no network", "http://karta.test", async () => new Response(BODY), 20_000);
  server.kill();
}

async function compare(name, baseUrl, send, rounds) {
  const apiKey = "kt_live_0123456789";
  const karta = new Karta({ apiKey, baseUrl, fetch: send });
  const init = { headers: { authorization: `Bearer ${apiKey}` } };
  const bare = async () => JSON.parse(await (await send(`${baseUrl}/v1/whoami`, init)).text());
  const through = () => karta.whoami();
  const times = { bare: [], through: [] };
  for (let round = -200; round < rounds; round++) {
    for (const [key, call] of [["bare", bare], ["through", through]]) {
      const start = performance.now();
      await call();
      if (round >= 0) times[key].push(performance.now() - start);
    }
  }
  const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
  const [one, other] = [median(times.bare), median(times.through)];
  console.log(`bench: ${name}: bare fetch ${one.toFixed(3)} ms, through the client ${other.toFixed(3)} ms, overhead ${(other - one).toFixed(3)} ms (medians of ${rounds})`);
}
