export { KartaSessions } from "./client.js";
export * from "./errors.js";
export type { List, ListParams, Page } from "./list.js";
export type {
  ApiKeyOptions,
  CommonOptions,
  CreateOptions,
  KartaSessionsOptions,
  RequestOptions,
  SessionTokenOptions,
  TokenProvider,
} from "./options.js";
export type { CreateParams, SessionListParams, TurnParams } from "./params.js";
export type { TurnStream } from "./turn-stream.js";
export type * from "./types.js";
export { VERSION } from "./version.js";
