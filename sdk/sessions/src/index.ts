export { KartaSessions } from "./client.js";
export type { ApiKeyOptions, CommonOptions, KartaSessionsOptions, SessionTokenOptions, TokenProvider } from "./options.js";
export type { CancelParams, CreateParams, SessionListParams, TurnParams } from "./params.js";
export * from "./shared/errors.js";
export type { List, ListParams, Page } from "./shared/list.js";
export type { CreateOptions, RequestOptions } from "./shared/options.js";
export type { TurnStream } from "./turn-stream.js";
export type * from "./types.js";
export { VERSION } from "./version.js";
