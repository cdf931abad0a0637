import type { Cap } from "../package.js";
import { NAME } from "./error-name.js";
import { redact, redactText, type Hide } from "./redact.js";

/** Fields of an error besides its message. */
export interface ErrorDetails {
  readonly status?: number | undefined;
  readonly body?: unknown;
  readonly requestId?: string | undefined;
  /** Seconds. */
  readonly retryAfter?: number | undefined;
  readonly cause?: unknown;
  /** Removes more secrets from the message, the body and the request id. */
  readonly hide?: Hide | undefined;
}

/**
 * Base class of every error of this package. Its constructor removes secrets from the message, the
 * body and the request id, which contain text of a response.
 */
export class KartaError extends Error {
  static readonly [NAME]: string = "KartaError";
  override readonly name: string;
  /**
   * HTTP status; absent if there was no response. An error event of a stream has the status
   * that the response would have without streaming.
   */
  readonly status: number | undefined;
  /**
   * Parsed body, or its text if it is not JSON; absent if there was no response. Secrets are
   * removed.
   */
  readonly body: unknown;
  /** Id of the request. Quote it when you ask for help. */
  readonly requestId: string | undefined;
  /** Seconds to wait; absent if the server gave no time. */
  readonly retryAfter: number | undefined;

  constructor(message: string, details: ErrorDetails = {}) {
    const { hide, requestId } = details;
    super(redactText(message, hide), "cause" in details ? { cause: details.cause } : undefined);
    this.name = new.target[NAME];
    this.status = details.status;
    this.body = redact(details.body, hide);
    this.requestId = requestId === undefined ? undefined : redactText(requestId, hide);
    this.retryAfter = details.retryAfter;
  }

  /**
   * Also true for errors of another copy of this package. Subclasses in your code use the ordinary
   * `instanceof`.
   */
  static override [Symbol.hasInstance](value: unknown): boolean {
    if (super[Symbol.hasInstance](value)) return true;
    let type: unknown = Object.hasOwn(this, NAME) ? (value as object | null | undefined)?.constructor : undefined;
    for (; typeof type === "function"; type = Object.getPrototypeOf(type)) {
      if (Object.hasOwn(type, NAME) && (type as typeof KartaError)[NAME] === this[NAME]) return true;
    }
    return false;
  }

  /** The API's error code, such as `idempotency_mismatch`; absent if the body has none. */
  get code(): string | undefined {
    return text(this.body, "error");
  }
}

/** An invalid argument or option. Nothing was sent. */
export class KartaArgumentError extends KartaError {
  static override readonly [NAME]: string = "KartaArgumentError";
  /** Path of the argument or option: `apiKey`, `limit`, `metadata.user_id`. */
  readonly field: string;

  constructor(field: string, message: string, details?: ErrorDetails) {
    super(`${field} ${message}`, details);
    this.field = field;
  }
}

/** 400: the request is malformed, for example its body is not JSON. */
export class KartaBadRequestError extends KartaError {
  static override readonly [NAME]: string = "KartaBadRequestError";
}

/**
 * 401: the key or token is invalid, expired or revoked, or the address of the caller is outside the
 * key's `allowed_cidrs`. Without a status: a function that fetches a token failed.
 */
export class KartaAuthError extends KartaError {
  static override readonly [NAME]: string = "KartaAuthError";
}

/**
 * 402: a budget of the organization or the key is exhausted, or the subscription does not allow
 * spending.
 */
export class KartaBudgetError extends KartaError {
  static override readonly [NAME]: string = "KartaBudgetError";
  /**
   * Text for people that names the cap or the subscription's status. Programs use `cap` and `of`.
   */
  get reason(): string | undefined {
    return text(this.body, "reason");
  }

  /** The exhausted cap; `null` if the subscription is the reason. */
  get cap(): Cap | null | undefined {
    return textOrNull(this.body, "cap");
  }

  /** Owner of the budget. */
  get of(): "organization" | "api_key" | undefined {
    return text(this.body, "of");
  }

  /** Time when the cap resets (RFC 3339); `null` if the subscription is the reason. */
  get resetsAt(): string | null | undefined {
    return textOrNull(this.body, "resets_at");
  }
}

/**
 * 403: the key lacks the scope that the message names, or the project, the user or a setting does not
 * allow the request.
 */
export class KartaForbiddenError extends KartaError {
  static override readonly [NAME]: string = "KartaForbiddenError";
}

/**
 * 404: the key or token reaches no such resource. `code` is `unknown_route` if no route has the
 * path: `baseUrl` may point to another server.
 */
export class KartaNotFoundError extends KartaError {
  static override readonly [NAME]: string = "KartaNotFoundError";
}

/** 409: the current state does not allow the request; `code` gives the reason. */
export class KartaConflictError extends KartaError {
  static override readonly [NAME]: string = "KartaConflictError";
}

/** 413: the body is too large. */
export class KartaPayloadTooLargeError extends KartaError {
  static override readonly [NAME]: string = "KartaPayloadTooLargeError";
}

/** 422: invalid input; `code` gives the reason if it is not a field. */
export class KartaValidationError extends KartaError {
  static override readonly [NAME]: string = "KartaValidationError";
  /** Path of the invalid field: `max_tokens`, `scopes[0]`. */
  get field(): string | undefined {
    return text(this.body, "field");
  }
}

/** 429: too many requests. */
export class KartaRateLimitError extends KartaError {
  static override readonly [NAME]: string = "KartaRateLimitError";
}

/** 500 and other server errors. */
export class KartaServerError extends KartaError {
  static override readonly [NAME]: string = "KartaServerError";
}

/** 503, 504: a dependency of the server did not answer in time. */
export class KartaUnavailableError extends KartaServerError {
  static override readonly [NAME]: string = "KartaUnavailableError";
}

/**
 * A response that the API never sends: a redirect, another format, or a damaged stream. Often a
 * proxy or another server answered.
 */
export class KartaResponseError extends KartaError {
  static override readonly [NAME]: string = "KartaResponseError";
}

/** No response: the connection failed, or broke before the response was complete. */
export class KartaConnectionError extends KartaError {
  static override readonly [NAME]: string = "KartaConnectionError";
}

/** No response, or no more of it, within a time limit of the client. */
export class KartaTimeoutError extends KartaConnectionError {
  static override readonly [NAME]: string = "KartaTimeoutError";
}

/**
 * The caller's `signal` was aborted, and `cause` is the signal's reason; or a stream was cancelled
 * before its first event. A turn runs on after an abort.
 */
export class KartaAbortError extends KartaError {
  static override readonly [NAME]: string = "KartaAbortError";
}

/** Returns a field of an error's body if it is text. */
function text<T extends string>(body: unknown, field: string): T | undefined {
  return textOrNull<T>(body, field) ?? undefined;
}

/** Returns a field of an error's body if it is text or `null`. */
function textOrNull<T extends string>(body: unknown, field: string): T | null | undefined {
  const value = typeof body === "object" && body !== null ? (body as Record<string, unknown>)[field] : undefined;
  return typeof value === "string" || value === null ? (value as T | null) : undefined;
}
