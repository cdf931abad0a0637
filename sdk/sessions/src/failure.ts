// Turns the `error` events of streams into typed errors.
import { KartaError } from "./shared/errors.js";
import { errorOfStatus } from "./shared/failure.js";
import type { Hide } from "./shared/redact.js";
import * as retry from "./shared/retry.js";
import type { TurnErrorCode } from "./types.js";

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

/** Returns whether the error ended a turn. The same request would run another turn. */
export function endedTurn(error: KartaError): boolean {
  return error.code !== undefined && Object.hasOwn(STATUS_BY_CODE, error.code);
}

/** Returns whether the same request may succeed shortly, without running another turn. */
export function isTransient(error: unknown): boolean {
  return retry.isTransient(error) && !endedTurn(error);
}

/**
 * Returns the error of a turn that ended with an `error` event: of the class and with the status
 * that `send` would have thrown. `hide` removes the secrets of the requests.
 */
export function turnFailure(data: { code: string; message: string }, requestId: string | undefined, hide: Hide): KartaError {
  const status = Object.hasOwn(STATUS_BY_CODE, data.code) ? STATUS_BY_CODE[data.code as TurnErrorCode] : 500;
  const { code, message } = data;
  return errorOfStatus(`${status}: ${message}`, { status, body: { error: code, message }, requestId, hide });
}
