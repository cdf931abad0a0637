import { fieldsOf } from "./json.js";
import type { Settings } from "./options.js";
import { queryString, type Query } from "./path.js";
import { hiding } from "./secrets.js";
import { Exchange } from "./shared/exchange.js";
import { failureOf } from "./shared/failure.js";
import { isObject, parsedJson } from "./shared/json.js";
import { pageOf, type Page } from "./shared/list.js";
import { CREATE_OPTIONS, REQUEST_OPTIONS, callOptions, type CreateOptions, type RequestOptions } from "./shared/options.js";
import { isOnClient, randomHex } from "./shared/platform.js";
import type { Hide } from "./shared/redact.js";
import { delayBefore, isTransient } from "./shared/retry.js";
import { VERSION } from "./version.js";

type Method = "GET" | "POST" | "PUT" | "PATCH" | "DELETE";

/**
 * Sends requests with credentials, timeouts, retries and typed errors. No other class holds the
 * key.
 */
export class Transport {
  readonly #settings: Settings;
  readonly #headers: Readonly<Record<string, string>>;

  constructor(settings: Settings) {
    this.#settings = settings;
    this.#headers = {
      accept: "application/json",
      authorization: `Bearer ${settings.apiKey}`,
      // A browser sends its own user agent; another value would need CORS permission.
      ...(isOnClient() ? {} : { "user-agent": `karta-sdk-typescript/${VERSION}` }),
    };
  }

  get baseUrl(): string {
    return this.#settings.baseUrl;
  }

  async get<T>(path: string, query: Query = {}, options?: RequestOptions): Promise<T> {
    return this.#send("GET", path + queryString(query), undefined, {}, known(options), true);
  }

  /** Returns the page of a list that the response has under `plural`. */
  async page<T>(path: string, query: Query, plural: string, options?: RequestOptions): Promise<Page<T>> {
    return pageOf(await this.get(path, query, options), plural, hiding(this.#settings.apiKey, undefined));
  }

  async put<T>(path: string, body: object, options?: RequestOptions): Promise<T> {
    return this.#send("PUT", path, body, {}, known(options), true);
  }

  async delete<T>(path: string, options?: RequestOptions): Promise<T> {
    return this.#send("DELETE", path, undefined, {}, known(options), true);
  }

  /**
   * Sends a PATCH. It is never retried: another caller may change the resource between two
   * attempts.
   */
  async patch<T>(path: string, body: object, options?: RequestOptions): Promise<T> {
    return this.#send("PATCH", path, body, {}, known(options), false);
  }

  /**
   * Sends a POST without an idempotency key. It is never retried, because the server would run it
   * again.
   */
  async post<T>(path: string, body?: object, options?: RequestOptions): Promise<T> {
    return this.#send("POST", path, body, {}, known(options), false);
  }

  /** Sends a POST with one idempotency key for all its attempts. */
  async create<T>(path: string, body: object, options?: CreateOptions): Promise<T> {
    const given = callOptions(options, CREATE_OPTIONS);
    // Before the first await: the caller may change its object for the next call.
    const copy = parsedJson(JSON.stringify(fieldsOf(body))) as object;
    const key = given.idempotencyKey ?? `sdk-${await randomHex()}`;
    return this.#send("POST", path, copy, { "idempotency-key": key }, given, true);
  }

  async #send<T>(
    method: Method,
    path: string,
    body: object | undefined,
    headers: Record<string, string>,
    options: RequestOptions,
    repeatable: boolean,
  ): Promise<T> {
    const { random, sleep } = this.#settings;
    const maxRetries = options.maxRetries ?? this.#settings.maxRetries;
    const timeout = options.timeout ?? this.#settings.timeout;
    const init: RequestInit = { method, headers: { ...this.#headers, ...headers }, redirect: "manual" };
    const fields = body === undefined ? undefined : fieldsOf(body);
    if (fields !== undefined) {
      init.headers = { ...init.headers, "content-type": "application/json" };
      init.body = JSON.stringify(fields);
    }
    const hide = hiding(this.#settings.apiKey, fields);
    for (let attempt = 0; ; attempt++) {
      try {
        return (await this.#attempt(path, init, hide, timeout, options.signal)) as T;
      } catch (error) {
        if (!repeatable || attempt >= maxRetries || !isTransient(error)) throw error;
        await sleep(delayBefore(attempt, error, random), options.signal);
      }
    }
  }

  /** Sends one request and reads its whole response, within `timeout` milliseconds. */
  async #attempt(path: string, init: RequestInit, hide: Hide, timeout: number, signal: AbortSignal | undefined): Promise<unknown> {
    const { baseUrl, fetch, now } = this.#settings;
    const exchange = new Exchange(baseUrl, signal);
    try {
      exchange.limit(timeout);
      const response = await exchange.wait(fetch(baseUrl + path, { ...init, signal: exchange.signal }));
      exchange.answered();
      const text = await exchange.wait(response.text());
      if (text === "" && init.method !== "GET" && (response.status === 202 || response.status === 204)) return undefined;
      const body = response.ok ? parsedJson(text) : undefined;
      if (isObject(body)) return body;
      throw failureOf(response, text, now, hide);
    } catch (cause) {
      throw exchange.failure(cause);
    } finally {
      exchange.close();
    }
  }
}

function known(options: RequestOptions | null | undefined): RequestOptions {
  return callOptions(options, REQUEST_OPTIONS);
}
