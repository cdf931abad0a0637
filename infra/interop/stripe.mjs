// Sends the runner events that the stripe library signs. Reads the runner's JSON line and the
// signing secret from stdin; throws at the first failed check.
import { readFileSync } from "node:fs";
import Stripe from "stripe";

const [line, secret] = readFileSync(0, "utf8").split("\n");
const start = JSON.parse(line);
const { webhooks } = new Stripe("unused");
const path = "/v1/stripe/events";
const now = Math.floor(Date.now() / 1000);
let checks = 0;

function check(what, holds, seen) {
  if (!holds) throw new Error(seen === undefined ? what : `${what}; got ${JSON.stringify(seen)}`);
  checks += 1;
}

async function call(method, path, headers, body) {
  const answer = await fetch(start.base_url + path, { method, headers, body });
  return { status: answer.status, body: await answer.json() };
}

const event = (id, status, created = now) =>
  JSON.stringify({
    id,
    object: "event",
    type: "customer.subscription.updated",
    created,
    livemode: false,
    data: {
      object: {
        id: "sub_interop",
        object: "subscription",
        customer: "cus_interop",
        status,
        created: now - 3600,
        cancel_at_period_end: false,
        description: "Zwölf Schlüssel – 鍵 🔑",
        items: { data: [{ current_period_end: now + 3600, price: { lookup_key: "team", nickname: null } }] },
      },
    },
  });
const sign = (payload, options) => webhooks.generateTestHeaderString({ payload, secret, ...options });
const post = (payload, header) => call("POST", path, { "stripe-signature": header }, payload);
const billing = async () => (await call("GET", "/v1/billing", { authorization: `Bearer ${start.api_key}` })).body;

async function isRefused(what, payload, header) {
  const { status, body } = await post(payload, header);
  check(`${what} is refused`, status === 400 && body.error === "invalid_signature", { status, body });
}

const organization = await call(
  "PATCH",
  `/v1/internal/organizations/${start.organization_id}`,
  { authorization: `Bearer ${start.service_token}` },
  JSON.stringify({ stripe_customer_id: "cus_interop" }),
);
check("the organization gets its Stripe customer", organization.status === 200, organization);

const payload = event("evt_interop_1", "past_due");
const header = sign(payload);
check("the library verifies its own header", webhooks.constructEvent(payload, header, secret).id === "evt_interop_1");

const at = payload.indexOf("past_due") + 1;
await isRefused("a body with one byte changed", `${payload.slice(0, at)}b${payload.slice(at + 1)}`, header);
await isRefused("a body without its last byte", payload.slice(0, -1), header);
await isRefused("a signature with one digit changed", payload, header.slice(0, -1) + (header.at(-1) === "0" ? "1" : "0"));
await isRefused("a signature from ten minutes ago", payload, sign(payload, { timestamp: now - 600 }));
await isRefused("a signature ten minutes in the future", payload, sign(payload, { timestamp: now + 600 }));
await isRefused("another secret", payload, sign(payload, { secret: `${secret}x` }));
await isRefused("another scheme", payload, sign(payload, { scheme: "v0" }));
check("rejected events change nothing", (await billing()).status === "active");

for (const time of ["first", "second"]) {
  const { status, body } = await post(payload, sign(payload));
  check(`the ${time} delivery of an event is received`, status === 200 && body.received === true, { status, body });
}
const after = await billing();
check("the status is that of the event", after.status === "past_due" && after.plan === "team", after);
check("the period ends at the event's time", Date.parse(after.current_period_end) === (now + 3600) * 1000, after);
const older = event("evt_interop_0", "unpaid", now - 60);
check("an older event is received", (await post(older, sign(older))).status === 200);
check("an older event changes nothing", (await billing()).status === "past_due");
const newer = event("evt_interop_2", "active", now + 60);
const rotated = `${sign(newer, { secret: "whsec_retired" })},${sign(newer).split(",")[1]}`;
check("an event signed with two secrets is received", (await post(newer, rotated)).status === 200);
check("a newer event restores the status", (await billing()).status === "active");

const { version } = JSON.parse(readFileSync(new URL("node_modules/stripe/package.json", import.meta.url), "utf8"));
console.log(`stripe ${version}, Node.js ${process.versions.node}: ${checks} checks`);
