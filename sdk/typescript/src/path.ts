import { KartaArgumentError } from "./errors.js";
import { plain } from "./json.js";

/** What is put into a path: judged, so that a path leads nowhere else, and so that a mistake shows before anything is sent. */
type Segment = string;

/** An id: an integer from 1 to 2^53-1. Throws KartaArgumentError. */
export function id(value: number, field = "id"): Segment {
  if (Number.isSafeInteger(value) && value > 0) return String(value);
  const hint = typeof value === "string" ? ": pass Number(id)" : "";
  throw new KartaArgumentError(field, `must be an integer, as the API gives it${hint}`);
}

/** A project's slug. Throws KartaArgumentError. */
export function slug(value: string): Segment {
  if (typeof value === "string" && /^[a-z0-9-]{1,63}$/.test(value)) return encodeURIComponent(value);
  throw new KartaArgumentError("slug", "must be 1 to 63 of a-z, 0-9 and -");
}

/** A query: `undefined` is left out, a list is joined with commas. */
export type Query = Readonly<Record<string, string | number | readonly string[] | null | undefined>>;

/** A surrogate that is no half of a pair: UTF-8 has no bytes for it, so that it would be sent as another character. */
const LONE_SURROGATE = /\p{Surrogate}/u;

/** `?a=1&b=2`, or nothing. Throws KartaArgumentError for values that a query cannot hold. */
export function queryString(query: Query): string {
  const pairs = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null) pairs.set(name, queryValue(name, value));
  }
  const text = pairs.toString();
  return text === "" ? "" : `?${text}`;
}

function queryValue(name: string, value: unknown): string {
  const data = plain(value, name);
  const items: unknown[] = Array.isArray(data) ? data : [data];
  // Without the filter the list would have everything, which is the opposite of what an empty list says.
  if (items.length === 0) throw new KartaArgumentError(name, "must not be an empty list: leave it out to not filter");
  for (const item of items) {
    if (typeof item === "object") throw new KartaArgumentError(name, "must be text, a number, or a list of them");
    if (LONE_SURROGATE.test(String(item))) throw new KartaArgumentError(name, "must be well-formed Unicode: it has a lone surrogate");
  }
  return String(data);
}
