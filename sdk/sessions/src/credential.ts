import { KartaAuthError, KartaError } from "./shared/errors.js";
import { sessionTokenOf, type TokenProvider } from "./options.js";

/** Maximum tokens that are remembered to remove them from errors. */
const MAX_KNOWN = 8;

/** The client's key or session token. No other class holds it between requests. */
export class Credential {
  readonly #provider: TokenProvider | undefined;
  #token: Promise<string> | undefined;
  /** Tokens that requests carried, the newest last. */
  readonly #known = new Set<string>();

  constructor(source: string | TokenProvider) {
    if (typeof source === "function") this.#provider = source;
    else {
      this.#known.add(source);
      this.#token = Promise.resolve(source);
    }
  }

  /** Returns whether a rejected token can be replaced. */
  get isRenewable(): boolean {
    return this.#provider !== undefined;
  }

  /** Tokens that requests carried. */
  get known(): Iterable<string> {
    return this.#known;
  }

  /**
   * Returns the token. If it is `rejected`, fetches a new one. Callers that wait at the same time
   * share one fetch.
   *
   * @throws {KartaAuthError} if the provider fails; {KartaArgumentError} if it returns no token.
   */
  async token(rejected?: string): Promise<string> {
    const before = this.#token ?? this.#fetch();
    const current = await before;
    if (current !== rejected) return current;
    // Another caller may have started a fetch while this one waited.
    return this.#token === undefined || this.#token === before ? this.#fetch() : this.#token;
  }

  /** Stops waiting for a function that does not return, so that the next request calls it again. */
  forget(): void {
    if (this.#provider !== undefined) this.#token = undefined;
  }

  #fetch(): Promise<string> {
    const fetched = this.#call();
    this.#token = fetched;
    fetched.catch(() => {
      // The next request asks the provider again.
      if (this.#token === fetched) this.#token = undefined;
    });
    return fetched;
  }

  async #call(): Promise<string> {
    let value: unknown;
    try {
      value = await this.#provider?.();
    } catch (cause) {
      throw cause instanceof KartaError ? cause : new KartaAuthError("the sessionToken function failed", { cause });
    }
    const token = sessionTokenOf(value);
    this.#known.delete(token);
    this.#known.add(token);
    for (const oldest of this.#known) {
      if (this.#known.size <= MAX_KNOWN) break;
      this.#known.delete(oldest);
    }
    return token;
  }
}
