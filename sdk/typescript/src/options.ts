import { KartaArgumentError } from "./errors.js";
import { environment, isOnClient } from "./platform.js";
import { sleep } from "./retry.js";

/** How a client is made. */
export interface KartaOptions {
  /** An API key, `kt_live_…`; for `projects.whoami` alone a session token will do. */
  apiKey: string;
  /** Where the control plane is. Unless given, the environment variable `KARTA_BASE_URL`, else `https://api.karta.sh`. */
  baseUrl?: string | undefined;
  /** How often a call that may be repeated is tried again: 2 unless given. */
  maxRetries?: number | undefined;
  /** Milliseconds that each attempt may take: 30,000 unless given. */
  timeout?: number | undefined;
  /** Allows an API key in a browser. Whoever can open the page can then take the key, and with it the organization. */
  dangerouslyAllowBrowser?: boolean | undefined;
  /** In the place of the global `fetch`, which is looked up at each call. */
  fetch?: typeof fetch | undefined;
  /** A number from 0 up to 1, for the jitter of retries; for tests. */
  random?: (() => number) | undefined;
  /** Milliseconds since 1970; for tests. */
  now?: (() => number) | undefined;
  /** Waits before a retry; for tests. */
  sleep?: ((ms: number, signal?: AbortSignal) => Promise<void>) | undefined;
}

/** What every method takes last. */
export interface RequestOptions {
  /** Ends the call with KartaAbortError. */
  signal?: AbortSignal | undefined;
  /** Milliseconds that each attempt may take. */
  timeout?: number | undefined;
  /** How often to try again; without effect where a repeat could have an effect of its own. */
  maxRetries?: number | undefined;
}

/** What every method that creates takes last. */
export interface CreateOptions extends RequestOptions {
  /** 1 to 255 printable ASCII characters without blanks around them; generated unless given. Give your own to repeat a create across restarts. */
  idempotencyKey?: string | undefined;
}

/** Options with every default filled in. */
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

const DEFAULT_BASE_URL = "https://api.karta.sh";
/** What a timer can count; beyond it, it would go off at once. */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1;

/** Judges `options` and fills in what is absent. Throws KartaArgumentError. */
export function settingsOf(options: KartaOptions): Settings {
  // Whoever writes plain JavaScript may leave everything out.
  const given: Partial<KartaOptions> = (options as KartaOptions | undefined) ?? {};
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
  throw new KartaArgumentError("fetch", "is missing in this runtime: use Node.js 18.17 or later, or pass one");
}

/** Messages never repeat the value: it may be another secret. */
function apiKeyOf(value: unknown, browserAllowed: boolean): string {
  if (value === undefined || value === null || value === "") {
    throw new KartaArgumentError("apiKey", "is required: new Karta({ apiKey: process.env.KARTA_API_KEY })");
  }
  if (typeof value !== "string") throw new KartaArgumentError("apiKey", "must be a string that starts with kt_live_");
  if (value !== value.trim()) throw new KartaArgumentError("apiKey", "must not have blanks or line breaks around it");
  if (/^[\w-]+\.[\w-]+\.[\w-]+$/.test(value)) return value;
  if (!/^kt_live_[0-9A-Za-z]+$/.test(value)) {
    throw new KartaArgumentError("apiKey", "must be kt_live_ and letters and digits, as it was shown when it was created");
  }
  if (isOnClient() && !browserAllowed) {
    throw new KartaArgumentError(
      "apiKey",
      "must not be in a browser or an app: it opens the whole organization to whoever finds it. Call Karta from your backend, and give the " +
        "browser a session token (sessionTokens.mint). If nobody else can open this page, pass dangerouslyAllowBrowser: true",
    );
  }
  return value;
}

/** Without `/v1` and without a slash at its end. */
function baseUrlOf(value: unknown): string {
  const like = "must be like https://api.karta.sh";
  if (typeof value !== "string") throw new KartaArgumentError("baseUrl", `${like}: a string`);
  if (!/^https?:\/\//i.test(value)) throw new KartaArgumentError("baseUrl", `${like}: it must start with https:// or http://`);
  let url: URL;
  try {
    url = new URL(value);
  } catch {
    // Without the cause, which shows the whole text: a password may be in it.
    throw new KartaArgumentError("baseUrl", `${like}: it is no URL`);
  }
  if (url.username !== "" || url.password !== "") throw new KartaArgumentError("baseUrl", `${like}: without a user or a password`);
  if (url.search !== "" || url.hash !== "") throw new KartaArgumentError("baseUrl", `${like}: without ? and #`);
  return url.origin + url.pathname.replace(/\/+$/, "").replace(/\/v1$/, "").replace(/\/+$/, "");
}

export function maxRetriesOf(value: number): number {
  if (Number.isInteger(value) && value >= 0 && value <= 10) return value;
  throw new KartaArgumentError("maxRetries", "must be a whole number from 0 to 10");
}

export function timeoutOf(value: number): number {
  if (typeof value === "number" && value > 0 && value <= LONGEST_TIMEOUT_MS) return value;
  throw new KartaArgumentError("timeout", `must be milliseconds, more than 0 and at most ${LONGEST_TIMEOUT_MS}`);
}

export function idempotencyKeyOf(value: string): string {
  // HTTP drops blanks around a header's value: two keys that differ in them would be one key to the server.
  if (typeof value === "string" && /^[\x20-\x7e]{1,255}$/.test(value) && value === value.trim()) return value;
  throw new KartaArgumentError("idempotencyKey", "must be 1 to 255 printable ASCII characters without blanks around them");
}
