import { KartaArgumentError } from "./errors.js";
import { environment, isOnClient } from "./platform.js";

/** Options of every client. Unknown names are rejected. */
export interface CommonOptions {
  /**
   * Base URL of Karta. Default: the environment variable `KARTA_BASE_URL`, or
   * `https://api.karta.sh` if it is unset.
   */
  baseUrl?: string | undefined;
  /** Timeout of each attempt in milliseconds; for streams, until they start. Default: 30,000. */
  timeout?: number | undefined;
  /** Timeout of each attempt of `send` in milliseconds. Default: 300,000. */
  turnTimeout?: number | undefined;
  /**
   * Maximum silence of a stream in milliseconds. The server sends a comment after 15 seconds of
   * silence. Default: 45,000.
   */
  idleTimeout?: number | undefined;
  /** Maximum retries of a call that may be retried, 0 to 10. Default: 2. */
  maxRetries?: number | undefined;
  /** Maximum attempts in a row to resume a stream that bring no event, 0 to 100. Default: 10. */
  maxReconnects?: number | undefined;
  /** Replaces the global `fetch`, which is looked up at each call. */
  fetch?: typeof fetch | undefined;
  /** Returns a number from 0 up to 1, excluding 1, for the jitter of retries; for tests. */
  random?: (() => number) | undefined;
  /** Waits before a retry; for tests. */
  sleep?: ((ms: number, signal?: AbortSignal) => Promise<void>) | undefined;
}

/** Options of a client with an API key. */
export interface ApiKeyOptions extends CommonOptions {
  /** An API key, `kt_live_…`. */
  apiKey: string;
  /** Slug of the project whose sessions to use. Default: all sessions of the organization. */
  project?: string | undefined;
  /**
   * Allows the API key in a browser. Anyone who can open the page can then read the key and control
   * the organization.
   */
  dangerouslyAllowBrowser?: boolean | undefined;
  sessionToken?: undefined;
}

/** Returns a new session token, from your backend. */
export type TokenProvider = () => string | Promise<string>;

/** Options of a client with a session token. */
export interface SessionTokenOptions extends CommonOptions {
  /** Slug of the token's project. */
  project: string;
  /**
   * A session token, or a function that fetches one. The function is called before the first
   * request, and again when the server rejects the token.
   */
  sessionToken: string | TokenProvider;
  apiKey?: undefined;
  dangerouslyAllowBrowser?: undefined;
}

export type KartaSessionsOptions = ApiKeyOptions | SessionTokenOptions;

/** Options of a call, the last parameter of every method. Unknown names are rejected. */
export interface RequestOptions {
  /** Ends the call, which then throws KartaAbortError. A turn runs on. */
  signal?: AbortSignal | undefined;
  /** Timeout of each attempt in milliseconds; for streams, until they start. */
  timeout?: number | undefined;
  /** Maximum retries. Ignored by calls that are never retried. */
  maxRetries?: number | undefined;
}

/** Options of a call that creates a session or starts a turn. */
export interface CreateOptions extends RequestOptions {
  /**
   * 1 to 255 printable ASCII characters without leading or trailing spaces. Default: a generated
   * key. Pass a key to repeat a call after a restart.
   */
  idempotencyKey?: string | undefined;
}

export const REQUEST_OPTIONS = ["signal", "timeout", "maxRetries"] as const satisfies readonly (keyof RequestOptions)[];
export const CREATE_OPTIONS = [...REQUEST_OPTIONS, "idempotencyKey"] as const satisfies readonly (keyof CreateOptions)[];

/** Validated options with defaults. */
export interface Settings {
  baseUrl: string;
  /** Path of the sessions, in the flat family or in a project's. */
  path: string;
  token: string | TokenProvider;
  timeout: number;
  turnTimeout: number;
  idleTimeout: number;
  maxRetries: number;
  maxReconnects: number;
  fetch: typeof fetch;
  random: () => number;
  sleep: ((ms: number, signal?: AbortSignal) => Promise<void>) | undefined;
}

const CLIENT_OPTIONS = [
  "baseUrl",
  "apiKey",
  "project",
  "sessionToken",
  "timeout",
  "turnTimeout",
  "idleTimeout",
  "maxRetries",
  "maxReconnects",
  "fetch",
  "random",
  "sleep",
  "dangerouslyAllowBrowser",
] as const;
const DEFAULT_BASE_URL = "https://api.karta.sh";
/** Maximum delay of a timer. A longer delay would fire immediately. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;

/** Validates `options` and adds defaults. Throws KartaArgumentError. */
export function settingsOf(options: KartaSessionsOptions): Settings {
  const given = knownOnly<ApiKeyOptions | SessionTokenOptions>(options, "options", CLIENT_OPTIONS);
  const { apiKey, project, sessionToken, fetch: send } = given;
  if (send !== undefined && typeof send !== "function") throw new KartaArgumentError("fetch", "must be a function like the global fetch");
  if (apiKey !== undefined && sessionToken !== undefined) throw new KartaArgumentError("apiKey", "and sessionToken exclude each other: pass one");
  const isToken = sessionToken !== undefined;
  if (isToken && project === undefined) throw new KartaArgumentError("project", "is required with a session token: pass the project's slug");
  return {
    baseUrl: baseUrlOf(given.baseUrl ?? environment("KARTA_BASE_URL") ?? DEFAULT_BASE_URL),
    path: project === undefined ? "/v1/sessions" : `/v1/projects/${slugOf(project)}/sessions`,
    token: isToken ? tokenOf(sessionToken) : apiKeyOf(apiKey, given.dangerouslyAllowBrowser === true),
    timeout: timeoutOf(given.timeout ?? 30_000),
    turnTimeout: timeoutOf(given.turnTimeout ?? 300_000, "turnTimeout"),
    idleTimeout: timeoutOf(given.idleTimeout ?? 45_000, "idleTimeout"),
    maxRetries: integerOf(given.maxRetries ?? 2, "maxRetries", 0, 10),
    maxReconnects: integerOf(given.maxReconnects ?? 10, "maxReconnects", 0, 100),
    // The globals are looked up at each call, because tests and instrumentation replace them later.
    fetch: (input, init) => (send ?? globalFetch())(input, init),
    random: given.random ?? (() => Math.random()),
    sleep: given.sleep,
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
    throw new KartaArgumentError("apiKey", "or sessionToken is required: new KartaSessions({ apiKey: process.env.KARTA_API_KEY })");
  }
  if (typeof value !== "string" || !/^kt_live_[0-9A-Za-z]+$/.test(value)) {
    throw new KartaArgumentError("apiKey", "must be kt_live_ followed by letters and digits. Pass a session token as sessionToken");
  }
  if (isOnClient() && !browserAllowed) {
    throw new KartaArgumentError(
      "apiKey",
      "must not be used in a browser or an app, because anyone who finds it controls the organization. Use a session token " +
        "from your backend. If only you can open this page, pass dangerouslyAllowBrowser: true",
    );
  }
  return value;
}

function tokenOf(value: unknown): string | TokenProvider {
  return typeof value === "function" ? (value as TokenProvider) : sessionTokenOf(value);
}

/** Returns a valid session token. Messages never repeat the value. */
export function sessionTokenOf(value: unknown): string {
  if (typeof value === "string" && /^[\w-]+\.[\w-]+\.[\w-]+$/.test(value)) return value;
  throw new KartaArgumentError("sessionToken", "must be a session token (three parts with dots between), or a function that returns one");
}

/** Returns the base URL without `/v1` and without a trailing slash. */
function baseUrlOf(value: unknown): string {
  const like = "must be like https://api.karta.sh";
  if (typeof value !== "string" || !/^https?:\/\//i.test(value)) throw new KartaArgumentError("baseUrl", `${like}: it must start with https:// or http://`);
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

function slugOf(value: unknown): string {
  if (typeof value === "string" && /^[a-z0-9-]{1,63}$/.test(value)) return value;
  throw new KartaArgumentError("project", "must be a project's slug: 1 to 63 characters of a-z, 0-9 and -");
}

export function timeoutOf(value: unknown, field = "timeout"): number {
  if (typeof value === "number" && value > 0 && value <= MAX_TIMEOUT_MS) return value;
  throw new KartaArgumentError(field, `must be a number of milliseconds above 0, at most ${MAX_TIMEOUT_MS}`);
}

export function integerOf(value: unknown, field: string, min: number, max: number): number {
  if (Number.isInteger(value) && (value as number) >= min && (value as number) <= max) return value as number;
  throw new KartaArgumentError(field, `must be an integer from ${min} to ${max}`);
}

export function idempotencyKeyOf(value: unknown): string {
  // HTTP strips spaces around a header's value, so keys that differ only in them would be one key
  // to the server.
  if (typeof value === "string" && /^[\x20-\x7e]{1,255}$/.test(value) && value === value.trim()) return value;
  throw new KartaArgumentError("idempotencyKey", "must be 1 to 255 printable ASCII characters without leading or trailing spaces");
}

/**
 * Returns `given`, or {} for the `undefined` or `null` that plain JavaScript may pass. Throws
 * KartaArgumentError for another type and for a field that is not one of `names`, because it would
 * have no effect.
 */
export function knownOnly<T extends object>(given: T | null | undefined, argument: string, names: readonly string[]): Partial<T> {
  const fields: Partial<T> = given ?? {};
  const known = `Known names: ${names.join(", ")}`;
  if (typeof fields !== "object" || Array.isArray(fields)) throw new KartaArgumentError(argument, `must be an object. ${known}`);
  for (const name in fields) {
    if (names.includes(name)) continue;
    const meant = names.find((each) => lettersOf(each) === lettersOf(name));
    throw new KartaArgumentError(name, `is unknown${meant === undefined ? "" : `: use ${meant}`}. ${known}`);
  }
  return fields;
}

/** Returns `name` without case and separators: `base_url` and `baseURL` are equal. */
function lettersOf(name: string): string {
  return name.toLowerCase().replace(/[-_]/g, "");
}
