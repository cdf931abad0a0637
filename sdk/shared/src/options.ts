import { knownOnly } from "./arguments.js";
import { KartaArgumentError } from "./errors.js";
import { environment } from "./platform.js";
import { sleep, untilAborted } from "./retry.js";

/** Options of both clients. */
export interface ClientOptions {
  /**
   * Base URL of Karta. Default: the environment variable `KARTA_BASE_URL`, or
   * `https://api.karta.sh` if it is unset.
   */
  baseUrl?: string | undefined;
  /** Timeout of each attempt in milliseconds. Default: 30,000. */
  timeout?: number | undefined;
  /** Maximum retries of a call that may be retried, 0 to 10. Default: 2. */
  maxRetries?: number | undefined;
  /** Replaces the global `fetch`, which is looked up at each call. */
  fetch?: typeof fetch | undefined;
  /** Returns a number from 0 up to 1, excluding 1, for the jitter of retries; for tests. */
  random?: (() => number) | undefined;
  /** Waits before a retry; for tests. */
  sleep?: ((ms: number, signal?: AbortSignal) => Promise<void>) | undefined;
}

/** `ClientOptions` that are validated and have defaults. */
export interface ClientSettings {
  baseUrl: string;
  timeout: number;
  maxRetries: number;
  fetch: typeof fetch;
  random: () => number;
  sleep: (ms: number, signal?: AbortSignal) => Promise<void>;
}

/** Options of a call, the last parameter of every method. Unknown names are rejected. */
export interface RequestOptions {
  /** Ends the call, which then throws KartaAbortError. */
  signal?: AbortSignal | undefined;
  /** Timeout of each attempt in milliseconds. */
  timeout?: number | undefined;
  /** Maximum retries. Ignored by calls that are never retried. */
  maxRetries?: number | undefined;
}

/** Options of a call that sends an `Idempotency-Key`. */
export interface CreateOptions extends RequestOptions {
  /**
   * 1 to 255 printable ASCII characters without leading or trailing spaces. Default: a generated
   * key. Pass a key to repeat a call after a restart.
   */
  idempotencyKey?: string | undefined;
}

export const REQUEST_OPTIONS = ["signal", "timeout", "maxRetries"] as const satisfies readonly (keyof RequestOptions)[];
export const CREATE_OPTIONS = [...REQUEST_OPTIONS, "idempotencyKey"] as const satisfies readonly (keyof CreateOptions)[];

export const CLIENT_OPTIONS = ["baseUrl", "timeout", "maxRetries", "fetch", "random", "sleep"] as const satisfies readonly (keyof ClientOptions)[];
const DEFAULT_BASE_URL = "https://api.karta.sh";
/** Maximum delay of a timer. A longer delay would fire immediately. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;

/** Validates the options of both clients and adds defaults. Throws KartaArgumentError. */
export function clientSettings(given: ClientOptions): ClientSettings {
  const send = functionOf(given.fetch, "fetch");
  const wait = functionOf(given.sleep, "sleep");
  return {
    baseUrl: baseUrlOf(given.baseUrl ?? environment("KARTA_BASE_URL") ?? DEFAULT_BASE_URL),
    timeout: timeoutOf(given.timeout ?? 30_000),
    maxRetries: maxRetriesOf(given.maxRetries ?? 2),
    // The globals are looked up at each call, because tests and instrumentation replace them later.
    fetch: (input, init) => (send ?? globalFetch())(input, init),
    random: functionOf(given.random, "random") ?? (() => Math.random()),
    sleep: wait === undefined ? sleep : (ms, signal) => untilAborted(wait(ms, signal), signal),
  };
}

/**
 * Validates the options of a call before anything is sent, and returns them. Throws
 * KartaArgumentError.
 */
export function callOptions(given: CreateOptions | null | undefined, names: readonly (keyof CreateOptions)[]): CreateOptions {
  const options = knownOnly<CreateOptions>(given, "options", names);
  const { signal, timeout, maxRetries, idempotencyKey } = options;
  signalOf(signal);
  timeoutOf(timeout ?? 1);
  maxRetriesOf(maxRetries ?? 0);
  if (idempotencyKey !== undefined) idempotencyKeyOf(idempotencyKey);
  return options;
}

function signalOf(value: unknown): void {
  if (value === undefined || value === null) return;
  const { aborted, addEventListener, removeEventListener } = value as Partial<AbortSignal>;
  if (typeof aborted === "boolean" && typeof addEventListener === "function" && typeof removeEventListener === "function") return;
  throw new KartaArgumentError("signal", "must be an AbortSignal: pass the signal of an AbortController");
}

/** Returns an option that must be a function if it is present. */
export function functionOf<T>(value: T | null | undefined, field: string): T | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value === "function") return value;
  throw new KartaArgumentError(field, "must be a function");
}

function globalFetch(): typeof fetch {
  const send = globalThis.fetch as typeof fetch | undefined;
  if (typeof send === "function") return send;
  throw new KartaArgumentError("fetch", "is missing in this runtime: use Node.js 18.17 or later, or pass a fetch function");
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

export function maxRetriesOf(value: unknown): number {
  return integerOf(value, "maxRetries", 0, 10);
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
