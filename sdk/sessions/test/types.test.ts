// Tests the types: this file must compile. Each expected error is one.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  KartaSessions,
  type ApiKeyOptions,
  type List,
  type Message,
  type Page,
  type Session,
  type StopReason,
  type TurnAnswer,
  type TurnErrorCode,
  type TurnEvent,
  type TurnEventData,
  type TurnStream,
  type TurnUsage,
} from "@karta/sessions";
import { API_KEY, FRAMES, SESSION, TEXT, TOKEN, scripted, streamed } from "./support.js";

/** True if the types are identical. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
type Yes<T extends true> = T;

export type Checks = [
  Yes<Same<TurnEvent["type"], "text" | "reasoning" | "done" | "error">>,
  Yes<Same<Extract<TurnEvent, { type: "done" }>["data"], { message_id: string; usage: TurnUsage; stop_reason: StopReason }>>,
  Yes<Same<Extract<TurnEvent, { type: "error" }>["data"]["code"], TurnErrorCode>>,
  Yes<Same<keyof TurnEventData, TurnEvent["type"]>>,
  Yes<Same<ReturnType<KartaSessions["create"]>, Promise<Session>>>,
  Yes<Same<ReturnType<KartaSessions["resume"]>, Promise<Session>>>,
  Yes<Same<ReturnType<KartaSessions["get"]>, Promise<Session>>>,
  Yes<Same<ReturnType<KartaSessions["cancel"]>, Promise<Session>>>,
  Yes<Same<ReturnType<KartaSessions["delete"]>, Promise<void>>>,
  Yes<Same<ReturnType<KartaSessions["list"]>, List<Session>>>,
  Yes<Same<Awaited<ReturnType<KartaSessions["list"]>>, Session[]>>,
  Yes<Same<Awaited<ReturnType<List<Message>["page"]>>, Page<Message>>>,
  Yes<Same<ReturnType<KartaSessions["messages"]>, List<Message>>>,
  Yes<Same<ReturnType<KartaSessions["send"]>, Promise<TurnAnswer>>>,
  Yes<Same<ReturnType<KartaSessions["stream"]>, TurnStream>>,
  Yes<Same<ReturnType<KartaSessions["follow"]>, TurnStream>>,
];

/** Is compiled, but never called. */
export function rejected(sessions: KartaSessions, options: ApiKeyOptions): void {
  // @ts-expect-error: a session token needs a project
  new KartaSessions({ sessionToken: TOKEN });
  // @ts-expect-error: two credentials
  new KartaSessions({ ...options, project: "my-app", sessionToken: TOKEN });
  // @ts-expect-error: the option is called baseUrl
  new KartaSessions({ apiKey: API_KEY, baseURL: "https://karta.test" });
  // @ts-expect-error: the text is missing
  void sessions.send(SESSION, { model: "gpt-x" });
  // @ts-expect-error: stream is a method
  void sessions.send(SESSION, { text: "hi", stream: true });
  // @ts-expect-error: a user that may be undefined would list all sessions
  void sessions.list({ userId: undefined });
  // @ts-expect-error: a project that may be undefined would reach all sessions
  new KartaSessions({ apiKey: API_KEY, project: undefined });
  // @ts-expect-error: metadata that may be undefined would make a session without a user
  void sessions.create({ metadata: undefined });
  // @ts-expect-error: a limit that may be undefined would be the default
  void sessions.send(SESSION, { text: "hi", max_tokens: undefined });
  // @ts-expect-error: metadata is text
  void sessions.create({ metadata: { count: 1 } });
  // @ts-expect-error: only creates and turns have a key
  void sessions.get(SESSION, { idempotencyKey: "a" });
  // @ts-expect-error: a follower starts nothing
  void sessions.follow(SESSION, { text: "hi" });
}

test("the type of an event determines its data", async () => {
  const { sessions } = scripted([streamed(FRAMES)]);
  let text = "";
  for await (const event of sessions.stream(SESSION, { text: "hi" })) {
    switch (event.type) {
      case "text":
        text += event.data.part.text;
        break;
      case "reasoning":
        assert.equal(event.data.part.type, "reasoning");
        break;
      case "done":
        assert.equal(event.data.usage.output_tokens, 5);
        break;
      case "error":
        assert.fail(event.data.code);
    }
  }
  assert.equal(text, TEXT);
});
