/** Matches text that looks like a secret. A proxy may echo a request with its headers and body. */
const SECRETS = /kt_live_\w{7,}|whsec_[\w+/=-]{7,}|karta_service_\w{7,}|\bsk-[\w-]{12,}|\bBearer\s+[\w.~+/=-]{8,}|\beyJ[\w-]+\.[\w-]+\.[\w-]+/g;

export const REDACTED = "[redacted]";

/** Removes the secrets of a request, of which an echo may show any. */
export type Hide = (text: string) => string;

/** Deeper values would exhaust the stack. */
const MAX_DEPTH = 64;

export function redactText(text: string, hide?: Hide): string {
  return (hide?.(text) ?? text).replace(SECRETS, REDACTED);
}

/** Returns a copy of parsed JSON without secrets in its texts and names. */
export function redact(value: unknown, hide?: Hide, depth = 0): unknown {
  if (typeof value === "string") return redactText(value, hide);
  if (typeof value !== "object" || value === null) return value;
  if (depth === MAX_DEPTH) return "[too deep]";
  if (Array.isArray(value)) return value.map((item) => redact(item, hide, depth + 1));
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [redactText(name, hide), redact(item, hide, depth + 1)]));
}
