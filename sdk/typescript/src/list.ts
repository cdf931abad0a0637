import { KartaArgumentError, KartaResponseError } from "./errors.js";

/** What every list takes. */
export interface ListParams {
  /** At most so many items altogether; all of them unless given. */
  limit?: number | undefined;
  /** Where to go on: an earlier page's `next_cursor`, with the same filters. */
  cursor?: string | null | undefined;
}

/** One page, as the API answered it. */
export interface Page<T> {
  items: T[];
  /** Where the next page starts; `null` after the last. */
  next_cursor: string | null;
}

const LONGEST_PAGE = 100;

/**
 * A list that is fetched page by page. Nothing is sent before it is awaited or iterated.
 *
 * - `await list`: an array of all its items.
 * - `for await (const item of list)`: item after item; a page is fetched when it is reached.
 * - `await list.page()`: one page and the cursor of the next.
 */
export class List<T> implements Promise<T[]>, AsyncIterable<T> {
  readonly [Symbol.toStringTag] = "List";
  readonly #params: ListParams;
  readonly #fetch: (page: { limit: number; cursor: string | undefined }) => Promise<Page<T>>;
  #all: Promise<T[]> | undefined;

  constructor(params: ListParams, fetch: (page: { limit: number; cursor: string | undefined }) => Promise<Page<T>>) {
    this.#params = params;
    this.#fetch = fetch;
  }

  /** One page of at most `limit` items (100 unless given, and at most). It may be short, or empty, and still have a next. */
  async page(): Promise<Page<T>> {
    return this.#fetch({ limit: Math.min(this.#limit(), LONGEST_PAGE), cursor: this.#params.cursor ?? undefined });
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    let left = this.#limit();
    let cursor = this.#params.cursor ?? undefined;
    while (left > 0) {
      const page = await this.#fetch({ limit: Math.min(left, LONGEST_PAGE), cursor });
      for (const item of page.items.slice(0, left)) yield item;
      left -= page.items.length;
      if (page.next_cursor === null) return;
      // It would go round for ever.
      if (page.next_cursor === cursor) throw new KartaResponseError("the server gave the same cursor twice");
      cursor = page.next_cursor;
    }
  }

  then<A = T[], B = never>(
    fulfilled?: ((items: T[]) => A | PromiseLike<A>) | null,
    rejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.#collect().then(fulfilled, rejected);
  }

  catch<B = never>(rejected?: ((reason: unknown) => B | PromiseLike<B>) | null): Promise<T[] | B> {
    return this.#collect().catch(rejected);
  }

  finally(settled?: (() => void) | null): Promise<T[]> {
    return this.#collect().finally(settled);
  }

  /** Fetched once, however often it is awaited. */
  #collect(): Promise<T[]> {
    return (this.#all ??= (async () => {
      const items: T[] = [];
      for await (const item of this) items.push(item);
      return items;
    })());
  }

  #limit(): number {
    const { limit } = this.#params;
    if (limit === undefined) return Infinity;
    if (Number.isSafeInteger(limit) && limit > 0) return limit;
    throw new KartaArgumentError("limit", "must be a whole number above 0");
  }
}
