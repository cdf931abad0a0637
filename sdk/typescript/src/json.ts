import { KartaArgumentError } from "./errors.js";
import { article, builtInType, hiddenFields } from "./shared/arguments.js";

/** Fields of an argument that need extra checks. */
export interface FieldRules {
  /**
   * Paths at which `undefined` is rejected. A `toJSON` method must not drop them or an object around
   * them: without the field, the call would do something else.
   */
  readonly kept?: readonly string[];
  /**
   * Fields of the argument itself that the caller reads directly, so they may be inherited or not
   * enumerable.
   */
  readonly readDirectly?: readonly string[];
}

/**
 * Maximum nesting of a body. Deeper values would exhaust the stack; no body of the API is nearly as
 * deep.
 */
const MAX_DEPTH = 64;

/**
 * Returns a copy of `value` that contains only what JSON can express; a Date becomes its text.
 * Throws KartaArgumentError, with the value's path as its field, for anything that JSON would drop
 * or turn into `null`. The API reads `null` as "none", so a failed calculation would remove a
 * limit.
 */
export function plain(value: unknown, path: string, rules: FieldRules = {}, ancestors: readonly unknown[] = []): unknown {
  if (typeof value === "string" || typeof value === "boolean" || value === null) return value;
  if (typeof value === "number") {
    if (Number.isFinite(value)) return value;
    throw argumentError(path, `must be a finite number, not ${value}`);
  }
  if (typeof value !== "object") throw argumentError(path, `must not be ${article(typeof value)}`);
  if (ancestors.includes(value)) throw argumentError(path, "must not contain itself");
  if (ancestors.length >= MAX_DEPTH) throw argumentError(path, `must not be nested deeper than ${MAX_DEPTH} levels`);
  const data = applyToJSON(value, path);
  const within = [...ancestors, value];
  if (typeof data !== "object" || data === null) return plain(data, path, rules, within);
  if (Array.isArray(data)) return Array.from(data, (item, at) => plain(item, `${path}[${at}]`, rules, within));
  const kind = builtInType(data);
  if (kind === "Number" || kind === "String" || kind === "Boolean") {
    const unboxed: unknown = data.valueOf();
    if (typeof unboxed === kind.toLowerCase()) return plain(unboxed, path, rules, within);
    throw argumentError(path, `must be plain data, not ${article(kind)} whose valueOf returns another type`);
  }
  // A Map, a Set or a Promise would be sent as {}, even if its class sets another
  // Symbol.toStringTag.
  if (kind !== "Object" || Symbol.toStringTag in data) throw argumentError(path, `must be plain data, not ${article(kind)}`);
  const pathOf = (name: string) => (path === "" ? name : `${path}.${name}`);
  const readDirectly = ancestors.length === 0 ? (rules.readDirectly ?? []) : [];
  const hidden = hiddenFields(data).find((name) => !readDirectly.includes(name));
  if (hidden !== undefined) {
    throw argumentError(path, `must be plain data: JSON omits its field ${hidden}, which is inherited or not enumerable. Pass an object literal`);
  }
  const entries = Object.entries(data);
  for (const [name, field] of entries) {
    if (field === undefined && rules.kept?.includes(pathOf(name))) throw argumentError(pathOf(name), "must not be undefined: pass a value or omit the field");
  }
  const prefix = pathOf("");
  for (const kept of rules.kept ?? []) {
    if (data === value || readDirectly.includes(kept) || !kept.startsWith(prefix)) continue;
    const dropped = droppedPath(value, data, kept.slice(prefix.length).split("."));
    if (dropped !== undefined) throw argumentError(pathOf(dropped), "must not be dropped by a toJSON method");
  }
  const fields = entries.filter(([, field]) => field !== undefined);
  return Object.fromEntries(fields.map(([name, field]) => [name, plain(field, pathOf(name), rules, within)]));
}

/**
 * Follows a path of fields in `value` and in `data`, the result of its toJSON method. Returns the
 * part of the path up to the first field that only `value` has.
 */
function droppedPath(value: unknown, data: unknown, [name = "", ...below]: readonly string[]): string | undefined {
  const before = Object(value) as Record<string, unknown>;
  const after = Object(data) as Record<string, unknown>;
  if (!(name in before)) return undefined;
  // An undefined field above the last one holds nothing that could be dropped.
  if (after[name] === undefined && (before[name] !== undefined || (below.length === 0 && !(name in after)))) return name;
  const dropped = below.length === 0 ? undefined : droppedPath(before[name], after[name], below);
  return dropped === undefined ? undefined : `${name}.${dropped}`;
}

/**
 * Returns a plain copy of an object argument, to be sent as a body or part of one. Throws
 * KartaArgumentError.
 */
export function fieldsOf<T extends object>(params: T, rules?: FieldRules): T {
  const fields = plain(params, "", rules);
  if (typeof fields !== "object" || fields === null || Array.isArray(fields)) throw argumentError("", "must be an object");
  return fields as T;
}

/** Returns the result of `value.toJSON()`, or `value` if it has no such method. */
function applyToJSON(value: object, path: string): unknown {
  const { toJSON } = value as { toJSON?: unknown };
  if (typeof toJSON !== "function") return value;
  let data: unknown;
  try {
    data = toJSON.call(value, path) as unknown;
  } catch (cause) {
    throw argumentError(path, "has a toJSON method that throws", cause);
  }
  if (data !== null && data !== undefined) return data;
  throw argumentError(path, builtInType(value) === "Date" ? "must be a valid date" : `must be plain data, not ${article(builtInType(value))} whose toJSON returns ${data}`);
}

function argumentError(path: string, message: string, cause?: unknown): KartaArgumentError {
  return new KartaArgumentError(path || "params", message, cause === undefined ? undefined : { cause });
}
