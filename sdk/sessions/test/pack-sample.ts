// A program that `npm run check-pack` compiles and runs in a new project. Its server is a function.
// It fails if an answer is not as expected.
import { KartaBudgetError, KartaSessions } from "@karta/sessions";

const frames = [{ type: "text", data: { part: { id: "p", type: "text", text: "Hi" } } }, { type: "done", data: { message_id: "msg_1", usage: {}, stop_reason: "end_turn" } }]
  .map((each, at) => `data: ${JSON.stringify({ ...each, session_id: "sess_1", turn_id: "turn_1", seq: at + 1 })}\n\n`);
const answer = async () => new Response(frames.join(""), { headers: { "content-type": "text/event-stream" } });
export const sessions = new KartaSessions({ apiKey: "kt_live_0123456789", baseUrl: "https://karta.test/v1/", fetch: answer });
export async function sample(signal: AbortSignal): Promise<string> {
  const stream = sessions.stream("sess_1", { text: "Hello!" }, { signal });
  let text = "";
  for await (const event of stream) if (event.type === "text") text += event.data.part.text;
  try {
    return text === (await stream.text()) ? text : "different";
  } catch (error) {
    if (error instanceof KartaBudgetError) return String(error.cap);
    throw error;
  }
}
export async function lists(): Promise<string[]> {
  // @ts-expect-error: ids are strings
  await sessions.get(7);
  return [...(await sessions.list()).map((session) => session.id), ...(await sessions.messages("sess_1", { limit: 3 }).page()).items.map((message) => message.text)];
}
void sample(new AbortController().signal).then((text) => {
  if (text !== "Hi") throw new Error(text);
});
