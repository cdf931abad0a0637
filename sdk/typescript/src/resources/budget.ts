import { BUDGET_RULES } from "../limit-rules.js";
import { fieldsOf } from "../json.js";
import type { RequestOptions } from "../shared/options.js";
import { Resource } from "./resource.js";

/** Caps per UTC month; `null` means no cap. */
export interface Budget {
  input_tokens: number | null;
  output_tokens: number | null;
  total_tokens: number | null;
  cost_cents: number | null;
  /** Integer percentages of a cap at which `budget.threshold` is sent. */
  alert_percents: number[];
}

/** Caps to set. Absent and `null` both mean no cap; `undefined` is rejected. */
export type BudgetParams = { [Field in keyof Budget]?: Budget[Field] | null };

/** The organization's caps. */
export class Budgets extends Resource {
  /**
   * Returns the caps. Scope `read`.
   *
   * @throws {KartaForbiddenError} without the scope.
   */
  async get(options?: RequestOptions): Promise<{ budget: Budget }> {
    return this.transport.get("/v1/budget", {}, options);
  }

  /**
   * Replaces all caps; caps that are not given are removed. Scope `admin`.
   *
   * @throws {KartaValidationError} for a cap that is not an integer; {KartaArgumentError} for a cap
   * that is `undefined`; {KartaForbiddenError} without the scope.
   */
  async update(params: BudgetParams, options?: RequestOptions): Promise<{ budget: Budget }> {
    return this.transport.put("/v1/budget", fieldsOf(params, BUDGET_RULES), options);
  }
}
