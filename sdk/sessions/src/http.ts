import { Credential } from "./credential.js";
import { endedTurn, isTransient, turnFailure } from "./failure.js";
import type { Settings } from "./options.js";
import { KartaArgumentError, KartaAuthError, type KartaError } from "./shared/errors.js";
import { Exchange } from "./shared/exchange.js";
import { failureOf } from "./shared/failure.js";
import { isObject, parsedJson } from "./shared/json.js";
import { pageOf, type Page } from "./shared/list.js";
import type { RequestOptions } from "./shared/options.js";
import { isOnClient } from "./shared/platform.js";
import { REDACTED, redactText } from "./shared/redact.js";
import { delayBefore } from "./shared/retry.js";
import type { TurnEventData } from "./types.js";
import { VERSION } from "./version.js";

/** Longer than any turn takes. */
const WHOLE_STREAM_MS = 900_000;

/** A request to the sessions of the client. */
export interface Call {
  method: "GET" | "POST" | "DELETE";
  /** Path below the sessions, such as `/sess_1/messages`. */
  path: string;
  query?: Readonly<Record<string, string | number | undefined>> | undefined;
  body?: object | undefined;
  /**
   * Key under which the server runs a POST once. Only messages accept one. A POST without a key is
   * never retried.
   */
  idempotencyKey?: string | undefined;
  /**
   * Called with `true` before each attempt, and with `false` when the server rejected its token before
   * anything ran and the token is replaced.
   */
  onSend?: ((isSent: boolean) => void) | undefined;
}

/** A response that is read while it arrives. */
export interface Feed {
  requestId: string | undefined;
  /** Must be iterated, or the request stays open. */
  chunks: AsyncGenerator<Uint8Array, void, undefined>;
}

/** Sends requests with the credential, time limits, retries and typed errors. */
export class Http {
  readonly #settings: Settings;
  readonly #credential: Credential;

  constructor(settings: Settings) {
    // The token is only in the credential.
    this.#settings = { ...settings, token: "" };
    this.#credential = new Credential(settings.token);
  }

  get baseUrl(): string {
    return this.#settings.baseUrl;
  }

  /** Timeout of a call that runs a whole turn. */
  get turnTimeout(): number {
    return this.#settings.turnTimeout;
  }

  /** Maximum consecutive attempts to resume a stream without a new event. */
  get maxReconnects(): number {
    return this.#settings.maxReconnects;
  }

  maxRetries(options: RequestOptions): number {
    return options.maxRetries ?? this.#settings.maxRetries;
  }

  /** Sends a call and returns the body of the response; `undefined` for a 204. */
  async json<T>(call: Call, options: RequestOptions, defaultTimeout = this.#settings.timeout): Promise<T> {
    const timeout = options.timeout ?? defaultTimeout;
    const maxRetries = this.maxRetries(options);
    const isRepeatable = call.method !== "POST" || call.idempotencyKey !== undefined;
    for (let attempt = 0; ; attempt++) {
      try {
        return (await this.#receive(call, timeout, options.signal)) as T;
      } catch (error) {
        if (!isRepeatable || attempt >= maxRetries || !isTransient(error)) throw error;
        await this.backOff(attempt, error, options.signal);
      }
    }
  }

  /** Sends a call and returns a page of a list. The response has its items under `plural`. */
  async page<T>(call: Call, plural: string, options: RequestOptions): Promise<Page<T>> {
    return pageOf(await this.json(call, options), plural, this.#hide);
  }

  /** Waits before retry number `attempt` (from 0). */
  backOff(attempt: number, error: unknown, signal: AbortSignal | undefined): Promise<void> {
    return this.#settings.sleep(delayBefore(attempt, error, this.#settings.random), signal);
  }

  /** Sends a call once and returns its stream of events, as soon as the response starts. */
  async open(call: Call, options: RequestOptions): Promise<Feed> {
    const exchange = new Exchange(this.baseUrl, options.signal);
    try {
      exchange.limit(options.timeout ?? this.#settings.timeout);
      const response = await this.#respond(exchange, call, "text/event-stream");
      if (!/^text\/event-stream\b/i.test(response.headers.get("content-type") ?? "")) {
        throw await this.#failure(exchange, response);
      }
      return { requestId: redactText(response.headers.get("x-request-id") ?? "", this.#hide) || undefined, chunks: this.#chunks(exchange, response) };
    } catch (cause) {
      exchange.abort();
      throw exchange.failure(cause);
    }
  }

  /** Returns the error of a turn that ended with an `error` event. */
  turnFailure(data: TurnEventData["error"], requestId: string | undefined): Error {
    return turnFailure(data, requestId, this.#hide);
  }

  async *#chunks(exchange: Exchange, response: Response): AsyncGenerator<Uint8Array, void, undefined> {
    let reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
    try {
      exchange.unlimited();
      // React Native has no body to read from, only the whole response.
      const body = response.body as Partial<ReadableStream<Uint8Array>> | null | undefined;
      if (body && !body.getReader) {
        throw new KartaArgumentError("fetch", "must return a web ReadableStream as body; node-fetch does not. Use the global fetch");
      }
      reader = (body as ReadableStream<Uint8Array> | null | undefined)?.getReader();
      if (reader === undefined) {
        exchange.limit(WHOLE_STREAM_MS);
        yield new Uint8Array(await exchange.wait(response.arrayBuffer()));
        return;
      }
      for (;;) {
        exchange.limit(this.#settings.idleTimeout);
        const { done, value } = await exchange.wait(reader.read());
        // The time that the reader of the stream takes does not count.
        exchange.unlimited();
        if (done) return;
        yield value;
      }
    } catch (cause) {
      throw exchange.failure(cause);
    } finally {
      exchange.abort();
      reader?.cancel().catch(() => {});
    }
  }

  /** Sends a call once and reads its whole response, within `timeout` milliseconds. */
  async #receive(call: Call, timeout: number, signal: AbortSignal | undefined): Promise<unknown> {
    const exchange = new Exchange(this.baseUrl, signal);
    try {
      exchange.limit(timeout);
      const response = await this.#respond(exchange, call, "application/json");
      const text = await exchange.wait(response.text());
      if (text === "" && response.status === 204 && call.method !== "GET") return undefined;
      const body = parsedJson(text);
      if (!isObject(body)) throw failureOf(response, text, Date.now, this.#hide);
      return body;
    } catch (cause) {
      throw exchange.failure(cause);
    } finally {
      exchange.close();
    }
  }

  /**
   * Sends a request and returns its response if that is a success. Replaces a rejected token once
   * and sends the request again: a 401 is given before anything runs, unless it ended a turn.
   */
  async #respond(exchange: Exchange, call: Call, accept: string): Promise<Response> {
    const tokenOf = async (rejected?: string) => {
      try {
        return await exchange.wait(this.#credential.token(rejected), "the sessionToken function did not return");
      } catch (error) {
        this.#credential.forget();
        throw error;
      }
    };
    let token = await tokenOf();
    for (let isRenewed = false; ; isRenewed = true) {
      const [url, init] = [this.#url(call), this.#init(call, accept, token, exchange.signal)];
      call.onSend?.(true);
      const response = await exchange.wait(this.#settings.fetch(url, init));
      exchange.answered();
      if (response.ok) return response;
      const error = await this.#failure(exchange, response);
      if (isRenewed || !this.#credential.isRenewable || !(error instanceof KartaAuthError) || endedTurn(error)) throw error;
      call.onSend?.(false);
      token = await tokenOf(token);
    }
  }

  /** Reads a response and returns its error. */
  async #failure(exchange: Exchange, response: Response): Promise<KartaError> {
    return failureOf(response, await exchange.wait(response.text()), Date.now, this.#hide);
  }

  #url({ path, query = {} }: Call): string {
    const pairs = new URLSearchParams();
    for (const [name, value] of Object.entries(query)) if (value !== undefined) pairs.set(name, String(value));
    const text = pairs.toString();
    return `${this.baseUrl}${this.#settings.path}${path}${text === "" ? "" : `?${text}`}`;
  }

  #init(call: Call, accept: string, token: string, signal: AbortSignal): RequestInit {
    const headers: Record<string, string> = { accept, authorization: `Bearer ${token}` };
    // A browser sends its own user agent; another value would need CORS permission.
    if (!isOnClient()) headers["user-agent"] = `karta-sessions/${VERSION}`;
    if (call.idempotencyKey !== undefined) headers["idempotency-key"] = call.idempotencyKey;
    const init: RequestInit = { method: call.method, headers, signal, redirect: "manual" };
    if (call.body !== undefined) {
      headers["content-type"] = "application/json";
      init.body = JSON.stringify(call.body);
    }
    return init;
  }

  /** Removes the tokens that requests carried. */
  readonly #hide = (text: string): string => [...this.#credential.known].reduce((clean, token) => clean.replaceAll(token, REDACTED), text);
}
