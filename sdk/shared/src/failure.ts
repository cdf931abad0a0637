// Turns failed responses into typed errors.
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
import { redactText, type Hide } from "./redact.js";

/** Maximum characters of a body that is not JSON, such as a proxy's page. Longer bodies are cut. */
const TEXT_LIMIT = 2000;

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

/**
 * Returns the error of a response that is not a success of the API. `text` is its whole body;
 * `hide` removes the secrets of the request, which a proxy may echo.
 */
export function failureOf(response: Response, text: string, now: () => number, hide: Hide): KartaError {
  const { status, headers } = response;
  const parsed = parsedJson(text);
  const fields = isObject(parsed) ? parsed : {};
  const requestId = headers.get("x-request-id") ?? fields.request_id;
  const details = {
    status,
    // Redacted first, because half of a secret would not be recognized.
    body: parsed === undefined ? redactText(text, hide).slice(0, TEXT_LIMIT) : parsed,
    requestId: typeof requestId === "string" ? requestId : undefined,
    retryAfter: retryAfter(headers, fields.retry_after_seconds, now),
    hide,
  };
  // A browser hides the status of a redirect that it does not follow.
  if (response.type === "opaqueredirect" || (status >= 300 && status < 400)) {
    return new KartaResponseError(`${status}: the response is a redirect, which is not followed: set baseUrl to its target`, details);
  }
  if (response.ok || !isObject(parsed)) {
    const fault = isObject(parsed) ? "unexpected response" : "the response is not a JSON object";
    const message = `${status}: ${fault} (content-type: ${headers.get("content-type") ?? "none"}): a proxy may have answered, or baseUrl may be wrong`;
    return response.ok ? new KartaResponseError(message, details) : errorOfStatus(message, details);
  }
  const reason = fields.message ?? fields.detail ?? fields.reason ?? fields.error;
  return errorOfStatus(`${status}: ${typeof reason === "string" ? reason : "no reason given"}`, details);
}

/** Returns an error of the class of its status. */
export function errorOfStatus(message: string, details: ErrorDetails & { status: number }): KartaError {
  const Type = TYPE_BY_STATUS[details.status] ?? (details.status >= 500 ? KartaServerError : KartaError);
  return new Type(message, details);
}

/** Returns the seconds of a `Retry-After` header, or of the body's `retry_after_seconds`. */
function retryAfter(headers: Headers, inBody: unknown, now: () => number): number | undefined {
  const header = headers.get("retry-after");
  if (header !== null && /^\d+(\.\d+)?$/.test(header)) return Number(header);
  if (header === null) return inSeconds(inBody);
  // A date is compared with the response's Date, because the local clock may be wrong.
  const from = Date.parse(headers.get("date") ?? "");
  const seconds = (Date.parse(header) - (Number.isNaN(from) ? now() : from)) / 1000;
  return Number.isNaN(seconds) ? inSeconds(inBody) : Math.max(0, seconds);
}

function inSeconds(value: unknown): number | undefined {
  return typeof value === "number" && value >= 0 ? value : undefined;
}
