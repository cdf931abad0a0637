import { isObject, parsedJson } from "./shared/json.js";
import { REDACTED, type Hide } from "./shared/redact.js";

/** The parts of a URL that may have a secret: user and password, and query and fragment. */
const PARTS_OF_URL = /^\w+:\/\/(?:([^/?#]*)@)?[^?#]*[?#]?(.*)/;

/** Deeper values would exhaust the stack. */
const MAX_DEPTH = 64;
/** Minimum characters of a secret. Without shorter texts, no message would be readable. */
const MIN_SECRET = 4;
/** Minimum letters and digits of a secret's start, if its rest is cut off. */
const MIN_START = 16;
/** Maximum characters that stand for one character in an echo, such as `%252F` or `\\\\n`. */
const MAX_ESCAPE = 32;

/** Returns a function that removes the `credential` and the secrets of a request's body. */
export function hiding(credential: string, body: unknown): Hide {
  // The longest first, because a secret may contain another.
  const secrets = [credential, ...secretsOf(body)].sort((one, other) => other.length - one.length);
  return (text) => secrets.reduce(without, text);
}

/** Returns the secrets of a request's body: the texts of a provider's key, and parts of URLs. */
function secretsOf(body: unknown): string[] {
  if (!isObject(body)) return [];
  const texts = Object.values(body).filter((value) => typeof value === "string");
  return [...textsIn(body.key), ...texts.flatMap(partsOfUrl)];
}

/** Returns the parts of a URL that may have a secret, as they are written and decoded. */
function partsOfUrl(text: string): string[] {
  const written = PARTS_OF_URL.exec(text)?.slice(1).filter((part) => part !== undefined) ?? [];
  try {
    const { username, password, searchParams } = new URL(text);
    return [...written, decodeURIComponent(username), decodeURIComponent(password), ...searchParams.values()];
  } catch {
    return written;
  }
}

/** Returns the texts in `value`, and the texts within those that are JSON. */
function textsIn(value: unknown, depth = 0): string[] {
  if (depth === MAX_DEPTH) return [];
  if (typeof value === "string") {
    const parsed = parsedJson(value);
    return [value, ...(typeof parsed === "object" ? textsIn(parsed, depth + 1) : [])];
  }
  if (typeof value !== "object" || value === null) return [];
  return Object.values(value).flatMap((item) => textsIn(item, depth + 1));
}

/** Removes `secret`, also if its punctuation is escaped or its end is cut off. */
function without(text: string, secret: string): string {
  if (secret.length < MIN_SECRET) return text;
  // Runs of letters and digits, and the punctuation between them.
  const parts = secret.replace(/^[^a-z\d]+/i, "").split(/([^a-z\d]+)/i);
  const length = parts.reduce((sum, part, at) => (at % 2 === 0 ? sum + part.length : sum), 0);
  let rest = text.replaceAll(secret, REDACTED);
  if (length < MIN_SECRET) return rest;
  let clean = "";
  for (let at = 0; (at = rest.indexOf((parts[0] as string).slice(0, MIN_START), at)) >= 0; at++) {
    const [end, matched] = longestStart(parts, rest, at);
    if (matched < Math.min(length, MIN_START)) continue;
    clean += rest.slice(0, at) + REDACTED;
    rest = rest.slice(end);
    at = -1;
  }
  return clean + rest;
}

/**
 * Returns the end of the longest start of a secret that `text` has from `at` on, and its number of
 * letters and digits.
 */
function longestStart(parts: readonly string[], text: string, at: number): [end: number, matched: number] {
  let end = at;
  let matched = 0;
  for (const [index, part] of parts.entries()) {
    if (index % 2 === 1) continue;
    const gap = (parts[index - 1] ?? "").length * MAX_ESCAPE;
    const near = text.slice(end, end + gap + part.length);
    const found = near.indexOf(part);
    if (found >= 0) {
      end += found + part.length;
      matched += part.length;
      continue;
    }
    const cut = near.indexOf(part.slice(0, MIN_SECRET));
    let same = 0;
    while (cut >= 0 && near[cut + same] === part[same]) same += 1;
    if (cut >= 0) end += cut + same;
    return [end, matched + same];
  }
  return [end, matched];
}
