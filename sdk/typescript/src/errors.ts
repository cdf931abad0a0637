import type { BudgetParams } from "./resources/budget.js";

/** What an error knows besides its message. */
export interface ErrorDetails {
  readonly status?: number | undefined;
  readonly body?: unknown;
  readonly requestId?: string | undefined;
  /** Seconds. */
  readonly retryAfter?: number | undefined;
  readonly cause?: unknown;
}

/**
 * Key under which each class has its name, written out because minifiers rename classes. It is the same key in every copy of this package, so that
 * `instanceof` holds between the ESM and the CommonJS copy.
 */
const NAME = /* @__PURE__ */ Symbol.for("@karta/sdk/error");

/** What every error of this package is. */
export class KartaError extends Error {
  static readonly [NAME]: string = "KartaError";
  override readonly name: string;
  /** The HTTP status; absent when there was no answer. */
  readonly status: number | undefined;
  /** The parsed body; its text if it is no JSON; absent when there was no answer. Secrets are taken out. */
  readonly body: unknown;
  /** The request's id, to be quoted when asking for help. */
  readonly requestId: string | undefined;

  constructor(message: string, details: ErrorDetails = {}) {
    super(message, "cause" in details ? { cause: details.cause } : undefined);
    this.name = new.target[NAME];
    this.status = details.status;
    this.body = details.body;
    this.requestId = details.requestId;
  }

  /** Also true for errors of another copy of this package. A subclass of yours has the ordinary `instanceof`. */
  static override [Symbol.hasInstance](value: unknown): boolean {
    if (super[Symbol.hasInstance](value)) return true;
    let type: unknown = Object.hasOwn(this, NAME) ? (value as object | null | undefined)?.constructor : undefined;
    for (; typeof type === "function"; type = Object.getPrototypeOf(type)) {
      if (Object.hasOwn(type, NAME) && (type as typeof KartaError)[NAME] === this[NAME]) return true;
    }
    return false;
  }

  /** The API's word for the error, as `slug_taken`; absent where it has none. */
  get code(): string | undefined {
    return text(this.body, "error");
  }
}

/** An argument or option that cannot be right. Nothing was sent. */
export class KartaArgumentError extends KartaError {
  static override readonly [NAME]: string = "KartaArgumentError";
  /** Which one: `apiKey`, `id`, `budget.cost_cents`. */
  readonly field: string;

  constructor(field: string, message: string, details?: ErrorDetails) {
    super(`${field} ${message}`, details);
    this.field = field;
  }
}

/** 400: the body was no JSON to the server. */
export class KartaBadRequestError extends KartaError {
  static override readonly [NAME]: string = "KartaBadRequestError";
}

/** 401: the key is unknown, revoked, expired, or used from outside its address ranges. */
export class KartaAuthError extends KartaError {
  static override readonly [NAME]: string = "KartaAuthError";
}

/** 402: the organization's or the key's budget is exhausted. */
export class KartaBudgetError extends KartaError {
  static override readonly [NAME]: string = "KartaBudgetError";
  /** The cap or subscription that is in the way, for people; programs use `cap` and `of`. */
  get reason(): string | undefined {
    return text(this.body, "reason");
  }

  /** The exhausted cap; `null` if the subscription is the reason. */
  get cap(): Exclude<keyof BudgetParams, "alert_percents"> | null | undefined {
    return textOrNull(this.body, "cap");
  }

  /** Whose budget it is. */
  get of(): "organization" | "api_key" | undefined {
    return text(this.body, "of");
  }

  /** When the cap resets, RFC 3339; `null` if the subscription is the reason. */
  get resetsAt(): string | null | undefined {
    return textOrNull(this.body, "resets_at");
  }
}

/** 403: the key lacks the scope that the message names. */
export class KartaForbiddenError extends KartaError {
  static override readonly [NAME]: string = "KartaForbiddenError";
}

/** 404: there is no such resource in the key's organization. `code` is `unknown_route` if no route has the path: another server may be at baseUrl. */
export class KartaNotFoundError extends KartaError {
  static override readonly [NAME]: string = "KartaNotFoundError";
}

/** 409: the state of things forbids it; `code` says why. */
export class KartaConflictError extends KartaError {
  static override readonly [NAME]: string = "KartaConflictError";
}

/** 413: the body is too large. */
export class KartaPayloadTooLargeError extends KartaError {
  static override readonly [NAME]: string = "KartaPayloadTooLargeError";
}

/** 422: bad input. */
export class KartaValidationError extends KartaError {
  static override readonly [NAME]: string = "KartaValidationError";
  /** The path of the field that is at fault: `scopes[0]`. */
  get field(): string | undefined {
    return text(this.body, "field");
  }
}

/** 429: too many requests. */
export class KartaRateLimitError extends KartaError {
  static override readonly [NAME]: string = "KartaRateLimitError";
  /** Seconds to wait, where the server said so. */
  readonly retryAfter: number | undefined;

  constructor(message: string, details: ErrorDetails = {}) {
    super(message, details);
    this.retryAfter = details.retryAfter;
  }
}

/** 500 and other faults of the server. */
export class KartaServerError extends KartaError {
  static override readonly [NAME]: string = "KartaServerError";
}

/** 503, 504: something that the server needs is down, or out of time. */
export class KartaUnavailableError extends KartaServerError {
  static override readonly [NAME]: string = "KartaUnavailableError";
  /** Seconds to wait, where the server said so. */
  readonly retryAfter: number | undefined;

  constructor(message: string, details: ErrorDetails = {}) {
    super(message, details);
    this.retryAfter = details.retryAfter;
  }
}

/** An answer that the API does not give: a redirect, or a success that is no JSON. Something else answered. */
export class KartaResponseError extends KartaError {
  static override readonly [NAME]: string = "KartaResponseError";
}

/** No answer: no connection, or one that broke before the answer was whole. */
export class KartaConnectionError extends KartaError {
  static override readonly [NAME]: string = "KartaConnectionError";
}

/** No answer within `timeout`. */
export class KartaTimeoutError extends KartaConnectionError {
  static override readonly [NAME]: string = "KartaTimeoutError";
}

/** The caller's `signal` was aborted; `cause` is the signal's reason. */
export class KartaAbortError extends KartaError {
  static override readonly [NAME]: string = "KartaAbortError";
}

/** Why a webhook is not to be trusted. */
export type SignatureFailure =
  "missing_header" | "malformed_header" | "malformed_secret" | "malformed_payload" | "no_match" | "outside_tolerance";

/** A webhook that cannot be shown to come from Karta, just now and unchanged. */
export class KartaSignatureError extends KartaError {
  static override readonly [NAME]: string = "KartaSignatureError";
  readonly reason: SignatureFailure;

  constructor(reason: SignatureFailure, message: string, details?: ErrorDetails) {
    super(message, details);
    this.reason = reason;
  }
}

/** A field of an error's body, if it is text. */
function text<T extends string>(body: unknown, field: string): T | undefined {
  return textOrNull<T>(body, field) ?? undefined;
}

/** A field of an error's body, if it is text or `null`. */
function textOrNull<T extends string>(body: unknown, field: string): T | null | undefined {
  const value = typeof body === "object" && body !== null ? (body as Record<string, unknown>)[field] : undefined;
  return typeof value === "string" || value === null ? (value as T | null) : undefined;
}
