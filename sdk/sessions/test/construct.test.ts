// Tests the client's options, and that it never shows its credential.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { afterEach, test } from "node:test";
import { inspect } from "node:util";
import { KartaArgumentError, KartaError, KartaSessions, VERSION, type KartaSessionsOptions } from "@karta/sessions";
import { API_KEY, BASE_URL, FRAMES, SESSION, TOKEN, collect, failure, json, scripted, streamed } from "./support.js";

const environment = { ...process.env };
afterEach(() => {
  process.env = { ...environment };
});

function refusal(options: unknown): KartaArgumentError {
  try {
    new KartaSessions(options as KartaSessionsOptions);
  } catch (error) {
    assert.ok(error instanceof KartaArgumentError && error instanceof KartaError, String(error));
    assert.equal(error.message.indexOf(error.field), 0);
    return error;
  }
  throw new Error("the options were accepted");
}

/** Runs `body` with these globals, such as those of an end user's device. */
function withGlobals(globals: Record<string, unknown>, body: () => void): void {
  const kept = Object.keys(globals).map((name) => [name, Object.getOwnPropertyDescriptor(globalThis, name)] as const);
  for (const [name, value] of Object.entries(globals)) Object.defineProperty(globalThis, name, { value, configurable: true });
  try {
    body();
  } finally {
    for (const [name, before] of kept) {
      if (before) Object.defineProperty(globalThis, name, before);
      else Reflect.deleteProperty(globalThis, name);
    }
  }
}

test("VERSION equals the version in package.json", () => {
  const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as { version: string };
  assert.equal(VERSION, version);
});

test("a missing credential is rejected with an example", () => {
  for (const options of [undefined, null, {}, { apiKey: "" }, { apiKey: null }, { project: "my-app" }]) {
    assert.match(refusal(options).message, /^apiKey or sessionToken is required: new KartaSessions\(/);
  }
});

test("two credentials are rejected", () => {
  assert.match(refusal({ apiKey: API_KEY, sessionToken: TOKEN, project: "my-app" }).message, /pass one$/);
});

test("an invalid credential is rejected and never repeated", () => {
  for (const apiKey of ["sk-ant-0123456789abcdef", `${API_KEY}\n`, ` ${API_KEY}`, TOKEN, "kt_live_ä"]) {
    const error = refusal({ apiKey });
    assert.equal(error.field, "apiKey");
    assert.ok(!inspect(error).includes(apiKey.trim()), "the error contains the key");
  }
  assert.equal(refusal({ apiKey: 7 }).field, "apiKey");
  for (const sessionToken of [API_KEY, `${TOKEN}\n`, `Bearer ${TOKEN}`, "", "a.b", 7, {}]) {
    const error = refusal({ sessionToken, project: "my-app" });
    assert.equal(error.field, "sessionToken");
    assert.ok(!inspect(error).includes(API_KEY) && !inspect(error).includes(TOKEN), "the error contains the token");
  }
});

test("a session token needs a project", () => {
  assert.equal(refusal({ sessionToken: TOKEN }).field, "project");
  for (const project of ["", "..", "a/b", "A", "ä", "a".repeat(64), 7, null]) {
    assert.equal(refusal({ sessionToken: TOKEN, project }).field, "project");
    assert.equal(refusal({ apiKey: API_KEY, project }).field, "project");
  }
});

test("a project that is undefined is rejected", () => {
  assert.equal(refusal({ apiKey: API_KEY, project: process.env.UNSET }).message, "project must not be undefined: pass a value or omit the field");
  assert.equal(refusal({ sessionToken: TOKEN, project: undefined }).field, "project");
});

test("misspelt and unknown options are named", () => {
  for (const [name, meant] of [["baseURL", "baseUrl"], ["base_url", "baseUrl"], ["apikey", "apiKey"], ["session_token", "sessionToken"], ["max_retries", "maxRetries"]]) {
    const error = refusal({ apiKey: API_KEY, [String(name)]: API_KEY });
    assert.equal(error.field, name);
    assert.match(error.message, new RegExp(`^${name} is unknown: use ${meant}\\. Known names: apiKey, project, `));
    assert.ok(!inspect(error).includes(API_KEY));
  }
  assert.match(refusal({ apiKey: API_KEY, host: "https://karta.test" }).message, /^host is unknown\. Known names: /);
  for (const options of [API_KEY, 7, true, () => ({}), [API_KEY]]) {
    const error = refusal(options);
    assert.equal(error.field, "options");
    assert.ok(!inspect(error).includes(API_KEY));
  }
});

test("baseUrl is normalized and keeps its stage", async () => {
  const cases = [
    ["https://karta.test/", "https://karta.test/v1/sessions/"],
    ["https://karta.test/v1//", "https://karta.test/v1/sessions/"],
    ["http://127.0.0.1:8787", "http://127.0.0.1:8787/v1/sessions/"],
    ["https://id.execute-api.eu-west-1.amazonaws.com/Prod/", "https://id.execute-api.eu-west-1.amazonaws.com/Prod/v1/sessions/"],
  ] as const;
  for (const [baseUrl, url] of cases) {
    const { sessions, sent } = scripted([json(200, {})], { baseUrl });
    await sessions.get(SESSION);
    assert.equal(sent[0]?.url, url + SESSION);
  }
});

test("an invalid baseUrl is rejected without its password", () => {
  const invalid = ["karta.test", "ftp://karta.test", "//karta.test", "https://", "https://karta.test?a=1", "https://karta.test/#a", 7];
  for (const baseUrl of [...invalid, "https://user:pa55word@karta.test", "https://user:pa55word@ka rta.test"]) {
    const error = refusal({ apiKey: API_KEY, baseUrl });
    assert.equal(error.field, "baseUrl", String(baseUrl));
    assert.ok(!inspect(error).includes("pa55word"));
  }
});

test("baseUrl defaults to KARTA_BASE_URL, then api.karta.sh", () => {
  delete process.env.KARTA_BASE_URL;
  assert.equal(new KartaSessions({ apiKey: API_KEY }).baseUrl, "https://api.karta.sh");
  process.env.KARTA_BASE_URL = "http://127.0.0.1:8787/";
  assert.equal(new KartaSessions({ apiKey: API_KEY, baseUrl: undefined }).baseUrl, "http://127.0.0.1:8787");
  assert.equal(new KartaSessions({ apiKey: API_KEY, baseUrl: BASE_URL }).baseUrl, BASE_URL);
});

test("invalid limits and functions are rejected", async () => {
  for (const field of ["timeout", "turnTimeout", "idleTimeout"]) {
    for (const value of [0, -1, Number.NaN, Infinity, 2 ** 31, "30"]) assert.equal(refusal({ apiKey: API_KEY, [field]: value }).field, field);
  }
  for (const value of [-1, 1.5, 101, Number.NaN]) {
    assert.equal(refusal({ apiKey: API_KEY, maxRetries: value }).field, "maxRetries");
    assert.equal(refusal({ apiKey: API_KEY, maxReconnects: value }).field, "maxReconnects");
  }
  for (const field of ["fetch", "random", "sleep"]) {
    for (const value of [7, "fetch", {}]) assert.equal(refusal({ apiKey: API_KEY, [field]: value }).field, field);
  }
  const { sessions, sent } = scripted([json(200, {})]);
  const calls = [
    (options: never) => sessions.get(SESSION, options),
    (options: never) => sessions.create({}, options),
    (options: never) => sessions.send(SESSION, { text: "Hi" }, options),
    async (options: never) => void sessions.stream(SESSION, { text: "Hi" }, options),
    async (options: never) => void sessions.follow(SESSION, {}, options),
    async (options: never) => void sessions.list({}, options),
  ];
  for (const call of calls) {
    for (const [field, value] of [["timeout", 0], ["maxRetries", -1], ["maxRetries", 11], ["retries", 1], ["signal", {}], ["signal", "x"], ["idempotencyKey", null]]) {
      const error = await failure(() => call({ [field as string]: value } as never));
      assert.ok(error instanceof KartaArgumentError && error.field === field, `${call} ${field}`);
    }
  }
  assert.equal(sent.length, 0);
});

test("API keys on user devices need an opt-in", () => {
  const devices = [{ window: { document: {} } }, { navigator: { userAgent: "Mozilla/5.0 (X11; Linux x86_64)" } }, { navigator: { product: "ReactNative" } }];
  for (const device of devices) {
    withGlobals(device, () => {
      assert.match(refusal({ apiKey: API_KEY }).message, /session token.*dangerouslyAllowBrowser/);
      new KartaSessions({ apiKey: API_KEY, dangerouslyAllowBrowser: true });
      new KartaSessions({ project: "my-app", sessionToken: TOKEN });
    });
  }
  for (const server of [{ navigator: { userAgent: "Node.js/22" } }, { navigator: { userAgent: "Cloudflare-Workers" } }, { window: {} }]) {
    withGlobals(server, () => void new KartaSessions({ apiKey: API_KEY }));
  }
});

test("the credential is never printed", async () => {
  for (const options of [{ apiKey: API_KEY }, { project: "my-app", sessionToken: TOKEN }, { project: "my-app", sessionToken: () => TOKEN }]) {
    const echo = json(422, { message: `echo ${TOKEN} ${API_KEY} Bearer ${TOKEN}` });
    const { sessions } = scripted([json(401, { detail: "Unauthorized" }), new TypeError("fetch failed"), echo], { maxRetries: 0, ...options });
    const errors = [];
    for (let count = 0; count < 4; count++) errors.push(await failure(() => sessions.get(SESSION)));
    const stream = scripted([streamed(FRAMES)], options).sessions.stream(SESSION, { text: "hi" });
    await collect(stream);
    for (const thing of [sessions, sessions.list(), stream, ...errors]) {
      const shown = [
        String(thing),
        JSON.stringify(thing),
        inspect(thing, { depth: Infinity, showHidden: true, getters: true }),
        inspect(thing, { customInspect: false, depth: Infinity, showHidden: true, getters: true }),
      ];
      for (const text of shown) assert.ok(!text.includes(API_KEY) && !text.includes(TOKEN) && !text.includes(API_KEY.slice(14)), text);
    }
    assert.equal(inspect(sessions), "KartaSessions(https://karta.test)");
  }
});
