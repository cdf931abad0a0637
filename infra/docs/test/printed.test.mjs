import assert from "node:assert/strict";
import { test } from "node:test";
import { Printed, show, values } from "../printed.mjs";

const ID = 244341271240555;
const TOKEN = "kt_live_4wSoZdh0I7qDL3pMKtG9JktLDDErnkPq";
const printed = () => new Printed("http://127.0.0.1:4999");
const json = (page, real, over = printed()) => over.checkJson(JSON.stringify(page), JSON.stringify(real));

test("random values may differ but keep their form", () => {
  const at = "2026-11-22T10:27:10.673Z";
  json({ id: ID, at, iat: 1795343232, prefix: "kt_live_4wSoZd" }, { id: ID + 1, at: "2027-01-01T00:00:00.000Z", iat: 1795000000, prefix: "kt_live_000000" });
  for (const [name, page, real] of [["id", ID, 7], ["id", ID, null], ["id", ID, String(ID)], ["at", at, "2026-11-22T10:27:10Z"], ["prefix", "kt_live_4wSoZd", "kt_live_4wSoZ"]]) {
    assert.throws(() => json({ [name]: page }, { [name]: real }), new RegExp(`^Error: ${name} is printed as`));
  }
});

test("all other values must be equal", () => {
  json({ a: [1, "x", null, true, {}] }, { a: [1, "x", null, true, {}] });
  for (const real of [{ a: 2 }, { a: "1" }, { a: null }, { a: [1] }, { a: { b: 1 } }, {}, { a: 1, b: 2 }, { b: 1 }]) {
    assert.throws(() => json({ a: 1 }, real), { message: /a is printed as 1|has the fields/ });
  }
  assert.throws(() => json({ a: [1] }, { a: [1, 2] }), /has the fields/);
});

test("repeated values are equal, different values differ", () => {
  assert.throws(() => json({ a: ID, b: ID }, { a: ID, b: ID + 1 }), /printed as 244341271240555 again/);
  assert.throws(() => json({ a: ID, b: ID + 1 }, { a: ID, b: ID }), /printed differently elsewhere/);
});

test("a shortened token must match its prefix", () => {
  const page = { prefix: "kt_live_aaaaaa", secret: "kt_live_aaaaaa…" };
  json(page, { prefix: "kt_live_4wSoZd", secret: TOKEN });
  assert.throws(() => json(page, { prefix: "kt_live_000000", secret: TOKEN }), /^Error: secret is printed as/);
  assert.throws(() => json({ token: "eyJ0…" }, { token: "eyJ1eXAi" }), /^Error: token is printed as/);
  assert.throws(() => json({ token: "eyJ0…" }, { token: "eyJ0" }), /^Error: token is printed as/);
});

test("commands are filled with values from answers", () => {
  const over = printed();
  json({ id: ID, secret: "kt_live_4wSoZd…" }, { id: ID + 1, secret: TOKEN }, over);
  assert.equal(over.fill(`curl http://127.0.0.1:8787/${ID} kt_live_4wSoZd…`), `curl http://127.0.0.1:4999/${ID + 1} ${TOKEN}`);
  assert.throws(() => over.fill("curl kt_live_other…"), /placeholder that no answer explains: kt_live_other…/);
});

test("the number of JSON values must match", () => {
  printed().checkJson('{"a":1}\n{"b":"}{"}', '{"a":1}{"b":"}{"}');
  assert.throws(() => printed().checkJson('{"a":1}', '{"a":1}{"a":1}'), /prints 1 JSON values, but the answer has 2/);
  for (const text of ['{"a":1', "no JSON", '{"a":1} and', "{a}"]) assert.throws(() => values(text, "this"), /^Error: this is not JSON/);
});

test("text and headers are compared by line", () => {
  printed().checkText("a\nb\n", "a\nb");
  for (const real of ["a", "a\nc", "a\nb\nc"]) assert.throws(() => printed().checkText("a\nb", real), /^Error: line/);
  printed().checkHttp("HTTP/1.1 204 No Content\ndate: 1", "HTTP/1.1 204 No Content\r\ndate: 2\r\n\r\n");
  assert.throws(() => printed().checkHttp("access-control-allow-origin: *", "access-control-allow-origin: null\r\n"), /^Error: line 1/);
});

test("messages contain no secrets", () => {
  const jwt = "eyJ0eXAiOiJKV1Qi.eyJvcmdfaWQi.c2lnbmF0dXJl";
  assert.equal(show(`${TOKEN} ${jwt} whsec_QUJD karta_service_08de`), "kt_live_4wSoZd… eyJ… whsec_… karta_service_…");
});
