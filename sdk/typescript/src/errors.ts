/** What an error knows besides its message. */
export interface ErrorDetails {
  readonly status?: number | undefined;
  readonly body?: unknown;
  readonly requestId?: string | undefined;
  /** Seconds. */
  readonly retryAfter?: number | undefined;
  readonly cause?: unknown;
}

/** What every error of this package is. */
export class KartaError extends Error {
  // Written out in every class, because minifiers rename classes.
  override readonly name: string = "KartaError";
  /** The HTTP status; absent when there was no answer. */
  readonly status: number | undefined;
  /** The parsed body; its text if it is no JSON; absent when there was no answer. Secrets are taken out. */
  readonly body: unknown;
  /** The request's id, to be quoted when asking for help. */
  readonly requestId: string | undefined;

  constructor(message: string, details: ErrorDetails = {}) {
    super(message, "cause" in details ? { cause: details.cause } : undefined);
    this.status = details.status;
    this.body = details.body;
    this.requestId = details.requestId;
  }

  /** The API's word for the error, as `slug_taken`; absent where it has none. */
  get code(): string | undefined {
    return text(this.body, "error");
  }
}

/** An argument or option that cannot be right. Nothing was sent. */
export class KartaArgumentError extends KartaError {
  override readonly name: string = "KartaArgumentError";
  /** Which one: `apiKey`, `baseUrl`, `id`. */
  readonly field: string;

  constructor(field: string, message: string, details?: ErrorDetails) {
    super(`${field} ${message}`, details);
    this.field = field;
  }
}

/** 400: the body was no JSON to the server. */
export class KartaBadRequestError extends KartaError {
  override readonly name: string = "KartaBadRequestError";
}

/** 401: the key is unknown, revoked, expired, or used from outside its address ranges. */
export class KartaAuthError extends KartaError {
  override readonly name: string = "KartaAuthError";
}

/** 402: the organization's or the key's budget is exhausted. */
export class KartaBudgetError extends KartaError {
  override readonly name: string = "KartaBudgetError";
  /** For people; branch on `cap` and `of`. */
  get reason(): string | undefined {
    return text(this.body, "reason");
  }

  /** The cap that is reached; `undefined` where the subscription is the reason. */
  get cap(): "total_tokens" | "input_tokens" | "output_tokens" | "cost_cents" | undefined {
    return text(this.body, "cap") as KartaBudgetError["cap"];
  }

  /** Whose cap or subscription it is. */
  get of(): "organization" | "api_key" | undefined {
    return text(this.body, "of") as KartaBudgetError["of"];
  }

  /** When the cap starts anew; `undefined` where the subscription is the reason. */
  get resetsAt(): string | undefined {
    return text(this.body, "resets_at");
  }
}

/** 403: the key lacks the scope that the message names. */
export class KartaForbiddenError extends KartaError {
  override readonly name: string = "KartaForbiddenError";
}

/** 404: there is no such resource in the key's organization. */
export class KartaNotFoundError extends KartaError {
  override readonly name: string = "KartaNotFoundError";
}

/** 409: the state of things forbids it; `code` says why. */
export class KartaConflictError extends KartaError {
  override readonly name: string = "KartaConflictError";
}

/** 413: the body is too large. */
export class KartaPayloadTooLargeError extends KartaError {
  override readonly name: string = "KartaPayloadTooLargeError";
}

/** 422: bad input. */
export class KartaValidationError extends KartaError {
  override readonly name: string = "KartaValidationError";
  /** The path of the field that is at fault: `scopes[0]`. */
  get field(): string | undefined {
    return text(this.body, "field");
  }
}

/** 429: too many requests. */
export class KartaRateLimitError extends KartaError {
  override readonly name: string = "KartaRateLimitError";
  /** Seconds to wait, where the server said so. */
  readonly retryAfter: number | undefined;

  constructor(message: string, details: ErrorDetails = {}) {
    super(message, details);
    this.retryAfter = details.retryAfter;
  }
}

/** 500 and other faults of the server. */
export class KartaServerError extends KartaError {
  override readonly name: string = "KartaServerError";
}

/** 503, 504: something that the server needs is down, or out of time. */
export class KartaUnavailableError extends KartaServerError {
  override readonly name: string = "KartaUnavailableError";
  /** Seconds to wait, where the server said so. */
  readonly retryAfter: number | undefined;

  constructor(message: string, details: ErrorDetails = {}) {
    super(message, details);
    this.retryAfter = details.retryAfter;
  }
}

/** An answer that the API does not give: a redirect, or a success that is no JSON. Something else answered. */
export class KartaResponseError extends KartaError {
  override readonly name: string = "KartaResponseError";
}

/** No answer: no connection, or one that broke before the answer was whole. */
export class KartaConnectionError extends KartaError {
  override readonly name: string = "KartaConnectionError";
}

/** No answer within `timeout`. */
export class KartaTimeoutError extends KartaConnectionError {
  override readonly name: string = "KartaTimeoutError";
}

/** The caller's `signal` was aborted; `cause` is the signal's reason. */
export class KartaAbortError extends KartaError {
  override readonly name: string = "KartaAbortError";
}

/** Why a webhook is not to be trusted. */
export type SignatureFailure =
  "missing_header" | "malformed_header" | "malformed_secret" | "malformed_payload" | "no_match" | "outside_tolerance";

/** A webhook that cannot be shown to come from Karta, just now and unchanged. */
export class KartaSignatureError extends KartaError {
  override readonly name: string = "KartaSignatureError";
  readonly reason: SignatureFailure;

  constructor(reason: SignatureFailure, message: string, details?: ErrorDetails) {
    super(message, details);
    this.reason = reason;
  }
}

/** A field of an error's body, if it is text. */
function text(body: unknown, field: string): string | undefined {
  const value = typeof body === "object" && body !== null ? (body as Record<string, unknown>)[field] : undefined;
  return typeof value === "string" ? value : undefined;
}
