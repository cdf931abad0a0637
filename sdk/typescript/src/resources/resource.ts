import { KartaResponseError } from "../errors.js";
import { List, type ListParams, type Page } from "../list.js";
import type { RequestOptions } from "../options.js";
import type { Query } from "../path.js";
import type { Transport } from "../transport.js";

/** One kind of thing and what can be done with it. */
export abstract class Resource {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  protected get transport(): Transport {
    return this.#transport;
  }

  /** The list under `plural` in the answers of `path`, which is judged when the list is fetched. */
  protected listOf<T>(
    plural: string,
    path: () => string,
    params: ListParams,
    filters: Query,
    options: RequestOptions | undefined,
  ): List<T> {
    return new List(params, async ({ limit, cursor }): Promise<Page<T>> => {
      const body = await this.transport.get<Record<string, unknown>>(path(), { ...filters, limit, cursor }, options);
      const items = body[plural];
      if (!Array.isArray(items)) throw new KartaResponseError(`the answer has no list "${plural}"`, { status: 200, body });
      return { items: items as T[], next_cursor: (body.next_cursor as string | null | undefined) ?? null };
    });
  }
}
