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
import { redactText } from "./redact.js";
import { retryAfter } from "./retry.js";

/** Maximum characters of a body that is not JSON, such as a proxy's page. Longer bodies are cut. */
const TEXT_LIMIT = 2000;

/**
 * Returns the parsed body of a success; throws the typed error for any other response. `text` is
 * the whole body.
 */
export function read(response: Response, text: string, now: () => number): unknown {
  if (response.ok) {
    if (text === "" && (response.status === 202 || response.status === 204)) return undefined;
    const body = parse(text);
    if (isObject(body)) return body;
  }
  throw errorOf(response, text, now);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

const NOT_JSON = Symbol("not JSON");

function parse(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return NOT_JSON;
  }
}

function errorOf(response: Response, raw: string, now: () => number): KartaError {
  const { status, headers } = response;
  const parsed = parse(raw);
  // Redacted first, because half of a secret would not be recognized.
  const body = parsed === NOT_JSON ? redactText(raw).slice(0, TEXT_LIMIT) : parsed;
  const fields = isObject(body) ? body : {};
  const requestId = headers.get("x-request-id") ?? fields.request_id;
  const details = {
    status,
    body,
    requestId: typeof requestId === "string" ? requestId : undefined,
    retryAfter: retryAfter(headers, fields.retry_after_seconds, now),
  };
  // A browser hides the status of a redirect that it does not follow.
  if (response.type === "opaqueredirect" || (status >= 300 && status < 400)) {
    return new KartaResponseError(`${status}: the response is a redirect, which is not followed: set baseUrl to its target`, details);
  }
  if (!isObject(parsed)) {
    const fault = `${status}: the response is not a JSON object (content-type: ${headers.get("content-type") ?? "none"})`;
    const message = `${fault}: a proxy may have answered, or baseUrl may be wrong`;
    return response.ok ? new KartaResponseError(message, details) : typed(message, details);
  }
  const reason = fields.message ?? fields.detail ?? fields.reason ?? fields.error;
  return typed(`${status}: ${typeof reason === "string" ? reason : "no reason given"}`, details);
}

function typed(message: string, details: ErrorDetails & { status: number }): KartaError {
  const Type = BY_STATUS[details.status] ?? (details.status >= 500 ? KartaServerError : KartaError);
  return new Type(message, details);
}

const BY_STATUS: Record<number, new (message: string, details: ErrorDetails) => KartaError> = {
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
