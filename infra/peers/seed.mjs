// node seed.mjs <database> <keys> <disabled>: creates the tables, a user with a session, and keys,
// and disables the first of them. Prints {"cookie", "keys": [{"id", "key"}]}.
import { getMigrations } from "better-auth/db/migration";

import { auth } from "./auth.mjs";

const [count, disabled] = process.argv.slice(3).map(Number);

const { runMigrations } = await getMigrations(auth.options);
await runMigrations();
const { headers, response } = await auth.api.signUpEmail({
  body: { name: "bench", email: "bench@example.com", password: crypto.randomUUID() },
  returnHeaders: true,
});
const userId = response.user.id;
const keys = [];
for (let index = 0; index < count; index++) {
  const { id, key } = await auth.api.createApiKey({ body: { name: `key ${index}`, userId } });
  if (index < disabled) {
    await auth.api.updateApiKey({ body: { keyId: id, userId, enabled: false } });
  }
  keys.push({ id, key });
}
const cookie = headers.getSetCookie().map((line) => line.split(";", 1)[0]).join("; ");
console.log(JSON.stringify({ cookie, keys }));
