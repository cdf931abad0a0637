import { KartaArgumentError } from "./errors.js";

/**
 * A copy of `value` that holds only what JSON can express; a Date becomes its text. Throws KartaArgumentError, with the path of the value as its field, for
 * anything that JSON would drop or turn into `null`: to the API `null` means "none", so that a failed calculation would remove a limit.
 */
export function plain(value: unknown, path: string, ancestors: readonly unknown[] = []): unknown {
  if (typeof value === "string" || typeof value === "boolean" || value === null) return value;
  if (typeof value === "number") {
    if (Number.isFinite(value)) return value;
    throw refused(path, `must be a finite number, not ${value}`);
  }
  if (typeof value !== "object") throw refused(path, `must not be ${article(typeof value)}`);
  if (ancestors.includes(value)) throw refused(path, "must not contain itself");
  const data = withoutMethods(value, path);
  const within = [...ancestors, value];
  if (typeof data !== "object" || data === null) return plain(data, path, within);
  if (Array.isArray(data)) return Array.from(data, (item, at) => plain(item, `${path}[${at}]`, within));
  const kind = tag(data);
  if (kind === "Number" || kind === "String" || kind === "Boolean") return plain(data.valueOf(), path, within);
  // A Map, a Set or a Promise would be sent as {}.
  if (kind !== "Object") throw refused(path, `must be plain data, not ${article(kind)}`);
  const fields = Object.entries(data).filter(([, field]) => field !== undefined);
  return Object.fromEntries(fields.map(([name, field]) => [name, plain(field, path === "" ? name : `${path}.${name}`, within)]));
}

/** A plain copy of an argument that is an object, as a body or a part of one. Throws KartaArgumentError. */
export function fieldsOf<T extends object>(params: T): T {
  const fields = plain(params, "");
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
