// The facts of this package that the shared sources use.
import type { BudgetParams } from "./resources/budget.js";

/** Name of the symbol that marks the package's error classes. */
export const ERROR_NAME = "@karta/sdk/error";

/** A cap of a budget. */
export type Cap = Exclude<keyof BudgetParams, "alert_percents">;
