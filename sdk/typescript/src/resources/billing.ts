import type { RequestOptions } from "../shared/options.js";
import { Resource } from "./resource.js";

/** The organization's subscription. */
export interface BillingStatus {
  plan: string;
  /** Spending is allowed while `trialing` or `active`. */
  status: "trialing" | "active" | "past_due" | "unpaid" | "canceled" | "incomplete" | "incomplete_expired" | "paused";
  /** Whether the organization is a customer at Stripe. */
  billing_configured: boolean;
  current_period_start: string | null;
  current_period_end: string | null;
  cancel_at_period_end: boolean;
}

/** The organization's billing. */
export class Billing extends Resource {
  /**
   * Returns the subscription's state. Scope `read`.
   *
   * @throws {KartaForbiddenError} without the scope.
   */
  async status(options?: RequestOptions): Promise<BillingStatus> {
    return this.transport.get("/v1/billing", {}, options);
  }
}
