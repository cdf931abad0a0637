import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { afterEach, test } from "node:test";
import { inspect } from "node:util";
import { Karta, KartaArgumentError, KartaError, VERSION, type KartaOptions } from "@karta/sdk";
import { API_KEY, failure, json, scripted } from "./support.js";

const environment = { ...process.env };
afterEach(() => {
  process.env = { ...environment };
});

function refusal(options: unknown): KartaArgumentError {
  try {
    new Karta(options as KartaOptions);
  } catch (error) {
    assert.ok(error instanceof KartaArgumentError && error instanceof KartaError, String(error));
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

test("a missing key is rejected with an example", () => {
  for (const options of [undefined, {}, { apiKey: "" }, { apiKey: undefined }, { apiKey: null }]) {
    const error = refusal(options);
    assert.equal(error.field, "apiKey");
    assert.match(error.message, /is required: new Karta\(\{ apiKey: process\.env\.KARTA_API_KEY \}\)/);
  }
});

test("an invalid key is rejected and never repeated", () => {
  const secrets = ["sk-ant-0123456789abcdef", `${API_KEY}\n`, ` ${API_KEY}`, `Bearer ${API_KEY}`, "whsec_c2VjcmV0", "kt_live_ä", "kt_live_a\u0000b"];
  for (const apiKey of secrets) {
    const error = refusal({ apiKey });
    assert.equal(error.field, "apiKey");
    assert.ok(!inspect(error).includes(apiKey.trim()), "the error contains the key");
  }
  assert.equal(refusal({ apiKey: 7 }).field, "apiKey");
});

test("a misspelt client option is named", () => {
  process.env.KARTA_BASE_URL = "http://127.0.0.1:8787";
  const cases = [
    ["baseURL", "baseUrl"],
    ["base_url", "baseUrl"],
    ["BASE-URL", "baseUrl"],
    ["apikey", "apiKey"],
    ["api_key", "apiKey"],
    ["APIKey", "apiKey"],
    ["timeOut", "timeout"],
    ["max_retries", "maxRetries"],
    ["dangerouslyAllowbrowser", "dangerouslyAllowBrowser"],
  ] as const;
  for (const [name, meant] of cases) {
    for (const value of ["https://karta.test", API_KEY, undefined]) {
      const error = refusal({ apiKey: API_KEY, [name]: value });
      assert.equal(error.field, name);
      assert.match(error.message, new RegExp(`^${name} is unknown: use ${meant}\\. Known names: apiKey, baseUrl, `));
      assert.ok(!inspect(error).includes(API_KEY), "the error contains the key");
    }
  }
  assert.equal(refusal({ api_key: API_KEY }).field, "api_key");
});

test("unknown client options and other types are rejected", () => {
  const known = "apiKey, baseUrl, timeout, maxRetries, fetch, random, sleep, now, dangerouslyAllowBrowser";
  for (const more of [{ host: "https://karta.test" }, Object.create({ host: 1 }), Object.defineProperty({}, "host", { value: 1 })] as object[]) {
    const options = Object.assign(more, { apiKey: API_KEY });
    assert.equal(refusal(options).message, `host is unknown. Known names: ${known}`);
  }
  for (const options of [API_KEY, [API_KEY], Object(API_KEY), 7, true, () => ({ apiKey: API_KEY }), new Map([["apiKey", API_KEY]]), Promise.resolve({})]) {
    const error = refusal(options);
    assert.equal(error.field, "options");
    assert.match(error.message, /^options must be an object, not an? \w+\. Known names: apiKey, /);
    assert.ok(!inspect(error).includes(API_KEY), "the error contains the key");
  }
});

test("every client option is accepted", () => {
  const all: Required<KartaOptions> = {
    apiKey: API_KEY,
    baseUrl: "https://karta.test",
    timeout: 1000,
    maxRetries: 0,
    fetch: async () => json(200, {}),
    random: () => 0,
    now: () => 0,
    sleep: async () => {},
    dangerouslyAllowBrowser: false,
  };
  assert.equal(new Karta(all).baseUrl, "https://karta.test");
  const inherited = new (class {
    get apiKey() {
      return API_KEY;
    }
    now() {
      return 0;
    }
  })();
  assert.equal(new Karta(Object.assign(inherited, { baseUrl: "https://karta.test" })).baseUrl, "https://karta.test");
});

test("baseUrl is normalized and keeps its stage", async () => {
  const cases = [
    ["https://karta.test", "https://karta.test/v1/whoami"],
    ["https://karta.test/", "https://karta.test/v1/whoami"],
    ["https://karta.test/v1", "https://karta.test/v1/whoami"],
    ["https://karta.test/v1//", "https://karta.test/v1/whoami"],
    ["http://127.0.0.1:8787", "http://127.0.0.1:8787/v1/whoami"],
    ["https://id.execute-api.eu-west-1.amazonaws.com/Prod/", "https://id.execute-api.eu-west-1.amazonaws.com/Prod/v1/whoami"],
  ] as const;
  for (const [baseUrl, url] of cases) {
    const { karta, sent } = scripted([json(200, {})], { baseUrl });
    await karta.whoami();
    assert.equal(sent[0]?.url, url);
  }
});

test("an invalid baseUrl is rejected without its password", () => {
  for (const baseUrl of ["karta.test", "localhost:8787", "ftp://karta.test", "//karta.test", "https://", "https://karta.test?a=1", "https://karta.test/#a", 7]) {
    const error = refusal({ apiKey: API_KEY, baseUrl });
    assert.equal(error.field, "baseUrl", String(baseUrl));
    assert.match(error.message, /must be like https:\/\/api\.karta\.sh/);
  }
  for (const baseUrl of ["https://user:pa55word@karta.test", "https://user:pa55word@ka rta.test"]) {
    assert.ok(!inspect(refusal({ apiKey: API_KEY, baseUrl })).includes("pa55word"));
  }
});

test("baseUrl defaults to KARTA_BASE_URL, then api.karta.sh", () => {
  delete process.env.KARTA_BASE_URL;
  assert.equal(new Karta({ apiKey: API_KEY }).baseUrl, "https://api.karta.sh");
  process.env.KARTA_BASE_URL = "";
  assert.equal(new Karta({ apiKey: API_KEY }).baseUrl, "https://api.karta.sh");
  process.env.KARTA_BASE_URL = "http://127.0.0.1:8787/";
  assert.equal(new Karta({ apiKey: API_KEY }).baseUrl, "http://127.0.0.1:8787");
  assert.equal(new Karta({ apiKey: API_KEY, baseUrl: undefined }).baseUrl, "http://127.0.0.1:8787");
  assert.equal(new Karta({ apiKey: API_KEY, baseUrl: "https://karta.test" }).baseUrl, "https://karta.test");
});

test("invalid limits and functions are rejected", async () => {
  for (const timeout of [0, -1, Number.NaN, Infinity, 2 ** 31, "30" as never]) assert.equal(refusal({ apiKey: API_KEY, timeout }).field, "timeout");
  for (const maxRetries of [-1, 1.5, 11, Number.NaN]) assert.equal(refusal({ apiKey: API_KEY, maxRetries }).field, "maxRetries");
  for (const field of ["fetch", "random", "sleep", "now"]) {
    for (const value of [7, "fetch", {}]) assert.equal(refusal({ apiKey: API_KEY, [field]: value } as never).field, field);
  }
  const { karta, sent } = scripted([json(200, {})]);
  const calls = [
    (options: never) => karta.whoami(options),
    (options: never) => karta.projects.create({ slug: "my-app", name: "My app" }, options),
    (options: never) => karta.projects.update("my-app", { name: "My app" }, options),
    (options: never) => karta.projects.get("my-app", options),
  ];
  for (const call of calls) {
    for (const [field, value] of [["timeout", 0], ["maxRetries", -1], ["signal", {}], ["signal", 7], ["idempotencyKey", null]]) {
      const error = await failure(() => call({ [field as string]: value } as never));
      assert.ok(error instanceof KartaArgumentError && error.field === field, `${call} ${field}`);
    }
  }
  assert.equal(sent.length, 0);
});

test("API keys on user devices need an opt-in", () => {
  const devices = [
    { window: { document: {} } },
    { navigator: { userAgent: "Mozilla/5.0 (X11; Linux x86_64)" } },
    { navigator: { product: "ReactNative" } },
  ];
  for (const device of devices) {
    withGlobals(device, () => {
      assert.match(refusal({ apiKey: API_KEY }).message, /session token.*dangerouslyAllowBrowser/);
      new Karta({ apiKey: API_KEY, dangerouslyAllowBrowser: true });
      new Karta({ apiKey: "eyJ0.eyJz.c2ln" });
    });
  }
  for (const server of [{ navigator: { userAgent: "Node.js/22" } }, { navigator: { userAgent: "Cloudflare-Workers" } }, { window: {} }]) {
    withGlobals(server, () => void new Karta({ apiKey: API_KEY }));
  }
});

test("the key is never printed", async () => {
  const { karta } = scripted([json(401, { detail: "Unauthorized" }), new TypeError("fetch failed")], { maxRetries: 0 });
  const errors = [await failure(() => karta.whoami()), await failure(() => karta.whoami())];
  const things = [karta, karta.apiKeys, karta.projects, karta.apiKeys.list(), ...errors];
  for (const thing of things) {
    const shown = [
      String(thing),
      JSON.stringify(thing),
      inspect(thing, { depth: Infinity, showHidden: true, getters: true }),
      inspect(thing, { customInspect: false, depth: Infinity, showHidden: true, getters: true }),
      JSON.stringify(Object.entries(thing as object)),
    ];
    for (const text of shown) assert.ok(!text.includes(API_KEY) && !text.includes(API_KEY.slice(14)), text);
  }
  assert.equal(inspect(karta), "Karta(https://karta.test)");
});
