import assert from "node:assert/strict";
import { test } from "node:test";
import { checkBodies, checkClient, checkComplete, gatewayAnswers } from "../error-page.mjs";

const row = (body) => `| \`${body}\` | when | what |\n`;
const TAKEN = '{"error":"slug_taken","message":"The slug is taken. Choose another one."}';
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
Conflict::SlugTaken => ("slug_taken", "The slug is taken. Choose another one."),
"monthly token cap reached" "monthly input token cap reached" "monthly output token cap reached" "monthly cost cap reached"
`;
const TRUTH = { rust: RUST, gateway: [], openapi: { paths: { "/v1/x": { get: { responses: { 200: {}, 404: {}, 409: {} } } } } } };
const CLIENT = `class KartaNotFoundError {} class KartaConflictError {} type SignatureFailure = "no_match";`;
const complete = (page, truth = TRUTH) => () => checkComplete(page, truth);

test("a page that has everything passes", complete(PAGE));

for (const [what, rust, fault] of [
  ["a code as a field", 'code: "gone_missing",', /lacks the code gone_missing/],
  ["a code in a body", 'json!({"error": "gone_missing"})', /lacks the code gone_missing/],
  ["a code beside its sentence", '(\n    "gone_missing",\n    "It is not there",\n)', /lacks the code gone_missing/],
  ["a code that is no literal", "code: CODE,", /cannot tell the code CODE/],
  ["a detail", 'Forbidden("not today".into())', /lacks the detail not today/],
  ["a detail with a name in it", 'Forbidden(format!("missing colour: {}", colour).into())', /lacks the detail missing colour: /],
]) {
  test(`${what} that the page lacks is found`, () => assert.throws(complete(PAGE, { ...TRUTH, rust: RUST + rust }), fault));
}

test("a status of the document that the page lacks is found", () => {
  const openapi = { paths: { "/v1/x": { get: { responses: { 404: {}, 409: {}, 418: {} } } } } };
  assert.throws(complete(PAGE, { ...TRUTH, openapi }), /lacks the status 418/);
});

test("what the page has alone is found", () => {
  assert.throws(complete(PAGE + row('{"error":"gone_missing","message":"x"}')), /has the code gone_missing, which nothing answers/);
  assert.throws(complete(PAGE + row('{"detail":"Gone"}')), /has the detail Gone, which nothing answers/);
  assert.throws(complete(PAGE.replace("`monthly cost cap reached`", "")), /lacks the reason monthly cost cap reached/);
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

test("a body that is answered otherwise is found", () => {
  const judged = (answers) => () => checkBodies(PAGE, answers, TRUTH);
  const other = answer(409, { error: "slug_taken", message: "Choose another one" });
  assert.throws(judged([missing, other]), /409: message is printed as/);
  assert.throws(judged([missing, answer(409, { error: "slug_taken", message: "x", id: 1 })]), /lacks what was answered: 409/);
  assert.throws(judged([missing]), /409 slug_taken is neither provoked nor API Gateway's/);
  assert.throws(judged([missing, { ...taken, request_id: "s" }]), /without its request id/);
  assert.throws(judged([missing, answer(409, JSON.parse(TAKEN), { "retry-after": "1" })]), /came with Retry-After: 1/);
  // All that is left is what this short page does not have.
  assert.throws(judged([missing, taken]), /lacks what is not provoked/);
});

test("an answer of API Gateway's that the page lacks is found", () => {
  const template = `StatusCode: 429\nx\nx\nx\n   application/json: '{"error":"rate_limited","request_id":"$context.requestId"}'`;
  assert.throws(complete(PAGE, { ...TRUTH, gateway: gatewayAnswers(template) }), /lacks the code rate_limited/);
  assert.throws(() => gatewayAnswers(template.replace("$context.requestId", "")), /without its request id/);
});

test("a client that throws another class than the page says is found", async () => {
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
  await assert.rejects(checkClient(PAGE, Karta, `${CLIENT} class KartaNewError `), /lacks the class KartaNewError/);
  await assert.rejects(checkClient(PAGE, Karta, CLIENT.replace("no_match", "too_odd")), /lacks the reason too_odd/);
});
