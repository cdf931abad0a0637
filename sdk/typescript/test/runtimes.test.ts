// Tests runtimes without an environment, values of other realms, two copies of the package, and
// globals that are replaced later.
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { afterEach, test } from "node:test";
import { createContext, runInContext, runInNewContext } from "node:vm";
import { buildSync } from "esbuild";
import * as sdk from "@karta/sdk";
import { API_KEY, failure, json } from "./support.js";

type Sdk = typeof sdk;
type ErrorClass = new (...args: never[]) => sdk.KartaError;

const dist = new URL("../../dist/esm/", import.meta.url);
const bundle = buildSync({
  entryPoints: [new URL("index.js", dist).pathname],
  bundle: true,
  format: "iife",
  globalName: "sdk",
  write: false,
  logLevel: "error",
}).outputFiles[0]?.text;

/**
 * Returns another copy of the package in a new realm with `globals` and the web globals that the
 * package uses.
 */
function inRuntime(globals: object = {}): Sdk {
  const web = { URL, URLSearchParams, TextEncoder, TextDecoder, AbortController, atob, crypto, setTimeout, clearTimeout };
  const context = Object.defineProperties({}, { ...Object.getOwnPropertyDescriptors(web), ...Object.getOwnPropertyDescriptors(globals) });
  return runInContext(`${bundle}; sdk`, createContext(context)) as Sdk;
}

const notCapable = () => {
  throw new Error(`NotCapable: Requires env access to "KARTA_BASE_URL", run again with the --allow-env flag`);
};
const denied = new Proxy({}, { get: notCapable, has: notCapable, getOwnPropertyDescriptor: notCapable, ownKeys: notCapable });

const globals = { ...Object.getOwnPropertyDescriptors({ fetch: globalThis.fetch, random: Math.random }) };
afterEach(() => {
  Object.defineProperty(globalThis, "fetch", globals.fetch);
  Object.defineProperty(Math, "random", globals.random);
});

test("runtimes without an environment use the default URL", () => {
  const runtimes: Record<string, object> = {
    "no process": {},
    "an undefined process": { process: undefined },
    "a null process": { process: null },
    "a process without env": { process: {} },
    "a null env": { process: { env: null } },
    "an env that is denied (Deno)": { process: { env: denied } },
    "a process whose env is denied": { process: { get env() { return notCapable(); } } },
    "a process that is denied": { get process() { return notCapable(); } },
    "a navigator that is denied": { get navigator() { return notCapable(); }, process: { env: {} } },
    "a window that is denied": { window: denied, navigator: denied },
  };
  for (const [what, runtime] of Object.entries(runtimes)) {
    assert.equal(new (inRuntime(runtime).Karta)({ apiKey: API_KEY }).baseUrl, "https://api.karta.sh", what);
  }
  const { Karta } = inRuntime({ process: { env: { KARTA_BASE_URL: "http://127.0.0.1:8787" } } });
  assert.equal(new Karta({ apiKey: API_KEY }).baseUrl, "http://127.0.0.1:8787");
});

test("the package avoids import.meta and foreign instanceof", () => {
  const files = readdirSync(dist, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".js"));
  assert.ok(files.length > 10);
  for (const name of files) {
    const code = readFileSync(new URL(name, dist), "utf8").replace(/\/\*.*?\*\/|\/\/.*$/gms, "");
    assert.doesNotMatch(code, /import\.meta/, name);
    assert.doesNotMatch(code, /instanceof (?!Karta)/, name);
  }
});

const SECRET = "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ=";
const PAYLOAD = JSON.stringify({ id: "evt_1", type: "ping", data: { text: "5 €" } });
const NOW = 1_795_330_800;
const signature = `t=${NOW},v1=${createHmac("sha256", SECRET).update(`${NOW}.${PAYLOAD}`).digest("hex")}`;

test("verifyWebhook accepts bytes of every kind and realm", async () => {
  const kinds = `({
    Uint8Array: Uint8Array.from(bytes),
    "Uint8Array within a longer buffer": Uint8Array.from([1, 2, ...bytes, 3]).subarray(2, 2 + bytes.length),
    Uint8ClampedArray: Uint8ClampedArray.from(bytes),
    DataView: new DataView(Uint8Array.from(bytes).buffer),
    ArrayBuffer: Uint8Array.from(bytes).buffer,
    SharedArrayBuffer: (() => { const shared = new SharedArrayBuffer(bytes.length); new Uint8Array(shared).set(bytes); return shared; })(),
    string: String.fromCharCode(...bytes.slice(0, 0)) + text,
  })`;
  const given = { bytes: [...Buffer.from(PAYLOAD)], text: PAYLOAD };
  const here = new Function("bytes", "text", `return ${kinds}`)(given.bytes, given.text) as Record<string, Uint8Array>;
  const there = runInNewContext(kinds, given) as Record<string, Uint8Array>;
  assert.ok(!(there.Uint8Array instanceof Uint8Array));
  for (const copy of [sdk, inRuntime()]) {
    for (const [kind, payload] of [...Object.entries(here), ...Object.entries(there), ["Buffer", Buffer.from(PAYLOAD)] as const]) {
      const event = await copy.verifyWebhook(payload, { "karta-signature": signature }, SECRET, { now: () => NOW * 1000 });
      assert.equal(event.id, "evt_1", kind);
      const changed = typeof payload === "string" ? `${payload} ` : runInNewContext("Uint8Array.of(1)");
      const error = await failure(() => copy.verifyWebhook(changed, { "karta-signature": signature }, SECRET, { now: () => NOW * 1000 }));
      assert.equal((error as sdk.KartaSignatureError).reason, "no_match", kind);
    }
  }
});

test("verifyWebhook accepts headers of every kind and realm", async () => {
  const { verifyWebhook } = inRuntime();
  const all = [
    new Headers({ "karta-signature": signature }),
    runInNewContext("({ 'Karta-Signature': [signature], other: null, count: 1 })", { signature }),
    Object.assign(Object.create(null), { "karta-signature": signature }),
    { "webhook-id": null, "webhook-timestamp": NOW, "karta-signature": signature },
  ] as sdk.WebhookHeaders[];
  for (const headers of all) assert.equal((await verifyWebhook(PAYLOAD, headers, SECRET, { now: () => NOW * 1000 })).id, "evt_1");
});

test("a failed import of WebCrypto is retried", async () => {
  let here: Crypto | undefined;
  // A vm context cannot import modules.
  const { verifyWebhook } = inRuntime({ get crypto() { return here; } });
  const verify = () => verifyWebhook(PAYLOAD, { "karta-signature": signature }, SECRET, { now: () => NOW * 1000 });
  assert.match(String(await failure(verify)), /import/);
  here = crypto;
  assert.equal((await verify()).id, "evt_1");
});

test("responses, errors and signals of another realm work", async () => {
  const { Karta } = inRuntime();
  const client = (fetch: typeof globalThis.fetch) => new Karta({ apiKey: API_KEY, baseUrl: "https://karta.test", fetch, sleep: async () => {} });
  assert.deepEqual({ ...(await client(async () => json(200, { kind: "api_key" })).whoami()) }, { kind: "api_key" });
  const conflict = await failure(() => client(async () => json(409, { error: "slug_taken" })).whoami());
  assert.ok(conflict instanceof sdk.KartaConflictError && conflict.code === "slug_taken");
  const cause = new TypeError("fetch failed");
  const lost = await failure(() => client(() => Promise.reject(cause)).whoami());
  assert.ok(lost instanceof sdk.KartaConnectionError && lost.cause === cause);
  const stop = new AbortController();
  const call = failure(() => client((_, init) => new Promise((_, reject) => init?.signal?.addEventListener("abort", () => reject(cause)))).whoami({ signal: stop.signal }));
  stop.abort("enough");
  const ended = await call;
  assert.ok(ended instanceof sdk.KartaAbortError && ended.cause === "enough");
  const dated = runInNewContext("new Date(0)") as never;
  let sent: unknown;
  await client(async (_, init) => ((sent = init?.body), json(200, {}))).apiKeys.update(1, { expires_at: dated });
  assert.equal(sent, `{"expires_at":"1970-01-01T00:00:00.000Z"}`);
});

test("instanceof works across copies for every error class", () => {
  const copies = [sdk, createRequire(import.meta.url)("@karta/sdk") as Sdk, inRuntime()];
  const classesOf = (copy: Sdk) => Object.entries(copy).filter(([name]) => /^Karta\w*Error$/.test(name)) as [string, ErrorClass][];
  assert.ok(classesOf(sdk).length >= 17);
  assert.equal(new Set(copies.map(({ KartaError }) => KartaError)).size, copies.length);
  for (const one of copies) {
    for (const [name, Made] of classesOf(one)) {
      const error = Reflect.construct(Made, ["field", "message", {}].slice(/Argument|Signature/.test(name) ? 0 : 1)) as sdk.KartaError;
      assert.equal(error.name, name);
      for (const other of copies) {
        for (const [asked, Asked] of classesOf(other)) {
          const ours = (one as unknown as Record<string, ErrorClass>)[asked] as ErrorClass;
          const expected = Made === ours || Object.prototype.isPrototypeOf.call(ours, Made);
          assert.equal(error instanceof Asked, expected, `${name} instanceof ${asked}`);
        }
      }
    }
  }
});

test("instanceof is false for everything else", () => {
  class Mine extends sdk.KartaConflictError {}
  const { KartaConflictError } = inRuntime();
  const mine = new Mine("mine");
  assert.ok(mine instanceof Mine && mine instanceof sdk.KartaConflictError && mine instanceof KartaConflictError);
  assert.equal(mine.name, "KartaConflictError");
  assert.ok(!(new sdk.KartaConflictError("ours") instanceof Mine));
  assert.ok(!(new KartaConflictError("ours") instanceof Mine));
  for (const value of [undefined, null, 7, "KartaError", {}, new Error("x"), { name: "KartaError" }, sdk.KartaError, Object.create(null), () => {}, { constructor: 7 }]) {
    assert.ok(!((value as unknown) instanceof sdk.KartaError), String(typeof value));
  }
});

test("each call looks up the global fetch", async () => {
  Reflect.deleteProperty(globalThis, "fetch");
  const karta = new sdk.Karta({ apiKey: API_KEY, baseUrl: "https://karta.test", sleep: async () => {} });
  const missing = await failure(() => karta.whoami());
  assert.ok(missing instanceof sdk.KartaArgumentError && missing.field === "fetch");
  for (const kind of ["api_key", "session"]) {
    globalThis.fetch = async () => json(200, { kind });
    assert.equal((await karta.whoami()).kind, kind);
  }
  for (const fetch of [7, "fetch", {}] as never[]) {
    assert.throws(() => new sdk.Karta({ apiKey: API_KEY, fetch }), (error) => error instanceof sdk.KartaArgumentError && error.field === "fetch");
  }
});

test("each call looks up clock and randomness", async () => {
  const waits: number[] = [];
  const answers = [json(503, {}), json(200, {})];
  const fetch = async () => answers.shift() as Response;
  const karta = new sdk.Karta({ apiKey: API_KEY, baseUrl: "https://karta.test", fetch, sleep: async (ms) => void waits.push(ms) });
  Math.random = () => 0.25;
  await karta.whoami();
  assert.deepEqual(waits, [125]);
});
