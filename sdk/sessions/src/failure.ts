// Turns failed responses and the `error` events of streams into typed errors.
import {
  KartaAuthError,
  KartaBadRequestError,
  KartaBudgetError,
  KartaConflictError,
  KartaError,
  KartaForbiddenError,
  KartaNotFoundError,
  KartaPayloadTooLargeError,
  KartaRateLimitError,
  KartaResponseError,
  KartaServerError,
  KartaUnavailableError,
  KartaValidationError,
  type ErrorDetails,
} from "./errors.js";
import { isObject, parsedJson } from "./json.js";
import type { TurnErrorCode } from "./types.js";

/** Removes secrets from text. */
export type Redact = (text: string) => string;

/** Matches text that looks like a secret. A proxy may echo a request with its headers and body. */
const SECRETS = /kt_live_\w{7,}|karta_service_\w{7,}|whsec_[\w+/=-]{7,}|\bsk-[\w-]{12,}|\bBearer\s+[\w.~+/=-]{8,}|\beyJ[\w-]+\.[\w-]+\.[\w-]+/g;

/** Maximum characters of a body that is not JSON, such as a proxy's page. Longer bodies are cut. */
const TEXT_LIMIT = 2000;

/** The codes with which a turn ends, and the status of the response if it was not streamed. */
const STATUS_BY_CODE: Readonly<Record<TurnErrorCode, number>> = {
  provider_rejected: 422,
  byok_key_rejected: 422,
  provider_credit_exhausted: 422,
  provider_rate_limited: 429,
  provider_error: 502,
  provider_timeout: 504,
  turn_deadline: 504,
  budget_exhausted: 402,
  turn_cancelled: 409,
  credential_revoked: 401,
  interrupted: 500,
  internal: 500,
};

const TYPE_BY_STATUS: Readonly<Record<number, new (message: string, details: ErrorDetails) => KartaError>> = {
  400: KartaBadRequestError,
  401: KartaAuthError,
  402: KartaBudgetError,
  403: KartaForbiddenError,
  404: KartaNotFoundError,
  409: KartaConflictError,
  413: KartaPayloadTooLargeError,
  422: KartaValidationError,
  429: KartaRateLimitError,
  503: KartaUnavailableError,
  504: KartaUnavailableError,
};

/** Returns whether the error ended a turn. The same request would run another turn. */
export function endedTurn(error: KartaError): boolean {
  return error.code !== undefined && Object.hasOwn(STATUS_BY_CODE, error.code);
}

/** Returns `text` without the tokens and without anything else that looks like a secret. */
export function redacted(text: string, tokens: Iterable<string>): string {
  let clean = text;
  for (const token of tokens) clean = clean.replaceAll(token, "[redacted]");
  return clean.replace(SECRETS, "[redacted]");
}

/** Returns the error of a response. `text` is its whole body. */
export function failureOf(response: Response, text: string, redact: Redact): KartaError {
  const { status, headers } = response;
  const clean = redact(text);
  const parsed = parsedJson(clean);
  const fields = isObject(parsed) ? parsed : {};
  const requestId = headers.get("x-request-id") ?? fields.request_id;
  const details = {
    status,
    body: parsed === undefined ? clean.slice(0, TEXT_LIMIT) : parsed,
    requestId: typeof requestId === "string" ? requestId : undefined,
    retryAfter: retryAfter(headers.get("retry-after"), fields.retry_after_seconds),
  };
  // A browser hides the status of a redirect that it does not follow.
  if (response.type === "opaqueredirect" || (status >= 300 && status < 400)) {
    return new KartaResponseError(`${status}: the response is a redirect, which is not followed: set baseUrl to its target`, details);
  }
  if (response.ok || !isObject(parsed)) {
    const message = `${status}: unexpected response (content-type: ${headers.get("content-type") ?? "none"}): a proxy may have answered, or baseUrl may be wrong`;
    return response.ok ? new KartaResponseError(message, details) : typed(message, details);
  }
  const reason = fields.message ?? fields.detail ?? fields.reason ?? fields.error;
  return typed(`${status}: ${typeof reason === "string" ? reason : "no reason given"}`, details);
}

/**
 * Returns the error of a turn that ended with an `error` event: of the class and with the status
 * that `send` would have thrown.
 */
export function turnFailure(data: { code: string; message: string }, requestId: string | undefined, redact: Redact): KartaError {
  const status = Object.hasOwn(STATUS_BY_CODE, data.code) ? STATUS_BY_CODE[data.code as TurnErrorCode] : 500;
  const message = redact(data.message);
  return typed(`${status}: ${message}`, { status, body: { error: data.code, message }, requestId });
}

function typed(message: string, details: ErrorDetails & { status: number }): KartaError {
  const Type = TYPE_BY_STATUS[details.status] ?? (details.status >= 500 ? KartaServerError : KartaError);
  return new Type(message, details);
}

/** Returns the seconds of a `Retry-After` header, or of the body's `retry_after_seconds`. */
function retryAfter(header: string | null, inBody: unknown): number | undefined {
  if (header !== null && /^\d+$/.test(header)) return Number(header);
  const seconds = (Date.parse(header ?? "") - Date.now()) / 1000;
  if (!Number.isNaN(seconds)) return Math.max(0, seconds);
  return typeof inBody === "number" && inBody >= 0 ? inBody : undefined;
}
