// Compares docs/errors.md with the code, the template, openapi.json, the client and a runner's
// responses.
import { isDeepStrictEqual } from "node:util";
import { Printed, show } from "./printed.mjs";

/** Errors that provoke.mjs cannot cause, with the reason. Their text must be in the code. */
const NOT_PROVOKED = {
  "403 missing power: validate": "a local run's service token has every power",
  "409 release_not_ready": "there is no builder yet, so a release is ready at once",
  "409 secret_already_revealed": "ten minutes have to pass",
  "422 session_full": "eight megabytes have to be sent",
  "500 Internal error": "no request is known to cause one",
  "500 internal": "no request is known to cause one",
  "500 interrupted": "the process of a turn has to die",
  "504 provider_timeout": "five minutes have to pass",
  "504 turn_deadline": "minutes have to pass",
};

function check(holds, what) {
  if (!holds) throw new Error(`docs/errors.md: ${what}`);
}

function checkSame(what, onPage, real) {
  const missing = [...real].filter((item) => !onPage.has(item));
  const unknown = [...onPage].filter((item) => !real.has(item));
  check(missing.length === 0, `missing ${what}: ${missing.join(", ")}`);
  check(unknown.length === 0, `${what} that nothing returns: ${unknown.join(", ")}`);
}

/** Returns the first group of every match. */
const found = (text, pattern) => new Set([...text.matchAll(pattern)].map(([, word]) => word));
const present = (values) => new Set(values.filter((value) => value !== undefined));

/** Returns the page's bodies, each with the status of its row or section. */
export function printedBodies(page) {
  let section;
  return page.split("\n").flatMap((line) => {
    if (line.startsWith("## ")) section = line.slice(3);
    const row = line.match(/^\|(?: ([0-9]{3}) \|)? `(\{"(?:error|detail)":.*?\})` \|/);
    if (!row) return [];
    const [, status = section, text] = row;
    const value = JSON.parse(text);
    return [{ section, text, value, status: Number(status), name: `${status} ${value.error ?? value.detail}` }];
  });
}

/** Returns the responses that the template defines for API Gateway. */
export function gatewayAnswers(template) {
  const responses = template.matchAll(/StatusCode: ([0-9]+)\n.*\n.*\n.*\n +application\/json: '(\{.*\})'/g);
  return [...responses].map(([, status, text]) => {
    const { request_id, ...value } = JSON.parse(text);
    check(request_id === "$context.requestId", `the template has a response without its request id: ${text}`);
    return { status: Number(status), value };
  });
}

/** Returns the codes of turns that end without an answer. */
function turnCodes(rust) {
  const [names = ""] = rust.match(/impl TurnError \{[^]*?pub const fn message/) ?? [];
  return found(names, /=> "([a-z_]+)"/g);
}

/** Checks that the page lists exactly the codes, details, statuses and reasons of the code. */
export function checkComplete(page, { rust, gateway, openapi }) {
  const bodies = printedBodies(page);
  // The codes of turns are those of `TurnError`.
  const [unclear] = found(rust, /\bcode: (?!(?:failure\.)?error\b)([A-Z][A-Z_]+|[a-z_]+[(:.])/g);
  check(unclear === undefined, `cannot resolve the code ${unclear}: write it as a literal where it is returned`);
  const codes = present([
    ...found(rust, /"error": "([a-z_]+)"/g),
    ...found(rust, /code: "([a-z_]+)"/g),
    // A code followed by its message.
    ...found(rust, /\(\s*"([a-z]+(?:_[a-z]+)+)",\s*"[A-Z][^"]* [^"]*",?\s*\)/g),
    ...gateway.map(({ value }) => value.error),
    ...turnCodes(rust),
  ]);
  checkSame("code", present(bodies.map(({ value }) => value.error)), codes);

  const named = (detail) => detail?.replace(/^(missing (?:scope|power): ).*$/, "$1");
  const details = present([
    ...found(rust, /"detail": "([^"]+)"/g),
    ...found(rust, /Forbidden\(\s*(?:format!\()?"([^"]+?)(?:\{\})?"/g),
    ...gateway.map(({ value }) => value.detail),
  ]);
  checkSame("detail", present(bodies.map(({ value }) => named(value.detail))), details);

  const operations = Object.values(openapi.paths).flatMap((methods) => Object.values(methods));
  const statuses = new Set(operations.flatMap(({ responses = {} }) => Object.keys(responses)).filter((status) => status >= "400"));
  checkSame("status", found(page, /^\| \[([0-9]{3})\]/gm), statuses);

  const reasons = found(rust, /"(monthly [a-z ]+ cap reached)"/g);
  check(reasons.size === 4, `the search for caps found ${[...reasons]}`);
  for (const reason of reasons) check(page.includes(`\`${reason}\``), `missing reason: ${reason}`);
}

/** Returns the status, the code or detail, and the field names. */
const kind = ({ status, value }) => [status, value.error ?? value.detail, ...Object.keys(value).sort()].join(" ");

/** Checks that each body is a runner's response, or is in the code or the template. */
export function checkBodies(page, answered, { rust, gateway }) {
  const bodies = printedBodies(page);
  const answers = [...answered];
  const rest = bodies.filter((body) => {
    const at = answers.findIndex((answer) => kind(answer) === kind(body));
    if (at < 0) return true;
    const [{ name, headers, request_id, value }] = answers.splice(at, 1);
    try {
      new Printed().checkJson(body.text, JSON.stringify(value));
    } catch (error) {
      throw new Error(`docs/errors.md: ${name}: ${error.message}`);
    }
    const retryAfter = headers.get("retry-after");
    check(request_id === headers.get("x-request-id"), `${name} came without its request id`);
    const waits = body.status >= 503 || body.status === 429;
    check((retryAfter !== null) === waits, `${name} came with Retry-After: ${retryAfter}`);
    return false;
  });
  check(answers.length === 0, `missing responses: ${answers.map(({ name, value }) => `${name} ${show(value)}`)}`);

  const left = new Set(Object.keys(NOT_PROVOKED));
  for (const { name, value, status } of rest) {
    if (left.delete(name)) {
      const text = value.message ?? value.detail.replace(/^(missing power: ).*$/, "$1");
      check(rust.includes(`"${text}`), `${name}: the code does not contain ${show(text)}`);
    } else {
      const isGateways = gateway.some((answer) => answer.status === status && isDeepStrictEqual(answer.value, value));
      check(isGateways, `${name} is neither provoked nor returned by API Gateway`);
    }
  }
  check(left.size === 0, `missing bodies that are not provoked: ${[...left]}`);
  for (const { status, value } of gateway) {
    const isPrinted = bodies.some((body) => body.status === status && isDeepStrictEqual(body.value, value));
    check(isPrinted, `missing response of API Gateway: ${status} ${show(value)}`);
  }
}

/**
 * Checks that the client throws the page's class for each status, and that the page lists every
 * class and reason of the client.
 */
export async function checkClient(page, Karta, source) {
  checkSame("class", found(page, /`(Karta[A-Za-z]*Error)`/g), new Set([...found(source, /class (Karta[A-Za-z]*Error) /g)]));
  const [, failures] = source.match(/type SignatureFailure =([^;]+);/);
  for (const reason of found(failures, /"([a-z_]+)"/g)) check(page.includes(`\`${reason}\``), `missing reason: ${reason}`);

  const thrown = new Map([...page.matchAll(/^\| \[([0-9]{3})\].*`(Karta[A-Za-z]*Error)` \|$/gm)].map(([, status, name]) => [Number(status), name]));
  for (const { name, status, text } of printedBodies(page)) {
    const fetch = async () => new Response(text, { status });
    const karta = new Karta({ apiKey: "kt_live_0", baseUrl: "http://127.0.0.1", maxRetries: 0, fetch });
    const error = await karta.whoami().then(() => undefined, (error) => error);
    check(error?.name === thrown.get(status), `${name}: the client throws ${error?.name}`);
  }
}
