import { failureOf } from "./shared/failure.js";
import { isObject, parsedJson } from "./shared/json.js";

/**
 * Returns the parsed body of a success; throws the typed error for any other response. `text` is
 * the whole body.
 */
export function read(response: Response, text: string, now: () => number): unknown {
  if (response.ok) {
    if (text === "" && (response.status === 202 || response.status === 204)) return undefined;
    const body = parsedJson(text);
    if (isObject(body)) return body;
  }
  throw failureOf(response, text, now);
}
