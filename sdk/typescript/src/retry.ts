import { KartaAbortError, KartaConnectionError, KartaRateLimitError, KartaUnavailableError } from "./errors.js";

const FIRST_BACKOFF_MS = 500;
const LONGEST_BACKOFF_MS = 8_000;
/** A server that asks for more than this is not waited for any longer. */
const LONGEST_RETRY_AFTER_MS = 30_000;

/** Whether the same request may go well in a moment. */
export function isTransient(error: unknown): error is KartaRateLimitError | KartaUnavailableError | KartaConnectionError {
  return (
    error instanceof KartaRateLimitError ||
    error instanceof KartaUnavailableError ||
    error instanceof KartaConnectionError
  );
}

/**
 * Milliseconds before retry number `attempt` (from 0): exponential backoff with full jitter, on top of what the server asked for, so that those who
 * were turned away together do not come back together.
 */
export function delayBefore(attempt: number, error: unknown, random: () => number): number {
  const asked = error instanceof KartaRateLimitError || error instanceof KartaUnavailableError ? error.retryAfter : 0;
  const backoff = Math.min(LONGEST_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** attempt);
  return Math.min(LONGEST_RETRY_AFTER_MS, (asked ?? 0) * 1000) + random() * backoff;
}

/** Seconds of a `Retry-After` header, or of the body's `retry_after_seconds`. */
export function retryAfter(headers: Headers, inBody: unknown, now: () => number): number | undefined {
  const header = headers.get("retry-after");
  if (header !== null && /^\d+(\.\d+)?$/.test(header)) return Number(header);
  // A date counts from the server's own, as this machine's clock may be off.
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

/** The error for a call whose `signal` was aborted. */
export function aborted(signal: AbortSignal | undefined): KartaAbortError {
  return new KartaAbortError("the call was aborted by its signal", { cause: signal?.reason });
}
