interface Globals {
  process?: { env?: Record<string, string | undefined> };
  window?: { document?: unknown };
  navigator?: { userAgent?: string; product?: string };
}

const globals = globalThis as Globals;

/**
 * Returns whether the code runs on an end user's device: in a browser's page or worker, or in React
 * Native.
 */
export function isOnClient(): boolean {
  const navigator = readIfAllowed(() => globals.navigator);
  return (
    readIfAllowed(() => globals.window?.document) !== undefined ||
    readIfAllowed(() => navigator?.product === "ReactNative" || navigator?.userAgent?.startsWith("Mozilla/")) === true
  );
}

/** Returns an environment variable; `undefined` if it is empty or cannot be read. */
export function environment(name: string): string | undefined {
  return readIfAllowed(() => globals.process?.env?.[name]) || undefined;
}

/** Returns the result of `read`; `undefined` if the runtime denies access, as Deno does. */
function readIfAllowed<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

/** Returns a new random UUID, or 32 random hexadecimal digits on a page without HTTPS. */
export async function randomId(): Promise<string> {
  // Node.js 18 has WebCrypto only in a module. The name is joined at run time so that bundlers for
  // browsers do not resolve the module.
  const crypto: Crypto =
    (globalThis.crypto as Crypto | undefined) ?? (await import(/* webpackIgnore: true */ /* @vite-ignore */ ["node", "crypto"].join(":"))).webcrypto;
  if (typeof crypto.randomUUID === "function") return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
