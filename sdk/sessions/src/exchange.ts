import { KartaConnectionError, KartaError, KartaTimeoutError } from "./shared/errors.js";
import { aborted } from "./shared/retry.js";

/**
 * One request and its response. The caller's signal and a timer can end it at any time, also if a
 * replaced `fetch` ignores its signal.
 */
export class Exchange {
  readonly #baseUrl: string;
  readonly #caller: AbortSignal | undefined;
  readonly #controller = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #limit = 0;
  #timedOut = false;
  #answered = false;

  /** @throws {KartaAbortError} if `caller` is aborted already. */
  constructor(baseUrl: string, caller: AbortSignal | undefined) {
    if (caller?.aborted) throw aborted(caller);
    this.#baseUrl = baseUrl;
    this.#caller = caller;
    caller?.addEventListener("abort", this.#stop, { once: true });
  }

  /** Signal of the request. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Starts the timer, or starts it again. */
  limit(ms: number): void {
    this.unlimited();
    this.#limit = ms;
    this.#timer = setTimeout(() => {
      this.#timedOut = true;
      this.#stop();
    }, ms);
  }

  /** Stops the timer. */
  unlimited(): void {
    clearTimeout(this.#timer);
  }

  /** Notes that the response has started. */
  answered(): void {
    this.#answered = true;
  }

  /** Returns the result of `promise`. Throws as soon as the exchange is ended. */
  wait<T>(promise: T | Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const { signal } = this;
      const end = () => reject(new Error("the exchange was ended"));
      if (signal.aborted) end();
      signal.addEventListener("abort", end, { once: true });
      Promise.resolve(promise)
        .then(resolve, reject)
        .finally(() => signal.removeEventListener("abort", end));
    });
  }

  /** Returns the error of an exchange that failed with `cause`. */
  failure(cause: unknown): KartaError {
    if (cause instanceof KartaError) return cause;
    if (this.#caller?.aborted) return aborted(this.#caller);
    const what = this.#answered ? "incomplete response" : "no response";
    if (this.#timedOut) return new KartaTimeoutError(`${what} from ${this.#baseUrl} within ${this.#limit} ms`, { cause });
    return new KartaConnectionError(`${what} from ${this.#baseUrl}: ${this.#answered ? "try again" : "check that baseUrl is correct and reachable"}`, { cause });
  }

  /** Frees the timer and the caller's signal. */
  close(): void {
    this.unlimited();
    this.#caller?.removeEventListener("abort", this.#stop);
  }

  /** Ends the request, and the response if it is not complete. */
  abort(): void {
    this.close();
    this.#stop();
  }

  readonly #stop = (): void => this.#controller.abort();
}
