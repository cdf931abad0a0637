import { KartaAbortError, KartaConnectionError, KartaError, KartaRateLimitError, KartaUnavailableError } from "./errors.js";

const FIRST_BACKOFF_MS = 500;
const MAX_BACKOFF_MS = 8_000;
/** Maximum wait for a server's `Retry-After`. */
const MAX_RETRY_AFTER_MS = 30_000;

/** Returns whether the same request may succeed shortly. */
export function isTransient(error: unknown): error is KartaError {
  return error instanceof KartaRateLimitError || error instanceof KartaUnavailableError || error instanceof KartaConnectionError;
}

/**
 * Returns the milliseconds to wait before retry number `attempt` (from 0): the server's
 * `Retry-After` plus exponential backoff with full jitter, so that clients that were rejected
 * together do not return together.
 */
export function delayBefore(attempt: number, error: unknown, random: () => number): number {
  const seconds = (error instanceof KartaError ? error.retryAfter : undefined) ?? 0;
  const backoff = Math.min(MAX_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** attempt);
  return Math.min(MAX_RETRY_AFTER_MS, seconds * 1000) + random() * backoff;
}

/** Waits `ms` milliseconds; throws KartaAbortError as soon as `signal` is aborted. */
export async function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const passed = new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)));
  try {
    await untilAborted(passed, signal);
  } finally {
    clearTimeout(timer);
  }
}

/** Returns the result of `promise`; throws KartaAbortError as soon as `signal` is aborted. */
export function untilAborted<T>(promise: T | Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  return new Promise((resolve, reject) => {
    const end = () => reject(aborted(signal));
    if (signal?.aborted) end();
    signal?.addEventListener("abort", end, { once: true });
    Promise.resolve(promise)
      .then(resolve, reject)
      .finally(() => signal?.removeEventListener("abort", end));
  });
}

/** Returns the error of a call whose `signal` was aborted. */
export function aborted(signal: AbortSignal | undefined): KartaAbortError {
  return new KartaAbortError("the call was aborted by its signal", { cause: signal?.reason });
}
