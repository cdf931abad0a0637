import { KartaArgumentError, KartaResponseError } from "./errors.js";

/** Parameters of every list. Unknown names are rejected. */
export interface ListParams {
  /** Maximum items over all pages. Default: all items. */
  limit?: number | undefined;
  /** Start of the list: the `next_cursor` of an earlier page with the same filters. */
  cursor?: string | null | undefined;
}

/** One page of a list. */
export interface Page<T> {
  items: T[];
  /** Start of the next page; `null` after the last. */
  next_cursor: string | null;
}

type FetchPage<T> = (page: { limit: number; cursor: string | undefined }) => Promise<Page<T>>;

const MAX_PAGE_SIZE = 100;

/**
 * A list that is fetched page by page. It sends nothing until it is awaited or iterated.
 *
 * - `for await (const item of list)` returns one item after another and fetches a page when it is
 *   reached.
 * - `await list` returns an array of all items.
 * - `await list.page()` returns one page and the cursor of the next.
 */
export class List<T> implements AsyncIterable<T>, PromiseLike<T[]> {
  readonly #limit: number;
  readonly #cursor: string | undefined;
  readonly #fetch: FetchPage<T>;

  /** @throws {KartaArgumentError} for an invalid limit. */
  constructor({ limit, cursor }: ListParams, fetch: FetchPage<T>) {
    if (limit !== undefined && !(Number.isSafeInteger(limit) && limit > 0)) throw new KartaArgumentError("limit", "must be a positive integer");
    this.#limit = limit ?? Infinity;
    this.#cursor = cursor ?? undefined;
    this.#fetch = fetch;
  }

  /** Fetches one page of up to `limit` items, at most 100. A short page may have a next one. */
  page(): Promise<Page<T>> {
    return this.#fetch({ limit: Math.min(this.#limit, MAX_PAGE_SIZE), cursor: this.#cursor });
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    let left = this.#limit;
    let cursor = this.#cursor;
    while (left > 0) {
      const page = await this.#fetch({ limit: Math.min(left, MAX_PAGE_SIZE), cursor });
      yield* page.items.slice(0, left);
      left -= page.items.length;
      if (page.next_cursor === null) return;
      // The loop would not end.
      if (page.next_cursor === cursor) throw new KartaResponseError("the server returned the same cursor twice");
      cursor = page.next_cursor;
    }
  }

  /** Fetches all items. */
  then<A = T[], B = never>(
    fulfilled?: ((items: T[]) => A | PromiseLike<A>) | null,
    rejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.#all().then(fulfilled, rejected);
  }

  async #all(): Promise<T[]> {
    const items: T[] = [];
    for await (const item of this) items.push(item);
    return items;
  }
}
