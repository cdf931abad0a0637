// What of the client's methods and of the document's operations is compared, and how.
import type { CreateOptions, List, ListParams, Page, RequestOptions } from "../dist/esm/index.js";

type Method = (...args: never) => unknown;

// The document's side.

interface Operation {
  parameters: { path?: object; query?: object; header?: object };
  requestBody?: object;
  responses: object;
}

/** What an operation takes and answers. */
export interface Documented<O extends Operation> {
  path: Fields<O["parameters"]["path"]>;
  query: Fields<O["parameters"]["query"]>;
  body: Fields<Content<Exclude<O["requestBody"], undefined>>>;
  idempotent: "Idempotency-Key" extends keyof Fields<O["parameters"]["header"]> ? true : false;
  answer: Content<O["responses"][keyof O["responses"] & (200 | 201 | 202 | 204)]>;
}

type Content<T> = T extends { content: { "application/json": infer Body } } ? Body : null;

/** No fields where there is nothing, and where nothing is allowed. */
type Fields<T> = [Exclude<T, undefined | null>] extends [Record<string, never>] ? {} : Exclude<T, undefined | null>;

// The client's side.

/** What a method takes and answers. `Places` says where its arguments go, but for the options at the end: `body.name` is one field, `body` is fields. */
export interface Client<M extends Method, Places extends readonly string[]> {
  path: Placed<Parameters<M>, Places, "path">;
  query: Filters<Placed<Parameters<M>, Places, "query">>;
  body: Placed<Parameters<M>, Places, "body">;
  idempotent: Idempotent<Parameters<M>[Places["length"]]>;
  answer: ReturnType<M> extends Promise<infer Answer> ? (Answer extends void ? null : Answer) : never;
}

/** A list fetches its pages by itself: it reads `next_cursor` and the items under `Plural`; its own `limit` and `cursor` are not a page's. */
export interface ClientList<M extends (...args: never) => List<unknown>, Places extends readonly string[], Plural extends string>
  extends Omit<Client<M, Places>, "query" | "answer"> {
  query: Omit<Client<M, Places>["query"], keyof ListParams> & { limit?: number; cursor?: string };
  answer: ReturnType<M> extends List<infer Item> ? { [Name in Plural]: Item[] } & Omit<Page<Item>, "items"> : never;
}

type Placed<Args extends readonly unknown[], Places extends readonly string[], Part extends string, Done extends readonly unknown[] = []> =
  Places extends readonly [infer Place, ...infer Rest extends readonly string[]]
    ? Put<Place, Part, Args[Done["length"]]> & Placed<Args, Rest, Part, [...Done, Place]>
    : {};

type Put<Place, Part extends string, Value> = Place extends Part
  ? Exclude<Value, undefined>
  : Place extends `${Part}.${infer Name}`
    ? undefined extends Value
      ? { [N in Name]?: Value }
      : { [N in Name]: Value }
    : {};

type Idempotent<Options> = Same<Options, CreateOptions | undefined> extends true
  ? true
  : Same<Options, RequestOptions | undefined> extends true
    ? false
    : never;

/** In a query, one value will do where several may be given, and a number where text may. */
type Filters<T> = { [Field in keyof T]: Filter<Exclude<T[Field], undefined>> };
type Filter<T> = Extract<T, readonly unknown[]> extends never
  ? string extends T
    ? Exclude<T, number>
    : T
  : Exclude<T, readonly unknown[] | null>[] | Extract<T, null>;

// Both sides.

/** `T` as JSON has it: without methods, `undefined` and `readonly`, and what was put together as one object. */
export type Json<T> = T extends readonly (infer Item)[]
  ? Json<Item>[]
  : T extends object
    ? { -readonly [Field in keyof T as T[Field] extends Method ? never : Field]: Json<Exclude<T[Field], undefined>> }
    : T;

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/** Where `A` and `B` differ, as paths such as `apiKeysGet.answer.api_key.status`; `never` where they do not. */
export type Differences<A, B, Path extends string> =
  Same<A, B> extends true
    ? never
    : Same<Extract<A, null>, Extract<B, null>> extends true
      ? Within<Exclude<A, null>, Exclude<B, null>, Path>
      : Path;

type Within<A, B, Path extends string> = [A, B] extends [(infer ItemA)[], (infer ItemB)[]]
  ? Differences<ItemA, ItemB, `${Path}[]`>
  : [A, B] extends [object, object]
    ? { [Field in FieldOf<A, B>]: Field extends keyof A & keyof B ? InField<A, B, Field, `${Path}.${Field}`> : `${Path}.${Field}` }[FieldOf<A, B>]
    : Path;

type FieldOf<A, B> = (keyof A | keyof B) & string;

type InField<A, B, Field extends keyof A & keyof B, Path extends string> =
  Same<Pick<A, Field>, Pick<B, Field>> extends true ? never : OrItself<Differences<Exclude<A[Field], undefined>, Exclude<B[Field], undefined>, Path>, Path>;

/** Of two fields of one type, one may be optional. */
type OrItself<Found extends string, Path> = [Found] extends [never] ? Path : Found;
