import { KartaArgumentError } from "./errors.js";
import { knownOnly } from "./json.js";
import { environment, isOnClient } from "./platform.js";
import { sleep } from "./retry.js";

/** Options of a client. Unknown names are rejected. */
export interface KartaOptions {
  /** An API key, `kt_live_…`. A session token works for `projects.whoami` only. */
  apiKey: string;
  /**
   * Base URL of the control plane. Default: the environment variable `KARTA_BASE_URL`, or
   * `https://api.karta.sh` if it is unset.
   */
  baseUrl?: string | undefined;
  /** Maximum retries of a call that may be retried. Default: 2. */
  maxRetries?: number | undefined;
  /** Timeout of each attempt in milliseconds. Default: 30,000. */
  timeout?: number | undefined;
  /**
   * Allows an API key in a browser. Anyone who can open the page can then read the key and control
   * the organization.
   */
  dangerouslyAllowBrowser?: boolean | undefined;
  /** Replaces the global `fetch`, which is looked up at each call. */
  fetch?: typeof fetch | undefined;
  /** Returns a number from 0 up to 1, excluding 1, for the jitter of retries; for tests. */
  random?: (() => number) | undefined;
  /** Returns milliseconds since 1970; for tests. */
  now?: (() => number) | undefined;
  /** Waits before a retry; for tests. */
  sleep?: ((ms: number, signal?: AbortSignal) => Promise<void>) | undefined;
}

/** Options of a call, the last parameter of every method. Unknown names are rejected. */
export interface RequestOptions {
  /** Aborts the call, which then throws KartaAbortError. */
  signal?: AbortSignal | undefined;
  /** Timeout of each attempt in milliseconds. */
  timeout?: number | undefined;
  /** Maximum retries. Ignored by calls that are never retried. */
  maxRetries?: number | undefined;
}

/** Options of a call that creates something. */
export interface CreateOptions extends RequestOptions {
  /**
   * 1 to 255 printable ASCII characters without leading or trailing spaces. Default: a generated
   * key. Pass a key to repeat a create after a restart.
   */
  idempotencyKey?: string | undefined;
}

export const REQUEST_OPTIONS = ["signal", "timeout", "maxRetries"] as const satisfies readonly (keyof RequestOptions)[];
export const CREATE_OPTIONS = [...REQUEST_OPTIONS, "idempotencyKey"] as const satisfies readonly (keyof CreateOptions)[];

/** Validated options with defaults. */
export interface Settings {
  apiKey: string;
  baseUrl: string;
  maxRetries: number;
  timeout: number;
  fetch: typeof fetch;
  random: () => number;
  now: () => number;
  sleep: (ms: number, signal?: AbortSignal) => Promise<void>;
}

const CLIENT_OPTIONS = [
  "apiKey",
  "baseUrl",
  "timeout",
  "maxRetries",
  "fetch",
  "random",
  "now",
  "sleep",
  "dangerouslyAllowBrowser",
] as const satisfies readonly (keyof KartaOptions)[];
const DEFAULT_BASE_URL = "https://api.karta.sh";
/** Maximum delay of a timer. A longer delay would fire immediately. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;

/** Validates `options` and adds defaults. Throws KartaArgumentError. */
export function settingsOf(options: KartaOptions): Settings {
  const given = knownOnly<KartaOptions>(options, "options", CLIENT_OPTIONS);
  const { fetch: send, now, random } = given;
  if (typeof (send ?? globalFetch) !== "function") throw new KartaArgumentError("fetch", "must be a function like the global fetch");
  return {
    apiKey: apiKeyOf(given.apiKey, given.dangerouslyAllowBrowser === true),
    baseUrl: baseUrlOf(given.baseUrl ?? environment("KARTA_BASE_URL") ?? DEFAULT_BASE_URL),
    maxRetries: maxRetriesOf(given.maxRetries ?? 2),
    timeout: timeoutOf(given.timeout ?? 30_000),
    // The globals are looked up at each call, because tests and instrumentation replace them later.
    fetch: (input, init) => (send ?? globalFetch())(input, init),
    random: random ?? (() => Math.random()),
    now: now ?? (() => Date.now()),
    sleep: given.sleep ?? sleep,
  };
}

function globalFetch(): typeof fetch {
  const send = globalThis.fetch as typeof fetch | undefined;
  if (typeof send === "function") return send;
  throw new KartaArgumentError("fetch", "is missing in this runtime: use Node.js 18.17 or later, or pass a fetch function");
}

/** Returns a valid key. Messages never repeat the value, because it may be another secret. */
function apiKeyOf(value: unknown, browserAllowed: boolean): string {
  if (value === undefined || value === null || value === "") {
    throw new KartaArgumentError("apiKey", "is required: new Karta({ apiKey: process.env.KARTA_API_KEY })");
  }
  if (typeof value !== "string") throw new KartaArgumentError("apiKey", "must be a string: pass an API key, which starts with kt_live_");
  if (value !== value.trim()) throw new KartaArgumentError("apiKey", "must not start or end with whitespace: trim it");
  if (/^[\w-]+\.[\w-]+\.[\w-]+$/.test(value)) return value;
  if (!/^kt_live_[0-9A-Za-z]+$/.test(value)) {
    throw new KartaArgumentError("apiKey", "must be an API key: kt_live_ and then only letters and digits");
  }
  if (isOnClient() && !browserAllowed) {
    throw new KartaArgumentError(
      "apiKey",
      "must not be used in a browser or an app, because anyone who finds it controls the organization. Call Karta from your backend, and give " +
        "the browser a session token (sessionTokens.mint). If only you can open this page, pass dangerouslyAllowBrowser: true",
    );
  }
  return value;
}

/** Returns the base URL without `/v1` and without a trailing slash. */
function baseUrlOf(value: unknown): string {
  const like = "must be like https://api.karta.sh";
  if (typeof value !== "string") throw new KartaArgumentError("baseUrl", `${like}: it is not a string`);
  if (!/^https?:\/\//i.test(value)) throw new KartaArgumentError("baseUrl", `${like}: it must start with https:// or http://`);
  let url: URL;
  try {
    url = new URL(value);
  } catch {
    // Without the cause, because it shows the whole text, which may contain a password.
    throw new KartaArgumentError("baseUrl", `${like}: it is not a valid URL`);
  }
  if (url.username !== "" || url.password !== "") throw new KartaArgumentError("baseUrl", `${like}: it must not contain a user or password`);
  if (url.search !== "" || url.hash !== "") throw new KartaArgumentError("baseUrl", `${like}: it must not contain ? or #`);
  return url.origin + url.pathname.replace(/\/+$/, "").replace(/\/v1$/, "").replace(/\/+$/, "");
}

export function maxRetriesOf(value: number): number {
  if (Number.isInteger(value) && value >= 0 && value <= 10) return value;
  throw new KartaArgumentError("maxRetries", "must be an integer from 0 to 10");
}

export function timeoutOf(value: number): number {
  if (typeof value === "number" && value > 0 && value <= MAX_TIMEOUT_MS) return value;
  throw new KartaArgumentError("timeout", `must be a number of milliseconds above 0, at most ${MAX_TIMEOUT_MS}`);
}

export function idempotencyKeyOf(value: string): string {
  // HTTP strips spaces around a header's value, so keys that differ only in them would be one key
  // to the server.
  if (typeof value === "string" && /^[\x20-\x7e]{1,255}$/.test(value) && value === value.trim()) return value;
  throw new KartaArgumentError("idempotencyKey", "must be 1 to 255 printable ASCII characters without leading or trailing spaces");
}
