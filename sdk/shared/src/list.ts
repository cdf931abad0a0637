import { KartaArgumentError, KartaResponseError } from "./errors.js";
import { isObject } from "./json.js";
import type { Hide } from "./redact.js";

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

const MAX_PAGE_SIZE = 100;

/**
 * A list that is fetched page by page. It sends nothing until it is awaited or iterated.
 *
 * - `await list` returns an array of all items.
 * - `for await (const item of list)` returns one item after another and fetches a page when it is
 *   reached.
 * - `await list.page()` returns one page and the cursor of the next.
 */
export class List<T> implements Promise<T[]>, AsyncIterable<T> {
  readonly [Symbol.toStringTag] = "List";
  readonly #params: ListParams;
  readonly #fetch: (page: { limit: number; cursor: string | undefined }) => Promise<Page<T>>;
  #all: Promise<T[]> | undefined;

  constructor(params: ListParams, fetch: (page: { limit: number; cursor: string | undefined }) => Promise<Page<T>>) {
    this.#params = { limit: params.limit, cursor: params.cursor };
    this.#fetch = fetch;
  }

  /**
   * Fetches one page of up to `limit` items, at most 100. A page may be short or empty and still
   * have a next one.
   */
  async page(): Promise<Page<T>> {
    return this.#fetch({ limit: Math.min(this.#limit(), MAX_PAGE_SIZE), cursor: this.#params.cursor ?? undefined });
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    let left = this.#limit();
    let cursor = this.#params.cursor ?? undefined;
    const seen = new Set([cursor]);
    while (left > 0) {
      const page = await this.#fetch({ limit: Math.min(left, MAX_PAGE_SIZE), cursor });
      for (const item of page.items.slice(0, left)) yield item;
      left -= page.items.length;
      if (page.next_cursor === null) return;
      // The loop would not end.
      if (seen.has(page.next_cursor)) throw new KartaResponseError("the server returned the same cursor twice");
      cursor = page.next_cursor;
      seen.add(cursor);
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

  /** Fetches all items once, even if the list is awaited several times. */
  #collect(): Promise<T[]> {
    return (this.#all ??= (async () => {
      const items: T[] = [];
      for await (const item of this) items.push(item);
      return items;
    })());
  }

  #limit(): number {
    return limitOf(this.#params);
  }
}

/** Returns the maximum items of a list. Throws KartaArgumentError. */
export function limitOf({ limit }: ListParams): number {
  if (limit === undefined) return Infinity;
  if (Number.isSafeInteger(limit) && limit > 0) return limit;
  throw new KartaArgumentError("limit", "must be a positive integer");
}

/**
 * Returns the page that the body of a response has under `plural`. Throws KartaResponseError;
 * `hide` removes the secrets of the request.
 */
export function pageOf<T>(body: unknown, plural: string, hide: Hide): Page<T> {
  const fields = isObject(body) ? body : {};
  const { [plural]: items, next_cursor } = fields;
  const fault = !Array.isArray(items) ? `list "${plural}"` : typeof next_cursor !== "string" && next_cursor !== null ? "valid next_cursor" : undefined;
  if (fault !== undefined) throw new KartaResponseError(`the response has no ${fault}`, { status: 200, body, hide });
  return { items: items as T[], next_cursor: next_cursor as string | null };
}
