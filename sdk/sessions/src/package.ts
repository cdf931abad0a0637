// The facts of this package that the shared sources use.

/** Name of the symbol that marks the package's error classes. */
export const ERROR_NAME = "@karta/sessions/error";

/** A cap of a budget, such as `total_tokens`. */
export type Cap = string;
