import type { FieldRules } from "./json.js";
import type { Budget } from "./resources/budget.js";

const FIELDS = ["input_tokens", "output_tokens", "total_tokens", "cost_cents", "alert_percents"] as const satisfies readonly (keyof Budget)[];

/**
 * Rejects `undefined` in a budget. A missing cap means no cap, so a failed calculation would remove
 * a limit.
 */
export const BUDGET_RULES: FieldRules = { kept: FIELDS };

/** `BUDGET_RULES` for arguments with a field `budget`. */
export const NESTED_BUDGET_RULES: FieldRules = { kept: FIELDS.map((field) => `budget.${field}`) };
