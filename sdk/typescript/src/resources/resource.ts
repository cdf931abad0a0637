import { knownOnly } from "../shared/arguments.js";
import { List, type ListParams } from "../shared/list.js";
import type { RequestOptions } from "../shared/options.js";
import type { Query } from "../path.js";
import type { Transport } from "../transport.js";

/** Base class of the API's resources. */
export abstract class Resource {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  protected get transport(): Transport {
    return this.#transport;
  }

  /**
   * Returns the list that responses of `path` have under `plural`. `path` and the names in `params`
   * are validated when the list is fetched. `filters` names the fields of `params` that are
   * filters.
   */
  protected listOf<T, P extends ListParams = ListParams>(
    plural: string,
    path: () => string,
    params: P,
    filters: readonly (keyof P & string)[],
    options: RequestOptions | undefined,
  ): List<T> {
    // Plain JavaScript may pass `null`.
    const given: Partial<P> = (params as P | null) ?? {};
    const query = Object.fromEntries(filters.map((name) => [name, given[name]])) as Query;
    return new List(given, async ({ limit, cursor }) => {
      knownOnly<P>(params, "params", [...filters, "limit", "cursor"]);
      return this.transport.page<T>(path(), { ...query, limit, cursor }, plural, options);
    });
  }
}
