import assert from "node:assert/strict";
import { createHmac, randomBytes } from "node:crypto";
import { test } from "node:test";
import { KartaArgumentError, KartaSignatureError, verifyWebhook, type KartaEvent, type SignatureFailure, type WebhookHeaders } from "@karta/sdk";
import { failure } from "./support.js";

const bytes = randomBytes(32);
const SECRET = `whsec_${bytes.toString("base64")}`;
const NOW = 1_795_330_800;
const PAYLOAD = JSON.stringify({
  id: "evt_1",
  type: "budget.exhausted",
  created_at: "2026-11-22T07:00:00.000Z",
  organization_id: 7,
  data: { period: "2026-11", reason: "monthly cost cap reached – 5 €" },
});
const now = () => NOW * 1000;

const mac = (secret: string, at = NOW, payload = PAYLOAD) => createHmac("sha256", secret).update(`${at}.${payload}`).digest("hex");
const stripe = (at = NOW, ...macs: string[]) => `t=${at},${(macs.length ? macs : [mac(SECRET, at)]).map((v1) => `v1=${v1}`).join(",")}`;
const standard = (at = NOW, key = bytes) => ({
  "webhook-id": "evt_1",
  "webhook-timestamp": String(at),
  "webhook-signature": `v1,${createHmac("sha256", key).update(`evt_1.${at}.${PAYLOAD}`).digest("base64")}`,
});

async function reason(headers: WebhookHeaders, payload: unknown = PAYLOAD, secret: unknown = SECRET, tolerance?: number): Promise<SignatureFailure> {
  const error = await failure(() => verifyWebhook(payload as string, headers, secret as string, { now, tolerance }));
  assert.ok(error instanceof KartaSignatureError, String(error));
  assert.ok(!error.message.includes(SECRET.slice(6)));
  return error.reason;
}

test("both schemes verify with all headers and payloads", async () => {
  const headers: WebhookHeaders[] = [
    { "Karta-Signature": stripe() },
    { "karta-signature": [stripe()] },
    new Headers({ "KARTA-SIGNATURE": stripe() }),
    { get: (name: string) => (name === "karta-signature" ? stripe() : null) } as Headers,
    standard(),
    new Headers(standard()),
    { ...standard(), "Karta-Signature": stripe() },
  ];
  const encoded = new TextEncoder().encode(PAYLOAD);
  for (const each of headers) {
    for (const payload of [PAYLOAD, Buffer.from(PAYLOAD), encoded, encoded.buffer]) {
      const event: KartaEvent = await verifyWebhook(payload, each, SECRET, { now });
      assert.equal(event.type, "budget.exhausted");
      if (event.type === "budget.exhausted") assert.equal(event.data.reason, "monthly cost cap reached – 5 €");
    }
  }
});

test("either secret verifies during a rotation", async () => {
  const other = `whsec_${randomBytes(32).toString("base64")}`;
  await verifyWebhook(PAYLOAD, { "karta-signature": stripe(NOW, mac(other), mac(SECRET)) }, SECRET, { now });
  const both = standard();
  both["webhook-signature"] = `${standard(NOW, randomBytes(32))["webhook-signature"]} v1a,b3RoZXI= ${both["webhook-signature"]}`;
  await verifyWebhook(PAYLOAD, both, SECRET, { now });
});

test("changed or forged webhooks do not match", async () => {
  const tampered = Buffer.from(PAYLOAD);
  tampered[10] = (tampered[10] as number) ^ 1;
  const other = `whsec_${randomBytes(32).toString("base64")}`;
  for (const headers of [{ "karta-signature": stripe() }, standard()]) {
    assert.equal(await reason(headers, tampered), "no_match");
    assert.equal(await reason(headers, `${PAYLOAD} `), "no_match");
    assert.equal(await reason(headers, PAYLOAD, other), "no_match");
  }
  const good = mac(SECRET);
  for (const bad of [good.slice(0, -2), `${good}00`, "", "zz", `${good.slice(0, -1)}${good.endsWith("0") ? "1" : "0"}`]) {
    assert.equal(await reason({ "karta-signature": stripe(NOW, bad) }), "no_match", bad);
  }
  assert.equal(await reason({ "karta-signature": `t=${NOW + 1},v1=${good}` }), "no_match");
  assert.equal(await reason({ ...standard(), "webhook-id": "evt_2" }), "no_match");
  // A MAC of another scheme is not a v1.
  assert.equal(await reason({ "karta-signature": `t=${NOW},v0=${good}` }), "malformed_header");
});

test("signatures outside the tolerance are rejected", async () => {
  for (const off of [-300, 0, 300]) await verifyWebhook(PAYLOAD, { "karta-signature": stripe(NOW + off) }, SECRET, { now });
  for (const off of [-301, 301, -86_400]) {
    assert.equal(await reason({ "karta-signature": stripe(NOW + off) }), "outside_tolerance");
    assert.equal(await reason(standard(NOW + off)), "outside_tolerance");
  }
  assert.equal(await reason({ "karta-signature": stripe(NOW - 20) }, PAYLOAD, SECRET, 10), "outside_tolerance");
  for (const none of [Number.NaN, 5 / 0]) assert.equal(await reason({ "karta-signature": stripe() }, PAYLOAD, SECRET, none), "outside_tolerance");
  await verifyWebhook(PAYLOAD, { "karta-signature": stripe(Math.round(Date.now() / 1000)) }, SECRET, null as never);
  const error = await failure(() => verifyWebhook(PAYLOAD, { "karta-signature": stripe(NOW + 900) }, SECRET, { now }));
  assert.match(String(error), /900 s ahead.*clock is off/);
});

test("unknown options of verifyWebhook are rejected", async () => {
  for (const [field, options] of [["tolerence", { tolerence: 10 }], ["Tolerance", { Tolerance: 10 }], ["options", 10]] as const) {
    const error = await failure(() => verifyWebhook(PAYLOAD, { "karta-signature": stripe() }, SECRET, options as never));
    assert.ok(error instanceof KartaArgumentError && error.field === field, String(error));
    assert.match(error.message, /\. Known names: tolerance, now$/);
  }
});

test("invalid options of verifyWebhook are rejected", async () => {
  const cases: [string, object][] = [
    ...["abc", "300", {}, [300], true, 300n, () => 300].map((tolerance): [string, object] => ["tolerance", { tolerance }]),
    ...[5, "now", {}, () => "5", () => 5n, () => new Date(0), async () => 5].map((value): [string, object] => ["now", { now: value }]),
  ];
  for (const [field, options] of cases) {
    const error = await failure(() => verifyWebhook(PAYLOAD, { "karta-signature": stripe() }, SECRET, { now, ...options } as never));
    assert.ok(error instanceof KartaArgumentError && error.field === field, `${field}: ${String(error)}`);
  }
  await verifyWebhook(PAYLOAD, { "karta-signature": stripe() }, SECRET, { now, tolerance: null } as never);
  await verifyWebhook(PAYLOAD, { "karta-signature": stripe(Math.round(Date.now() / 1000)) }, SECRET, { now: null } as never);
});

test("missing and malformed headers have different reasons", async () => {
  for (const none of [{}, new Headers(), undefined as unknown as WebhookHeaders]) assert.equal(await reason(none), "missing_header");
  const { "webhook-id": _, ...rest } = standard();
  assert.equal(await reason(rest), "missing_header");
  for (const bad of ["", "nonsense", "t=,v1=00", `v1=${mac(SECRET)}`, `t=${NOW}`, `t=${NOW},t=${NOW},v1=00`, `t=1e9,v1=00`]) {
    assert.equal(await reason({ "karta-signature": bad }), "malformed_header", bad);
  }
  assert.equal(await reason({ ...standard(), "webhook-signature": "v2,AAAA" }), "malformed_header");
  assert.equal(await reason({ ...standard(), "webhook-timestamp": "now" }), "malformed_header");
});

test("malformed secrets and payloads are reported", async () => {
  const headers = { "karta-signature": stripe() };
  for (const secret of [null, "", "kt_live_x", `${SECRET}\n`, "whsec_"]) assert.equal(await reason(headers, PAYLOAD, secret), "malformed_secret");
  assert.equal(await reason(standard(), PAYLOAD, "whsec_!!!"), "malformed_secret");
  for (const payload of [JSON.parse(PAYLOAD), {}, null, 7]) assert.equal(await reason(headers, payload), "malformed_payload");
  const text = "no JSON";
  assert.equal(await reason({ "karta-signature": stripe(NOW, mac(SECRET, NOW, text)) }, text), "malformed_payload");
});
