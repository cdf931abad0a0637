// A model provider that fails in the way that the last message asks for.
import { createServer } from "node:http";

const error = (type, message) => JSON.stringify({ type: "error", error: { type, message } });

/** Status, headers and body by message. */
const FAILURES = {
  break: [200, { "content-type": "text/html" }, "<html></html>"],
  credit: [402, {}, error("billing_error", "Your credit balance is too low")],
  key: [401, {}, error("authentication_error", "invalid x-api-key")],
  limit: [429, { "retry-after": "60" }, error("rate_limit_error", "Too many requests")],
  reject: [400, {}, error("invalid_request_error", "max_tokens: 4096 > 2048, which is the maximum of this model")],
};

/** Returns a stream of Anthropic's Messages with about 4,000 tokens. */
function longAnswer() {
  const usage = { input_tokens: 1, output_tokens: 1 };
  const delta = { type: "text_delta", text: "word ".repeat(40) };
  const events = [
    { type: "message_start", message: { id: "msg_1", role: "assistant", usage } },
    { type: "content_block_start", index: 0, content_block: { type: "text", text: "" } },
    ...Array.from({ length: 80 }, () => ({ type: "content_block_delta", index: 0, delta })),
  ];
  return events.map((event) => `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`).join("");
}

/** Starts the provider on a free port. Returns its base URL and `stop`. */
export async function failingProvider() {
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request) body += chunk;
    const { content } = JSON.parse(body).messages.at(-1);
    const text = typeof content === "string" ? content : content[0].text;
    if (text === "hang") return;
    const [status, headers, answer] = FAILURES[text] ?? [200, { "content-type": "text/event-stream" }, longAnswer()];
    response.writeHead(status, { "content-type": "application/json", ...headers }).end(answer);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    stop() {
      server.closeAllConnections();
      server.close();
    },
  };
}
