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
  return (
    readIfAllowed(() => globals.window?.document) !== undefined ||
    readIfAllowed(() => globals.navigator?.product) === "ReactNative" ||
    readIfAllowed(() => globals.navigator?.userAgent?.startsWith("Mozilla/")) === true
  );
}

/**
 * Returns an environment variable; `undefined` if it is empty, or if the runtime has no environment
 * or denies access.
 */
export function environment(name: string): string | undefined {
  return readIfAllowed(() => globals.process?.env?.[name]) || undefined;
}

/**
 * Returns the result of `read`, or `undefined` if the runtime denies access, as Deno does for
 * `process.env` without `--allow-env`.
 */
function readIfAllowed<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

let imported: Promise<Crypto> | undefined;

/** Returns WebCrypto. Node.js 18 has it only in a module, not as a global. */
export function webCrypto(): Promise<Crypto> {
  const builtIn = globalThis.crypto as Crypto | undefined;
  // The name is joined at run time so that bundlers for browsers do not resolve the module.
  imported ??= builtIn
    ? Promise.resolve(builtIn)
    : import(/* webpackIgnore: true */ /* @vite-ignore */ ["node", "crypto"].join(":")).then(
        (module) => module.webcrypto,
        (error: unknown) => {
          // The next call imports it again.
          imported = undefined;
          throw error;
        },
      );
  return imported;
}

/** Returns 32 random hexadecimal digits. */
export async function randomHex(): Promise<string> {
  const bytes = (await webCrypto()).getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
