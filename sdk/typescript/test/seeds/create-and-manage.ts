import { Karta } from "@karta/sdk";
const karta = new Karta({ apiKey: process.env.KARTA_API_KEY! });

const { api_key, secret } = await karta.apiKeys.create("ci-runner", ["write"]);
// `secret` (kt_live_…) is shown exactly once — store it now.

await karta.apiKeys.list();
await karta.apiKeys.revoke(api_key.id);
