const keys = await karta.apiKeys.list();
const { api_key, secret } = await karta.apiKeys.create("ci-runner", ["write"]);
// `secret` is the plaintext kt_live_… — shown exactly once.
await karta.apiKeys.revoke(api_key.id);
