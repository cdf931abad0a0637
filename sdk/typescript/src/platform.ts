interface Surroundings {
  process?: { env?: Record<string, string | undefined> };
  window?: { document?: unknown };
  navigator?: { userAgent?: string; product?: string };
}

const surroundings = globalThis as Surroundings;

/** Whether the code runs on an end user's device: in a browser's page or worker, or in React Native. */
export function isOnClient(): boolean {
  return (
    permitted(() => surroundings.window?.document) !== undefined ||
    permitted(() => surroundings.navigator?.product) === "ReactNative" ||
    permitted(() => surroundings.navigator?.userAgent?.startsWith("Mozilla/")) === true
  );
}

/** An environment variable; absent if it is empty, or if the runtime has no environment or does not let this code read it. */
export function environment(name: string): string | undefined {
  return permitted(() => surroundings.process?.env?.[name]) || undefined;
}

/** What `read` returns; `undefined` if the runtime forbids reading it, as Deno does with `process.env` unless `--allow-env` is given. */
function permitted<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

let fetched: Promise<Crypto> | undefined;

/** WebCrypto. Node.js 18 has it in a module alone, not as a global. */
export function webCrypto(): Promise<Crypto> {
  const here = globalThis.crypto as Crypto | undefined;
  // The name is put together so that bundlers for browsers do not look for the module.
  fetched ??= here
    ? Promise.resolve(here)
    : import(/* webpackIgnore: true */ /* @vite-ignore */ ["node", "crypto"].join(":")).then(
        (module) => module.webcrypto,
        (error: unknown) => {
          // The next call tries again.
          fetched = undefined;
          throw error;
        },
      );
  return fetched;
}
