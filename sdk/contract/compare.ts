// Converts the clients' methods and the document's operations to types that can be compared.
import type { TurnEventType } from "../sessions/dist/esm/index.js";
import type { CreateOptions, ListParams, Page, RequestOptions } from "../typescript/dist/esm/index.js";
import type { components } from "./build/openapi.js";

type Method = (...args: never) => unknown;

// The document.

interface Operation {
  parameters: { path?: object; query?: object; header?: object };
  requestBody?: object;
  responses: object;
}

/** The parameters and result of an operation. */
export interface Documented<O extends Operation> {
  path: Fields<O["parameters"]["path"]>;
  query: Fields<O["parameters"]["query"]>;
  body: Fields<Content<Exclude<O["requestBody"], undefined>>>;
  idempotent: "Idempotency-Key" extends keyof Fields<O["parameters"]["header"]> ? true : false;
  answer: Content<Success<O>>;
  events: Events<Success<O>>;
}

type Success<O extends Operation> = O["responses"][keyof O["responses"] & (200 | 201 | 202 | 204)];
type Content<T> = T extends { content: { "application/json": infer Body } } ? Body : null;

/** The events of a stream by type; `null` without a stream. */
type Events<T> = T extends { content: { "text/event-stream": infer F extends { event: string } } } ? EventsOf<F> : null;

type TurnEvent = components["schemas"]["TurnEvent"];

/** The frame has an event's type and id, `TurnEvent` the other fields. */
type EventsOf<F extends { event: string }> = {
  [Type in F["event"] | TurnEvent["type"]]: Type extends F["event"] ? Omit<F, "event" | "data"> & EventOf<TurnEvent, Type> : never;
};
type EventOf<E extends TurnEvent, Type> = E extends unknown
  ? Type extends E["type"]
    ? { [Field in Exclude<keyof E, "type">]: Field extends "data" ? DataOf<E[Field], Type> : E[Field] }
    : never
  : never;

/** The client's event of type `text` has only parts of type `text`, and so on. */
type DataOf<Data, Type> = { [Field in keyof Data]: Field extends "part" ? PartOf<Data[Field], Type> : Data[Field] };
type PartOf<Part, Type> = { [Field in keyof Part]: Field extends "type" ? Exclude<Part[Field], Exclude<TurnEventType, Type>> : Part[Field] };

/** The fields of `T`; none if `T` is absent or allows no fields. */
type Fields<T> = [Exclude<T, undefined | null>] extends [Record<string, never>] ? {} : Exclude<T, undefined | null>;

// The client.

/**
 * The parameters and result of a method. `Places` lists the targets of its arguments without the
 * options at the end: `body.name` is one field, `body` is an object of fields.
 */
export interface Client<M extends Method, Places extends readonly string[]> {
  path: Placed<Parameters<M>, Places, "path">;
  query: Filters<Placed<Parameters<M>, Places, "query">>;
  body: Placed<Parameters<M>, Places, "body">;
  idempotent: Idempotent<Parameters<M>[Places["length"]]>;
  answer: ReturnType<M> extends Promise<infer Answer> ? (Answer extends void ? null : Answer) : never;
  events: null;
}

/** The result of a method that returns a stream of events. The type of an event becomes its key. */
export interface ClientEvents<M extends (...args: never) => AsyncIterable<{ type: string }>> {
  answer: null;
  events: ReturnType<M> extends AsyncIterable<infer Event extends { type: string }> ? { [E in Event as E["type"]]: Omit<E, "type"> } : never;
}

/**
 * `Client` for a method that returns a list. A list reads `next_cursor` and the items under
 * `Plural`; its `limit` and `cursor` differ from those of a page.
 */
export interface ClientList<M extends (...args: never) => ListLike<unknown>, Places extends readonly string[], Plural extends string>
  extends Omit<Client<M, Places>, "query" | "answer"> {
  query: Omit<Client<M, Places>["query"], keyof ListParams> & { limit?: number; cursor?: string };
  answer: ReturnType<M> extends ListLike<infer Item> ? { [Name in Plural]: Item[] } & Omit<Page<Item>, "items"> : never;
}

/** A list of either client. */
interface ListLike<T> {
  page(): Promise<Page<T>>;
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

/**
 * In a query, the client also accepts one value instead of a list, and a number instead of text.
 */
type Filters<T> = { [Field in keyof T]: Filter<Exclude<T[Field], undefined>> };
type Filter<T> = Extract<T, readonly unknown[]> extends never
  ? string extends T
    ? Exclude<T, number>
    : T
  : Exclude<T, readonly unknown[] | null>[] | Extract<T, null>;

// The comparison.

/**
 * `T` as JSON: without methods, `undefined` and `readonly`, and with intersections as one object.
 */
export type Json<T> = T extends readonly (infer Item)[]
  ? Json<Item>[]
  : T extends object
    ? { -readonly [Field in keyof T as T[Field] extends Method ? never : Field]: Json<Exclude<T[Field], undefined>> }
    : T;

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/**
 * The differences of `A` and `B` as paths such as `apiKeysGet.answer.api_key.status`; `never` if
 * they are equal.
 */
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

/** `Path` if nothing was found: fields of the same type can differ in being optional. */
type OrItself<Found extends string, Path> = [Found] extends [never] ? Path : Found;
