import { knownOnly } from "../shared/arguments.js";
import type { List, ListParams } from "../shared/list.js";
import type { RequestOptions } from "../shared/options.js";
import type { Budget } from "./budget.js";
import { Resource } from "./resource.js";

/** Totals of tokens and cost. `cost_cents` is an integer, rounded up. */
export interface UsageTotals {
  /** Input without the tokens of the prompt cache. */
  input_tokens: number;
  output_tokens: number;
  /** Input that the provider read from its prompt cache. */
  cache_read_tokens: number;
  /** Input that the provider wrote to its prompt cache. */
  cache_write_tokens: number;
  /** The sum of the four kinds. */
  total_tokens: number;
  cost_cents: number;
}

/** Caps, the spent percentage of each, and whether more may be spent. */
export interface UsageBudget extends Budget {
  /** Rounded down; `null` without a cap. */
  spent_percent: { [Cap in Exclude<keyof Budget, "alert_percents">]: number | null };
  ok: boolean;
  /** The cap or subscription status that forbids spending. */
  reason: string | null;
}

/** One month of usage. In a template literal it prints as text: `Used ${usage} this period`. */
export interface Usage {
  /** `2026-11`, UTC. */
  period: string;
  totals: UsageTotals;
  by_model: (UsageTotals & { model: string })[];
  by_day: (UsageTotals & { date: string })[];
  /** Models without a price. Their tokens have no cost, so no cost cap counts them. */
  unpriced: { model: string; tokens: number }[];
  budget: UsageBudget;
  /** `1,200 tokens ($0.42)`. */
  toString(): string;
}

/** One month of usage of an API key and the keys that it replaced. */
export interface KeyUsage extends Omit<Usage, "toString"> {
  api_key_id: number;
  name: string;
  prefix: string;
}

/** The month, such as `2026-11`. Default: the current month. */
export interface UsageParams {
  period?: string | undefined;
}

/** The organization's usage. */
export class UsageReports extends Resource {
  /**
   * Returns a month's totals, the totals by model and by day, and the budget. Scope `read`.
   *
   * @throws {KartaValidationError} for an invalid month; {KartaForbiddenError} without the scope.
   */
  async summary(params: UsageParams = {}, options?: RequestOptions): Promise<Usage> {
    const { period } = knownOnly<UsageParams>(params, "params", ["period"]);
    const usage = await this.transport.get<Usage>("/v1/usage", { period }, options);
    return printable(usage);
  }

  /**
   * Lists a month's usage by API key, newest key first. Scope `read`.
   *
   * @throws {KartaValidationError} for an invalid month; {KartaForbiddenError} without the scope.
   */
  keys(params: UsageParams & ListParams = {}, options?: RequestOptions): List<KeyUsage> {
    return this.listOf("keys", () => "/v1/usage/keys", params, ["period"], options);
  }
}

/** Adds a `toString` to `usage` that is not enumerable. */
function printable(usage: Usage): Usage {
  const text = () => {
    const { total_tokens, cost_cents } = usage.totals;
    const dollars = (cost_cents / 100).toLocaleString("en-US", { style: "currency", currency: "USD" });
    return `${total_tokens.toLocaleString("en-US")} ${total_tokens === 1 ? "token" : "tokens"} (${dollars})`;
  };
  return Object.defineProperty(usage, "toString", { value: text });
}
