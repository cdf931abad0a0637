import { NAME } from "./shared/error-name.js";
import { KartaError, type ErrorDetails } from "./shared/errors.js";

export * from "./shared/errors.js";

/** Reason why `verifyWebhook` rejects a webhook. */
export type SignatureFailure =
  "missing_header" | "malformed_header" | "malformed_secret" | "malformed_payload" | "no_match" | "outside_tolerance";

/** A webhook that does not verify: it may be forged, changed or replayed. */
export class KartaSignatureError extends KartaError {
  static override readonly [NAME]: string = "KartaSignatureError";
  readonly reason: SignatureFailure;

  constructor(reason: SignatureFailure, message: string, details?: ErrorDetails) {
    super(message, details);
    this.reason = reason;
  }
}
