import { KartaAbortError, KartaConnectionError, KartaRateLimitError, KartaUnavailableError } from "./errors.js";

const FIRST_BACKOFF_MS = 500;
const MAX_BACKOFF_MS = 8_000;
/** Maximum wait for a server's `Retry-After`. */
const MAX_RETRY_AFTER_MS = 30_000;

/** Returns whether the same request may succeed shortly. */
export function isTransient(error: unknown): error is KartaRateLimitError | KartaUnavailableError | KartaConnectionError {
  return (
    error instanceof KartaRateLimitError ||
    error instanceof KartaUnavailableError ||
    error instanceof KartaConnectionError
  );
}

/**
 * Returns the milliseconds to wait before retry number `attempt` (from 0): the server's
 * `Retry-After` plus exponential backoff with full jitter, so that clients that were rejected
 * together do not return together.
 */
export function delayBefore(attempt: number, error: unknown, random: () => number): number {
  const seconds = error instanceof KartaRateLimitError || error instanceof KartaUnavailableError ? error.retryAfter : 0;
  const backoff = Math.min(MAX_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** attempt);
  return Math.min(MAX_RETRY_AFTER_MS, (seconds ?? 0) * 1000) + random() * backoff;
}

/** Returns the seconds of a `Retry-After` header, or of the body's `retry_after_seconds`. */
export function retryAfter(headers: Headers, inBody: unknown, now: () => number): number | undefined {
  const header = headers.get("retry-after");
  if (header !== null && /^\d+(\.\d+)?$/.test(header)) return Number(header);
  // A date is compared with the response's Date, because the local clock may be wrong.
  const from = Date.parse(headers.get("date") ?? "");
  const seconds = (Date.parse(header ?? "") - (Number.isNaN(from) ? now() : from)) / 1000;
  if (!Number.isNaN(seconds)) return Math.max(0, seconds);
  return typeof inBody === "number" && inBody >= 0 ? inBody : undefined;
}

/** Waits `ms` milliseconds; throws KartaAbortError as soon as `signal` is aborted. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) throw aborted(signal);
    const stop = () => {
      clearTimeout(timer);
      reject(aborted(signal));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Returns the error of a call whose `signal` was aborted. */
export function aborted(signal: AbortSignal | undefined): KartaAbortError {
  return new KartaAbortError("the call was aborted by its signal", { cause: signal?.reason });
}
