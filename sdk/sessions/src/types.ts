// The API's objects. Fields keep the API's names. Times are RFC 3339 in UTC.

/**
 * Tokens and cost of a session. `input_tokens` includes the tokens of the provider's prompt cache.
 * `cost_cents` is rounded up.
 */
export interface Usage {
  input_tokens: number;
  output_tokens: number;
  cost_cents: number;
}

/** Tokens and cost of a turn. `input_tokens` excludes the tokens of the provider's prompt cache. */
export interface TurnUsage extends Usage {
  cache_read_tokens: number;
  cache_write_tokens: number;
}

/** State of a turn. `interrupted`: the process that ran it died. */
export type TurnStatus = "running" | "completed" | "failed" | "cancelled" | "interrupted";

/** Reason why the model ended its answer. */
export type StopReason = "end_turn" | "max_tokens" | "stop_sequence" | "refusal" | "tool_use";

/** Why a turn did not complete. */
export type TurnErrorCode =
  | "provider_rejected"
  | "byok_key_rejected"
  | "provider_credit_exhausted"
  | "provider_rate_limited"
  | "provider_error"
  | "provider_timeout"
  | "turn_deadline"
  | "budget_exhausted"
  | "turn_cancelled"
  | "credential_revoked"
  | "interrupted"
  | "internal";

/** A conversation: an ordered list of turns. */
export interface Session {
  /** `sess_…` */
  id: string;
  metadata: Record<string, string>;
  /** The session's user, `metadata.user_id`; `null` without one. */
  user_id: string | null;
  status: "active";
  current_agent: "default";
  /** The project and the release that the session uses; `null` for sessions without a project. */
  project: { ref: string; project_id: number; version: number } | null;
  /** The running turn, or the latest; `null` before the first. */
  turn: { id: string; status: TurnStatus; started_at: string } | null;
  usage: Usage;
  created_at: string;
  updated_at: string;
  /** Time when the session is deleted. Each turn moves it. */
  expires_at: string;
}

/** A part of a message. */
export interface MessagePart {
  id: string;
  type: "text" | "reasoning";
  text: string;
}

/** A message of a session. */
export interface Message {
  /** `msg_…` */
  id: string;
  /** `turn_…` */
  turn_id: string;
  role: "user" | "assistant";
  /** Text of the parts of type `text`. */
  text: string;
  parts: MessagePart[];
  created_at: string;
}

/** The answer of a turn that was not streamed. */
export interface TurnAnswer {
  text: string;
  session_id: string;
  turn_id: string;
  agent: "default";
  /** The user's message and the model's. */
  messages: Message[];
  usage: TurnUsage;
  stop_reason: StopReason | null;
}

/** The `data` of each type of event. */
export interface TurnEventData {
  /** More of the answer's text. Never cumulative. */
  text: { part: { id: string; type: "text"; text: string } };
  /** More of the model's reasoning. */
  reasoning: { part: { id: string; type: "reasoning"; text: string } };
  /** The end of a turn with an answer. */
  done: { message_id: string; usage: TurnUsage; stop_reason: StopReason };
  /** The end of a turn without an answer, or with a part of one. */
  error: { code: TurnErrorCode; message: string };
}

export type TurnEventType = keyof TurnEventData;

/** An event of a turn. `type` determines the fields of `data`. */
export type TurnEvent = {
  [Type in TurnEventType]: {
    /** `turn_id` and `seq`, joined with a dot: the `after` of `follow`. */
    id: string;
    type: Type;
    session_id: string;
    turn_id: string;
    /** Number of the event in its turn, from 1. */
    seq: number;
    timestamp: string;
    data: TurnEventData[Type];
  };
}[TurnEventType];
