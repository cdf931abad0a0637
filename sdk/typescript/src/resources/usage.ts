import type { List, ListParams } from "../list.js";
import type { RequestOptions } from "../options.js";
import type { Budget } from "./budget.js";
import { Resource } from "./resource.js";

/** Whole cents, rounded up. */
export interface UsageTotals {
  input_tokens: number;
  output_tokens: number;
  total_tokens: number;
  cost_cents: number;
}

/** Caps, how much of each is spent, and whether more may be spent. */
export interface UsageBudget extends Budget {
  /** Rounded down; `null` where there is no cap. */
  spent_percent: { [Field in keyof UsageTotals]: number | null };
  ok: boolean;
  /** Which cap or subscription is in the way. */
  reason: string | null;
}

/** One month of usage. In text it reads as a part of a sentence: `Used ${usage} this period`. */
export interface Usage {
  /** `2026-11`, UTC. */
  period: string;
  totals: UsageTotals;
  by_model: (UsageTotals & { model: string })[];
  by_day: (UsageTotals & { date: string })[];
  /** Models without a price: their tokens cost nothing here, so no cost cap counts them. */
  unpriced: { model: string; tokens: number }[];
  budget: UsageBudget;
  /** `1,200 tokens ($0.42)`. */
  toString(): string;
}

/** One month of usage of one API key and those it replaced. */
export interface KeyUsage extends Omit<Usage, "toString"> {
  api_key_id: number;
  name: string;
  prefix: string;
}

/** Which month, `2026-11`; the current one unless given. */
export interface UsageParams {
  period?: string | undefined;
}

/** What was used. */
export class UsageReports extends Resource {
  /**
   * A month's totals, by model and by day, and the budget. Scope `read`.
   *
   * @throws {KartaValidationError} for a period that is no month; {KartaForbiddenError} without the scope.
   */
  async summary(params: UsageParams = {}, options?: RequestOptions): Promise<Usage> {
    const usage = await this.transport.get<Usage>("/v1/usage", { period: (params as UsageParams | null)?.period }, options);
    return printable(usage);
  }

  /**
   * The same for each API key, newest key first. Scope `read`.
   *
   * @throws {KartaValidationError} for a period that is no month; {KartaForbiddenError} without the scope.
   */
  keys(params: UsageParams & ListParams = {}, options?: RequestOptions): List<KeyUsage> {
    return this.listOf("keys", () => "/v1/usage/keys", params, ["period"], options);
  }
}

/** `usage` that reads as text; the text is no field of it. */
function printable(usage: Usage): Usage {
  const text = () => {
    const { total_tokens, cost_cents } = usage.totals;
    const dollars = (cost_cents / 100).toLocaleString("en-US", { style: "currency", currency: "USD" });
    return `${total_tokens.toLocaleString("en-US")} ${total_tokens === 1 ? "token" : "tokens"} (${dollars})`;
  };
  return Object.defineProperty(usage, "toString", { value: text });
}
