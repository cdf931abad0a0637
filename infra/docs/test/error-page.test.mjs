import assert from "node:assert/strict";
import { test } from "node:test";
import { checkBodies, checkClient, checkComplete, gatewayAnswers } from "../error-page.mjs";

const row = (body) => `| \`${body}\` | when | what |\n`;
const TAKEN = '{"error":"slug_taken","message":"This slug is taken. Choose another slug."}';
const PAGE = `
| [404](#404) | nothing | no | \`KartaNotFoundError\` |
| [409](#409) | taken | no | \`KartaConflictError\` |
## 404
${row('{"detail":"Not found"}')}
## 409
${row(TAKEN)}
\`monthly token cap reached\` \`monthly input token cap reached\` \`monthly output token cap reached\` \`monthly cost cap reached\` \`no_match\`
`;
const RUST = `
json!({"detail": "Not found"})
Conflict::SlugTaken => ("slug_taken", "This slug is taken. Choose another slug."),
"monthly token cap reached" "monthly input token cap reached" "monthly output token cap reached" "monthly cost cap reached"
`;
const TRUTH = { rust: RUST, gateway: [], openapi: { paths: { "/v1/x": { get: { responses: { 200: {}, 404: {}, 409: {} } } } } } };
const CLIENT = `class KartaNotFoundError {} class KartaConflictError {} type SignatureFailure = "no_match";`;
const complete = (page, truth = TRUTH) => () => checkComplete(page, truth);

test("a complete page passes", complete(PAGE));

for (const [what, rust, fault] of [
  ["a code as a field", 'code: "gone_missing",', /missing code: gone_missing/],
  ["a code in a body", 'json!({"error": "gone_missing"})', /missing code: gone_missing/],
  ["a code before its message", '(\n    "gone_missing",\n    "It is not there",\n)', /missing code: gone_missing/],
  ["a code that is not a literal", "code: CODE,", /cannot resolve the code CODE/],
  ["a detail", 'Forbidden("not today".into())', /missing detail: not today/],
  ["a detail with a name", 'Forbidden(format!("missing colour: {}", colour).into())', /missing detail: missing colour: /],
]) {
  test(`${what} missing on the page fails`, () => assert.throws(complete(PAGE, { ...TRUTH, rust: RUST + rust }), fault));
}

test("a missing status fails", () => {
  const openapi = { paths: { "/v1/x": { get: { responses: { 404: {}, 409: {}, 418: {} } } } } };
  assert.throws(complete(PAGE, { ...TRUTH, openapi }), /missing status: 418/);
});

test("unknown codes, details and reasons fail", () => {
  assert.throws(complete(PAGE + row('{"error":"gone_missing","message":"x"}')), /code that nothing returns: gone_missing/);
  assert.throws(complete(PAGE + row('{"detail":"Gone"}')), /detail that nothing returns: Gone/);
  assert.throws(complete(PAGE.replace("`monthly cost cap reached`", "")), /missing reason: monthly cost cap reached/);
});

const answer = (status, value, headers = {}) => ({
  name: `${status}`,
  status,
  headers: new Headers({ "x-request-id": "r", ...headers }),
  request_id: "r",
  value,
});
const missing = { ...answer(404, { detail: "Not found" }) };
const taken = { ...answer(409, JSON.parse(TAKEN)) };

test("a body that differs from the answer fails", () => {
  const checked = (answers) => () => checkBodies(PAGE, answers, TRUTH);
  const other = answer(409, { error: "slug_taken", message: "Choose another slug" });
  assert.throws(checked([missing, other]), /409: message is printed as/);
  assert.throws(checked([missing, answer(409, { error: "slug_taken", message: "x", id: 1 })]), /missing responses: 409/);
  assert.throws(checked([missing]), /409 slug_taken is neither provoked nor returned by API Gateway/);
  assert.throws(checked([missing, { ...taken, request_id: "s" }]), /without its request id/);
  assert.throws(checked([missing, answer(409, JSON.parse(TAKEN), { "retry-after": "1" })]), /came with Retry-After: 1/);
  // The short page matches all answers and lacks only the bodies of NOT_PROVOKED.
  assert.throws(checked([missing, taken]), /missing bodies that are not provoked/);
});

test("a missing response of API Gateway fails", () => {
  const template = `StatusCode: 429\nx\nx\nx\n   application/json: '{"error":"rate_limited","request_id":"$context.requestId"}'`;
  assert.throws(complete(PAGE, { ...TRUTH, gateway: gatewayAnswers(template) }), /missing code: rate_limited/);
  assert.throws(() => gatewayAnswers(template.replace("$context.requestId", "")), /without its request id/);
});

test("a client that throws another class fails", async () => {
  class Karta {
    constructor({ fetch }) {
      this.fetch = fetch;
    }
    async whoami() {
      const { status } = await this.fetch();
      throw Object.assign(new Error(), { name: status === 404 ? "KartaNotFoundError" : "KartaError" });
    }
  }
  await assert.rejects(checkClient(PAGE, Karta, CLIENT), /409 slug_taken: the client throws KartaError/);
  await assert.rejects(checkClient(PAGE, Karta, `${CLIENT} class KartaNewError `), /missing class: KartaNewError/);
  await assert.rejects(checkClient(PAGE, Karta, CLIENT.replace("no_match", "too_odd")), /missing reason: too_odd/);
});
