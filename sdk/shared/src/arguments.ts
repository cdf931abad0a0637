import { KartaArgumentError } from "./errors.js";

/**
 * Returns `given`, or {} for the `undefined` or `null` that plain JavaScript may pass. Throws
 * KartaArgumentError for another type, and for a field that is not one of `names`: a misspelt
 * filter or option would have no effect. `argument` is the name of the argument. A field of `params`
 * that is `undefined` is absent, as in a body.
 */
export function knownOnly<T extends object>(
  given: T | null | undefined,
  argument: "params" | "options",
  names: readonly (keyof T & string)[],
): Partial<T> {
  const fields: Partial<T> = given ?? {};
  const known = `Known names: ${names.join(", ")}`;
  const kind = builtInType(fields);
  if (kind !== "Object" || Symbol.toStringTag in fields) throw new KartaArgumentError(argument, `must be an object, not ${article(kind)}. ${known}`);
  const isAbsent = (name: string) => argument === "params" && Reflect.get(fields, name) === undefined;
  const unknown = [...Object.keys(fields), ...hiddenFields(fields)].find((name) => !(names as readonly string[]).includes(name) && !isAbsent(name));
  if (unknown === undefined) return fields;
  const meant = names.find((name) => lettersOf(name) === lettersOf(unknown));
  throw new KartaArgumentError(unknown, `is unknown${meant === undefined ? "" : `: use ${meant}`}. ${known}`);
}

/** Throws KartaArgumentError if one of `names` is a field of `fields` that is `undefined`. */
export function rejectUndefined<T extends object>(fields: T, ...names: (keyof T & string)[]): void {
  for (const name of names) {
    if (name in fields && fields[name] === undefined) throw new KartaArgumentError(name, "must not be undefined: pass a value or omit the field");
  }
}

/**
 * A surrogate without its pair. UTF-8 cannot encode it, so a query would have another character.
 */
const LONE_SURROGATE = /\p{Surrogate}/u;

/** Returns `text`, a value of a query. Throws KartaArgumentError if it is not well-formed. */
export function wellFormed(text: string, field: string): string {
  if (!LONE_SURROGATE.test(text)) return text;
  throw new KartaArgumentError(field, "must be well-formed Unicode: it has a lone surrogate");
}

/** Returns `name` without case and separators: `base_url` and `baseURL` are equal. */
function lettersOf(name: string): string {
  return name.toLowerCase().replace(/[-_]/g, "");
}

/**
 * Returns the names of fields of `data` that can be read but are not sent, because they are
 * inherited or not enumerable. Methods and the `Object.prototype` of any realm do not count.
 */
export function hiddenFields(data: object): string[] {
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

/**
 * Returns the built-in type of `value`, also for a value of another realm, where `instanceof`
 * fails.
 */
export function builtInType(value: object): string {
  return Object.prototype.toString.call(value).slice("[object ".length, -1);
}

export function article(kind: string): string {
  if (kind === "undefined") return kind;
  return `${/^[aeiou]/i.test(kind) ? "an" : "a"} ${kind}`;
}
