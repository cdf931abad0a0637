import type { FieldRules } from "./json.js";
import type { Budget } from "./resources/budget.js";

const FIELDS = ["input_tokens", "output_tokens", "total_tokens", "cost_cents", "alert_percents"] as const satisfies readonly (keyof Budget)[];

/** Refuses `undefined` in a budget: a missing cap is no cap, so a failed calculation would remove a limit. */
export const BUDGET_RULES: FieldRules = { kept: FIELDS };

/** The same for arguments that have the budget in a field. */
export const NESTED_BUDGET_RULES: FieldRules = { kept: FIELDS.map((field) => `budget.${field}`) };
