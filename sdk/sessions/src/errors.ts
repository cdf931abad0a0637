/** Fields of an error besides its message. */
export interface ErrorDetails {
  readonly status?: number | undefined;
  readonly body?: unknown;
  readonly requestId?: string | undefined;
  /** Seconds. */
  readonly retryAfter?: number | undefined;
  readonly cause?: unknown;
}

/**
 * Keys of a class's name and of the names of an error's classes. They are the same in every copy of
 * this package, so `instanceof` works between the ESM and the CommonJS copy. The names are text,
 * because minifiers rename classes.
 */
const NAME = /* @__PURE__ */ Symbol.for("@karta/sessions/name");
const NAMES = /* @__PURE__ */ Symbol.for("@karta/sessions/names");

/** Base class of every error of this package. */
export class KartaError extends Error {
  static readonly [NAME]: string = "KartaError";
  override readonly name: string;
  /**
   * HTTP status; absent if there was no response. An error that ended a stream has the status that
   * `send` would have returned.
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
    super(message, "cause" in details ? { cause: details.cause } : undefined);
    this.name = new.target[NAME];
    this.status = details.status;
    this.body = details.body;
    this.requestId = details.requestId;
    this.retryAfter = details.retryAfter;
  }

  /**
   * Also true for errors of another copy of this package. Subclasses in your code use the ordinary
   * `instanceof`.
   */
  static override [Symbol.hasInstance](value: unknown): boolean {
    if (super[Symbol.hasInstance](value)) return true;
    const names = Object.hasOwn(this, NAME) ? (value as Partial<KartaError> | null | undefined)?.[NAMES] : undefined;
    return names?.includes(this[NAME]) === true;
  }

  /** The API's error code, such as `turn_in_progress`; absent if the response has none. */
  get code(): string | undefined {
    return text(this.body, "error");
  }

  /** Names of the error's class and of its base classes in this package. */
  get [NAMES](): readonly string[] {
    const names: string[] = [];
    for (let type = this.constructor as typeof KartaError; NAME in type; type = Object.getPrototypeOf(type)) names.push(type[NAME]);
    return names;
  }
}

/** An invalid argument or option. Nothing was sent. */
export class KartaArgumentError extends KartaError {
  static override readonly [NAME]: string = "KartaArgumentError";
  /** Path of the argument or option: `sessionToken`, `metadata.user_id`. */
  readonly field: string;

  constructor(field: string, message: string, details?: ErrorDetails) {
    super(`${field} ${message}`, details);
    this.field = field;
  }
}

/** 400: the request is malformed. */
export class KartaBadRequestError extends KartaError {
  static override readonly [NAME]: string = "KartaBadRequestError";
}

/**
 * 401: the key or token is invalid, expired or revoked, or lost its access during a turn
 * (`credential_revoked`). Without a status: the `sessionToken` function failed.
 */
export class KartaAuthError extends KartaError {
  static override readonly [NAME]: string = "KartaAuthError";
}

/** 402: a budget is exhausted, or the subscription does not allow spending. */
export class KartaBudgetError extends KartaError {
  static override readonly [NAME]: string = "KartaBudgetError";
  /** Text for people. Programs use `cap` and `of`. */
  get reason(): string | undefined {
    return text(this.body, "reason");
  }

  /** The exhausted cap, such as `total_tokens`; `null` if the subscription is the reason. */
  get cap(): string | null | undefined {
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

/** 403: a missing scope, another project's token, another user, or `transcript_access` is off. */
export class KartaForbiddenError extends KartaError {
  static override readonly [NAME]: string = "KartaForbiddenError";
}

/** 404: the credential reaches no such session. */
export class KartaNotFoundError extends KartaError {
  static override readonly [NAME]: string = "KartaNotFoundError";
}

/**
 * 409: the session's or the project's state does not allow the request: `turn_in_progress`,
 * `no_turn_in_progress`, `no_active_release`. `turn_cancelled`: the turn was cancelled.
 */
export class KartaConflictError extends KartaError {
  static override readonly [NAME]: string = "KartaConflictError";
}

/** 413: the body is too large. */
export class KartaPayloadTooLargeError extends KartaError {
  static override readonly [NAME]: string = "KartaPayloadTooLargeError";
}

/**
 * 422: invalid input, a model that cannot be used (`model_not_allowed`, `no_model_key`, …), or a
 * request that the provider rejected (`provider_rejected`, `byok_key_rejected`, …).
 */
export class KartaValidationError extends KartaError {
  static override readonly [NAME]: string = "KartaValidationError";
  /** Path of the invalid field: `max_tokens`. */
  get field(): string | undefined {
    return text(this.body, "field");
  }
}

/** 429: too many requests, here (`rate_limited`) or at the provider (`provider_rate_limited`). */
export class KartaRateLimitError extends KartaError {
  static override readonly [NAME]: string = "KartaRateLimitError";
}

/** 500 and other server errors. */
export class KartaServerError extends KartaError {
  static override readonly [NAME]: string = "KartaServerError";
}

/** 503, 504: a dependency or the provider did not answer in time. */
export class KartaUnavailableError extends KartaServerError {
  static override readonly [NAME]: string = "KartaUnavailableError";
}

/** A response that the API never sends: another server answered, or the stream is damaged. */
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
 * before its first event. After an abort, the turn runs on.
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
