// Rules that reject `undefined` in a limit. A missing limit means none, a default or the old one, so a
// failed calculation would remove a limit.
import type { FieldRules } from "./json.js";
import type { ApiKeyUpdateParams } from "./resources/api-keys.js";
import type { Budget } from "./resources/budget.js";

const CAPS = ["input_tokens", "output_tokens", "total_tokens", "cost_cents", "alert_percents"] as const satisfies readonly (keyof Budget)[];

const OF_KEY = ["expires_at", "allowed_cidrs", "budget"] as const satisfies readonly (keyof ApiKeyUpdateParams)[];

/** The caps of a budget. */
export const BUDGET_RULES: FieldRules = { kept: CAPS };

/** The limits of a new key, whose scopes are an argument. */
export const KEY_RULES: FieldRules = { kept: [...OF_KEY, ...CAPS.map((cap) => `budget.${cap}`)] };

/** The limits of a key that is changed. */
export const KEY_UPDATE_RULES: FieldRules = { kept: [...(KEY_RULES.kept ?? []), "scopes"] };

/** The time for which a replaced secret stays valid. */
export const GRACE_RULES: FieldRules = { kept: ["grace_seconds"] };
