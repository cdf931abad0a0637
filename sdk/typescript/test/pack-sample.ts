// A program that `npm run check-pack` compiles and runs in a new project.
import { Karta, KartaRateLimitError, verifyWebhook } from "@karta/sdk";

export const karta = new Karta({ apiKey: "kt_live_0123456789", baseUrl: "https://karta.test/v1/", timeout: 1000 });
export async function sample(signal: AbortSignal): Promise<string> {
  const names: string[] = (await karta.apiKeys.list({ status: "active" }, { signal })).map((key) => key.name);
  for await (const project of karta.projects.list()) names.push(project.slug);
  const { api_key, secret } = await karta.apiKeys.create("ci-runner", ["write"]);
  const event = await verifyWebhook("{}", { "karta-signature": "" }, secret);
  if (event.type === "release.created") names.push(String(event.data.release.version));
  // @ts-expect-error: there is no such scope
  await karta.apiKeys.create("ci-runner", ["root"]);
  // @ts-expect-error: ids are numbers
  await karta.apiKeys.revoke(String(api_key.id));
  try {
    return `${names} ${await karta.usage.summary()}`;
  } catch (error) {
    if (error instanceof KartaRateLimitError) return String(error.retryAfter);
    throw error;
  }
}
if (karta.baseUrl !== "https://karta.test") throw new Error(karta.baseUrl);
