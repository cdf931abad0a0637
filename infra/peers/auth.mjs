// better-auth's API keys with SQLite. Changes to the setup in its documentation: WAL, no rate
// limits, background work after the response, sessions read from their signed cookie, no log.
import { apiKey } from "@better-auth/api-key";
import { betterAuth } from "better-auth";
import Database from "better-sqlite3";

const [, , path, reach] = process.argv;

const database = new Database(path);
database.pragma("journal_mode = WAL");

export const auth = betterAuth({
  database,
  baseURL: "http://localhost",
  secret: process.env.BETTER_AUTH_SECRET,
  emailAndPassword: { enabled: true },
  session: { cookieCache: { enabled: true, maxAge: 3600 } },
  rateLimit: { enabled: false },
  logger: { disabled: true },
  advanced: {
    backgroundTasks: { handler: (task) => void task.catch(() => {}) },
    // Maximum number of keys that a list can reach. Default: 100.
    database: reach === undefined ? {} : { defaultFindManyLimit: Number(reach) },
  },
  plugins: [apiKey({ rateLimit: { enabled: false }, deferUpdates: true })],
});
