// Verifies deliveries of the runner with the libraries of Stripe and Standard Webhooks: unchanged,
// with one byte changed, ten minutes late, and during a rotation of the secret. Reads the runner's
// JSON line from stdin; throws at the first failed check.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";
import Stripe from "stripe";

const run = JSON.parse(readFileSync(0, "utf8").split("\n")[0]);
const { webhooks } = new Stripe("unused");
const received = [];
const waiting = [];
const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  received.push({ headers: request.headers, body: Buffer.concat(chunks) });
  response.end();
  waiting.shift()?.();
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));

let checks = 0;
function check(holds, what) {
  if (!holds) throw new Error(what);
  checks += 1;
}

async function api(method, path, body) {
  const answer = await fetch(run.base_url + path, {
    method,
    headers: { authorization: `Bearer ${run.api_key}`, "content-type": "application/json" },
    body: body && JSON.stringify(body),
  });
  check(answer.ok, `${method} ${path} answered ${answer.status}`);
  return answer.json();
}

async function delivered(change) {
  const arrived = new Promise((resolve, reject) => {
    waiting.push(resolve);
    setTimeout(() => reject(new Error("nothing was delivered")), 10_000).unref();
  });
  await change();
  await arrived;
  return received.at(-1);
}

function accepts(verify) {
  try {
    verify();
    return true;
  } catch {
    return false;
  }
}

const byStripe = ({ headers, body }, secret, seconds) =>
  accepts(() => webhooks.constructEvent(body, headers["karta-signature"], secret, 300, undefined, seconds && seconds * 1000));
const byStandardWebhooks = ({ headers, body }, secret) => accepts(() => new Webhook(secret).verify(body, headers));

function checkDelivery(delivery, secrets, what) {
  for (const secret of secrets) {
    check(byStripe(delivery, secret), `stripe refuses ${what}`);
    check(byStandardWebhooks(delivery, secret), `standardwebhooks refuses ${what}`);
  }
  for (const at of [0, delivery.body.length >> 1, delivery.body.length - 1]) {
    const body = Buffer.from(delivery.body);
    body[at] ^= 1;
    check(!byStripe({ ...delivery, body }, secrets[0]), `stripe accepts ${what} with a byte changed`);
    check(!byStandardWebhooks({ ...delivery, body }, secrets[0]), `standardwebhooks accepts ${what} with a byte changed`);
  }
  const sent = Number(delivery.headers["webhook-timestamp"]);
  check(!byStripe(delivery, secrets[0], sent + 600), `stripe accepts ${what} ten minutes late`);
  const now = Date.now;
  Date.now = () => (sent + 600) * 1000;
  // standardwebhooks reads the time from a Date without arguments.
  const RealDate = Date;
  globalThis.Date = class extends RealDate {
    constructor(...given) {
      super(...(given.length ? given : [RealDate.now()]));
    }
  };
  check(!byStandardWebhooks(delivery, secrets[0]), `standardwebhooks accepts ${what} ten minutes late`);
  globalThis.Date = RealDate;
  Date.now = now;
  check(byStandardWebhooks(delivery, secrets[0]), `standardwebhooks refuses ${what} after the clock is reset`);
}

const url = `http://127.0.0.1:${server.address().port}/hooks`;
const made = await api("POST", "/v1/webhook_endpoints", { url, event_types: ["api_key.created"] });
const path = `/v1/webhook_endpoints/${made.webhook_endpoint.id}`;
const newKey = (name) => api("POST", "/v1/api_keys", { name, scopes: ["read"] });
const first = await delivered(() => newKey("Grüße, 鍵 \"quoted\" \\"));
checkDelivery(first, [made.secret], "a delivery");
check(JSON.parse(first.body).type === "api_key.created", "the body is not the api_key.created event");

const { secret } = await api("POST", `${path}/rotate_secret`, {});
checkDelivery(await delivered(() => newKey("second")), [secret, made.secret], "a delivery during a rotation");
const { deliveries } = await api("GET", `${path}/deliveries`);
check(deliveries.length === 2, "two events did not create two deliveries");
const again = await delivered(() => api("POST", `${path}/deliveries/${deliveries[1].id}/replay`, {}));
check(again.headers["webhook-id"] === first.headers["webhook-id"], "a replay has a different webhook-id");
check(again.body.equals(first.body), "a replay has a different body");

server.close();
console.log(`deliveries of the runner: stripe and standardwebhooks on Node.js ${process.versions.node}: ${checks} checks`);
