import { KartaArgumentError, KartaSignatureError } from "./errors.js";
import type { KartaEvent } from "./events.js";
import { knownOnly } from "./shared/arguments.js";
import { functionOf } from "./shared/options.js";
import { webCrypto } from "./shared/platform.js";

/** Options of `verifyWebhook`. */
export interface VerifyWebhookOptions {
  /**
   * Maximum difference in seconds between the signature's time and now. Default: 300. Infinity and
   * NaN reject every signature, so the check cannot be turned off.
   */
  tolerance?: number | undefined;
  /** Returns milliseconds since 1970; for tests. */
  now?: (() => number) | undefined;
}

/** Headers of a request, as `fetch` or Node.js provides them. */
export type WebhookHeaders = Headers | Readonly<Record<string, string | readonly string[] | undefined>>;

/** The signature part of a delivery, not verified yet. */
interface Claim {
  /** Time of signing, in seconds since 1970. */
  at: string;
  /** Part of the signed text before the payload. */
  signedPrefix: string;
  key: Uint8Array<ArrayBuffer>;
  /** One MAC for each live secret; an unreadable one is empty. */
  signatures: Uint8Array[];
}

/**
 * Returns the event of a webhook after verifying that it comes from Karta, is recent and is
 * unchanged. Reads the signature from `Karta-Signature` (Stripe's format), or from the headers of
 * Standard Webhooks if it is missing.
 *
 * @param payload The raw body as text or bytes, not parsed.
 * @param secret The endpoint's `whsec_…`.
 * @throws {KartaSignatureError} if verification fails; `reason` names the cause.
 * {KartaArgumentError} for an invalid or unknown option.
 */
export async function verifyWebhook(
  payload: string | ArrayBuffer | ArrayBufferView,
  headers: WebhookHeaders,
  secret: string,
  options: VerifyWebhookOptions = {},
): Promise<KartaEvent> {
  const given = knownOnly<VerifyWebhookOptions>(options, "options", ["tolerance", "now"]);
  const tolerance = numberOf(given.tolerance ?? 300, "tolerance", "seconds");
  const now = functionOf(given.now, "now") ?? Date.now;
  const bytes = bytesOf(payload);
  const { at, signedPrefix, key, signatures } = claim(headers, secret);
  const { subtle } = await webCrypto();
  const hmac = { name: "HMAC", hash: "SHA-256" };
  const imported = await subtle.importKey("raw", key, hmac, false, ["sign"]);
  const expected = new Uint8Array(await subtle.sign(hmac, imported, joined(new TextEncoder().encode(signedPrefix), bytes)));
  if (!signatures.map((signature) => equal(signature, expected)).includes(true)) {
    throw new KartaSignatureError(
      "no_match",
      "no signature matches: the secret belongs to another endpoint, or the payload is not the raw body",
    );
  }
  const late = numberOf(now(), "now", "milliseconds") / 1000 - Number(at);
  if (!(Math.abs(late) <= tolerance && tolerance < Infinity)) {
    const side = late > 0 ? "ago" : "ahead";
    const message = `signed ${Math.abs(Math.round(late))} s ${side}, outside the tolerance of ${tolerance} s: the request was replayed, or this machine's clock is off`;
    throw new KartaSignatureError("outside_tolerance", message);
  }
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)) as KartaEvent;
  } catch (cause) {
    throw new KartaSignatureError("malformed_payload", "the payload is signed but is not JSON", { cause });
  }
}

function numberOf(value: unknown, field: string, unit: string): number {
  if (typeof value === "number") return value;
  throw new KartaArgumentError(field, `must ${field === "now" ? "return" : "be"} a number of ${unit}`);
}

function bytesOf(payload: unknown): Uint8Array<ArrayBuffer> {
  if (typeof payload === "string") return new TextEncoder().encode(payload);
  // Bytes may come from another realm, such as an iframe, where `instanceof` fails.
  if (ArrayBuffer.isView(payload)) return new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength).slice();
  if (/^\[object (Shared)?ArrayBuffer]$/.test(Object.prototype.toString.call(payload))) return new Uint8Array(payload as ArrayBuffer).slice();
  throw new KartaSignatureError(
    "malformed_payload",
    "payload must be the raw body as text or bytes, not parsed: in Express use express.raw({ type: \"application/json\" })",
  );
}

function claim(headers: WebhookHeaders, secret: unknown): Claim {
  if (typeof secret !== "string" || !/^whsec_[\w+/=-]+$/.test(secret)) {
    throw new KartaSignatureError("malformed_secret", "secret must be the endpoint's whsec_… without whitespace");
  }
  const stripeFormat = header(headers, "karta-signature");
  if (stripeFormat !== undefined) return stripe(stripeFormat, secret);
  const signature = header(headers, "webhook-signature");
  const messageId = header(headers, "webhook-id");
  const at = header(headers, "webhook-timestamp");
  if (signature === undefined || messageId === undefined || at === undefined) {
    throw new KartaSignatureError("missing_header", "the headers have neither Karta-Signature nor all of webhook-id, webhook-timestamp and webhook-signature");
  }
  return standard(signature, messageId, at, secret);
}

/**
 * Parses `t=<unix>,v1=<hex>[,v1=<hex>]`, which signs `<t>.<payload>` with the secret's text as the
 * key.
 */
function stripe(text: string, secret: string): Claim {
  const pairs = text.split(",").map((pair) => pair.trim().split("=", 2));
  const times = pairs.filter(([name]) => name === "t").map(([, value]) => value ?? "");
  const signatures = pairs.filter(([name]) => name === "v1").map(([, value]) => bytesOfHex(value ?? ""));
  const [at = ""] = times;
  if (times.length !== 1 || !/^\d{1,12}$/.test(at) || signatures.length === 0) {
    throw new KartaSignatureError("malformed_header", "Karta-Signature must be t=<unix seconds>,v1=<hex>");
  }
  return { at, signedPrefix: `${at}.`, key: new TextEncoder().encode(secret), signatures };
}

/**
 * Parses `v1,<base64>[ v1,<base64>]`, which signs `<id>.<timestamp>.<payload>` with the secret's
 * decoded bytes as the key.
 */
function standard(text: string, messageId: string, at: string, secret: string): Claim {
  const signatures = text.split(" ").filter((part) => part.startsWith("v1,")).map((part) => bytesOfBase64(part.slice(3)));
  if (!/^\d{1,12}$/.test(at) || signatures.length === 0) {
    throw new KartaSignatureError("malformed_header", "webhook-timestamp must be unix seconds, and webhook-signature v1,<base64>");
  }
  const key = bytesOfBase64(secret.slice("whsec_".length));
  if (key.length === 0) throw new KartaSignatureError("malformed_secret", "secret must be whsec_ followed by base64");
  return { at, signedPrefix: `${messageId}.${at}.`, key, signatures };
}

function header(headers: WebhookHeaders, name: string): string | undefined {
  // Some fetch implementations do not use the global Headers.
  if (isFetchHeaders(headers)) return headers.get(name) ?? undefined;
  for (const [key, value] of Object.entries(headers ?? {})) {
    if (key.toLowerCase() === name && value !== undefined && value !== null) return String(value);
  }
  return undefined;
}

function isFetchHeaders(headers: WebhookHeaders): headers is Headers {
  return typeof (headers as Headers | undefined)?.get === "function";
}

function bytesOfHex(text: string): Uint8Array<ArrayBuffer> {
  if (!/^([0-9a-f]{2})*$/i.test(text)) return new Uint8Array();
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

function bytesOfBase64(text: string): Uint8Array<ArrayBuffer> {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    return new Uint8Array();
  }
}

function joined(before: Uint8Array, after: Uint8Array): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(before.length + after.length);
  whole.set(before);
  whole.set(after, before.length);
  return whole;
}

/** Compares in constant time. */
function equal(one: Uint8Array, other: Uint8Array): boolean {
  if (one.length !== other.length) return false;
  let difference = 0;
  for (let at = 0; at < one.length; at++) difference |= (one[at] as number) ^ (other[at] as number);
  return difference === 0;
}
