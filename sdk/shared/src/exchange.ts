import { KartaConnectionError, KartaError, KartaTimeoutError } from "./errors.js";
import { aborted, untilAborted } from "./retry.js";

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
  #fault: string | undefined;

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

  /**
   * Returns the result of `promise`. Throws as soon as the exchange is ended. `fault` says what is
   * missing then, if not the response.
   */
  async wait<T>(promise: T | Promise<T>, fault?: string): Promise<T> {
    this.#fault = fault;
    const result = await untilAborted(promise, this.signal);
    this.#fault = undefined;
    return result;
  }

  /** Returns the error of an exchange that failed with `cause`. */
  failure(cause: unknown): KartaError {
    if (this.#caller?.aborted) return aborted(this.#caller);
    const fault = this.#fault ?? `${this.#answered ? "incomplete" : "no"} response from ${this.#baseUrl}`;
    if (this.#timedOut) return new KartaTimeoutError(`${fault} within ${this.#limit} ms`);
    if (cause instanceof KartaError) return cause;
    return new KartaConnectionError(`${fault}: ${this.#answered ? "try again" : "check that baseUrl is correct and reachable"}`, { cause });
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
