import { KartaArgumentError } from "./errors.js";
import { plain } from "./json.js";
import { wellFormed } from "./shared/arguments.js";

/**
 * A validated path segment. It cannot lead to another path, and mistakes are reported before
 * anything is sent.
 */
type Segment = string;

/** Returns an id, an integer from 1 to 2^53-1, as a path segment. Throws KartaArgumentError. */
export function id(value: number, field = "id"): Segment {
  if (Number.isSafeInteger(value) && value > 0) return String(value);
  const hint = typeof value === "string" ? ": pass Number(id)" : "";
  throw new KartaArgumentError(field, `must be a positive integer${hint}`);
}

/** Returns a project's slug as a path segment. Throws KartaArgumentError. */
export function slug(value: string): Segment {
  if (typeof value === "string" && /^[a-z0-9-]{1,63}$/.test(value)) return encodeURIComponent(value);
  throw new KartaArgumentError("slug", "must be 1 to 63 characters of a-z, 0-9 and -");
}

/** Filters that accept a list. In another one, a comma would be part of the value. */
const LISTS: readonly string[] = ["status"];

/** Query parameters. `undefined` is omitted; a list is joined with commas. */
export type Query = Readonly<Record<string, string | number | readonly string[] | null | undefined>>;

/**
 * Returns `?a=1&b=2`, or an empty string. Throws KartaArgumentError for values that a query cannot
 * hold.
 */
export function queryString(query: Query): string {
  const pairs = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined) pairs.set(name, queryValue(name, value));
  }
  const text = pairs.toString();
  return text === "" ? "" : `?${text}`;
}

function queryValue(name: string, value: unknown): string {
  // Without the filter the list would return everything.
  if (value === null) throw new KartaArgumentError(name, "must not be null: pass a value or omit it");
  const data = plain(value, name);
  if (Array.isArray(data) && !LISTS.includes(name)) throw new KartaArgumentError(name, "must have one value, not a list");
  const items: unknown[] = Array.isArray(data) ? data : [data];
  // Without the filter the list would return everything, the opposite of an empty filter.
  if (items.length === 0) throw new KartaArgumentError(name, "must not be an empty list: omit it to list everything");
  for (const item of items) {
    if (typeof item === "object") throw new KartaArgumentError(name, "must be a string, a number, or a list of them");
    wellFormed(String(item), name);
  }
  return String(data);
}
