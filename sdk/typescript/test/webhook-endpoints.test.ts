import assert from "node:assert/strict";
import { test } from "node:test";
import { json, scripted } from "./support.js";

test("each webhook endpoint method calls its route", async () => {
  const { karta, sent } = scripted([json(200, { webhook_endpoints: [], deliveries: [], next_cursor: null })]);
  const endpoints = karta.webhookEndpoints;
  const created = { url: "https://example.com/hook", event_types: ["*"] as const };
  const since = "2026-11-22T00:00:00Z";
  const cases = [
    [() => endpoints.list(), "GET /v1/webhook_endpoints?limit=100", undefined],
    [() => endpoints.create(created), "POST /v1/webhook_endpoints", created],
    [() => endpoints.get(7), "GET /v1/webhook_endpoints/7", undefined],
    [() => endpoints.update(7, { description: null }), "PATCH /v1/webhook_endpoints/7", { description: null }],
    [() => endpoints.delete(7), "DELETE /v1/webhook_endpoints/7", undefined],
    [() => endpoints.rotateSecret(7, { grace_seconds: 5 }), "POST /v1/webhook_endpoints/7/rotate_secret", { grace_seconds: 5 }],
    [() => endpoints.test(7), "POST /v1/webhook_endpoints/7/test", undefined],
    [() => endpoints.deliveries(7, { status: "failed" }), "GET /v1/webhook_endpoints/7/deliveries?status=failed&limit=100", undefined],
    [() => endpoints.replay(7, 8), "POST /v1/webhook_endpoints/7/deliveries/8/replay", undefined],
    [() => endpoints.recover(7, { since }), "POST /v1/webhook_endpoints/7/recover", { since }],
  ] as const;
  for (const [call, request, body] of cases) {
    sent.length = 0;
    await call();
    assert.deepEqual(sent.map(({ method, url }) => `${method} ${url.replace("https://karta.test", "")}`), [request]);
    assert.deepEqual(sent[0]?.body, body);
  }
});

test("a 202 without a body succeeds", async () => {
  const { karta } = scripted([new Response(null, { status: 202 })]);
  assert.equal(await karta.webhookEndpoints.test(1), undefined);
});
