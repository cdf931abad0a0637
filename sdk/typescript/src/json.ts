import { KartaArgumentError } from "./errors.js";

/** Fields of an argument that need more care than others. */
export interface FieldRules {
  /** Paths at which `undefined` is refused, and which a `toJSON` method must not drop: without the field, the call would do something else. */
  readonly kept?: readonly string[];
  /** Fields of the argument itself that the caller reads directly, so they may be inherited or not enumerable. */
  readonly readDirectly?: readonly string[];
}

/** Deeper values would exhaust the stack. No body of the API comes near this depth. */
const MAX_DEPTH = 64;

/**
 * A copy of `value` that holds only what JSON can express; a Date becomes its text. Throws KartaArgumentError, with the path of the value as its field, for
 * anything that JSON would drop or turn into `null`: to the API `null` means "none", so that a failed calculation would remove a limit.
 */
export function plain(value: unknown, path: string, rules: FieldRules = {}, ancestors: readonly unknown[] = []): unknown {
  if (typeof value === "string" || typeof value === "boolean" || value === null) return value;
  if (typeof value === "number") {
    if (Number.isFinite(value)) return value;
    throw refused(path, `must be a finite number, not ${value}`);
  }
  if (typeof value !== "object") throw refused(path, `must not be ${article(typeof value)}`);
  if (ancestors.includes(value)) throw refused(path, "must not contain itself");
  if (ancestors.length >= MAX_DEPTH) throw refused(path, `must not be nested deeper than ${MAX_DEPTH} levels`);
  const data = withoutMethods(value, path);
  const within = [...ancestors, value];
  if (typeof data !== "object" || data === null) return plain(data, path, rules, within);
  if (Array.isArray(data)) return Array.from(data, (item, at) => plain(item, `${path}[${at}]`, rules, within));
  const kind = tag(data);
  if (kind === "Number" || kind === "String" || kind === "Boolean") return plain(data.valueOf(), path, rules, within);
  // A Map, a Set or a Promise would be sent as {}, also if its class has another name for itself.
  if (kind !== "Object" || Symbol.toStringTag in data) throw refused(path, `must be plain data, not ${article(kind)}`);
  const pathOf = (name: string) => (path === "" ? name : `${path}.${name}`);
  const readDirectly = ancestors.length === 0 ? (rules.readDirectly ?? []) : [];
  const hidden = hiddenFields(data).find((name) => !readDirectly.includes(name));
  if (hidden !== undefined) {
    throw refused(path, `must be plain data: JSON leaves out its field ${hidden}, which is inherited or not enumerable. Pass an object literal`);
  }
  const entries = Object.entries(data);
  for (const [name, field] of entries) {
    if (field === undefined && rules.kept?.includes(pathOf(name))) throw refused(pathOf(name), "must not be undefined: give a value, or leave the field out");
  }
  const dropped = [...Object.keys(value), ...hiddenFields(value)].find((name) => rules.kept?.includes(pathOf(name)) && !readDirectly.includes(name) && !(name in data));
  if (dropped !== undefined) throw refused(pathOf(dropped), "must not be dropped by a toJSON method");
  const fields = entries.filter(([, field]) => field !== undefined);
  return Object.fromEntries(fields.map(([name, field]) => [name, plain(field, pathOf(name), rules, within)]));
}

/**
 * The names of what reads as a field of `data` but is not sent: inherited or not enumerable. Methods do not count, nor does the `Object.prototype` of any
 * realm.
 */
function hiddenFields(data: object): string[] {
  const names: string[] = [];
  for (let owner: object | null = data; owner !== null && !isObjectPrototype(owner); owner = Object.getPrototypeOf(owner) as object | null) {
    for (const [name, { get, value, enumerable }] of Object.entries(Object.getOwnPropertyDescriptors(owner))) {
      const isData = get !== undefined || (value !== undefined && typeof value !== "function");
      if (isData && !(owner === data && enumerable)) names.push(name);
    }
  }
  return names.filter((name) => !Object.prototype.propertyIsEnumerable.call(data, name));
}

function isObjectPrototype(value: object): boolean {
  return Object.getPrototypeOf(value) === null && Object.hasOwn(value, "isPrototypeOf");
}

/** A plain copy of an argument that is an object, as a body or a part of one. Throws KartaArgumentError. */
export function fieldsOf<T extends object>(params: T, rules?: FieldRules): T {
  const fields = plain(params, "", rules);
  if (typeof fields !== "object" || fields === null || Array.isArray(fields)) throw refused("", "must be an object");
  return fields as T;
}

/** What `toJSON` makes of `value`, or `value` itself. */
function withoutMethods(value: object, path: string): unknown {
  const { toJSON } = value as { toJSON?: unknown };
  if (typeof toJSON !== "function") return value;
  let data: unknown;
  try {
    data = toJSON.call(value, path) as unknown;
  } catch (cause) {
    throw refused(path, "has a toJSON method that fails", cause);
  }
  if (data !== null && data !== undefined) return data;
  throw refused(path, tag(value) === "Date" ? "must be a valid date" : `must be plain data, not ${article(tag(value))} whose toJSON returns ${data}`);
}

/** The built-in type of `value`, also if it was made in another realm, where `instanceof` fails. */
function tag(value: object): string {
  return Object.prototype.toString.call(value).slice("[object ".length, -1);
}

function article(kind: string): string {
  if (kind === "undefined") return kind;
  return `${/^[aeiou]/i.test(kind) ? "an" : "a"} ${kind}`;
}

function refused(path: string, message: string, cause?: unknown): KartaArgumentError {
  return new KartaArgumentError(path || "params", message, cause === undefined ? undefined : { cause });
}
