interface Surroundings {
  process?: { env?: Record<string, string | undefined> };
  window?: { document?: unknown };
  navigator?: { userAgent?: string; product?: string };
}

const surroundings = globalThis as Surroundings;

/** Whether the code runs on an end user's device: in a browser's page or worker, or in React Native. */
export function isOnClient(): boolean {
  const { window, navigator } = surroundings;
  return (
    window?.document !== undefined ||
    navigator?.product === "ReactNative" ||
    navigator?.userAgent?.startsWith("Mozilla/") === true
  );
}

/** An environment variable; absent where there are none, and where it is empty. */
export function environment(name: string): string | undefined {
  return surroundings.process?.env?.[name] || undefined;
}

let fetched: Promise<Crypto> | undefined;

/** WebCrypto. Node.js 18 has it in a module alone, not as a global. */
export function webCrypto(): Promise<Crypto> {
  const here = globalThis.crypto as Crypto | undefined;
  // The name is put together so that bundlers for browsers do not look for the module.
  fetched ??= here
    ? Promise.resolve(here)
    : import(/* webpackIgnore: true */ /* @vite-ignore */ ["node", "crypto"].join(":")).then((module) => module.webcrypto);
  return fetched;
}
