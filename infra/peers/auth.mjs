// better-auth's API keys over SQLite. Beyond what its documentation starts from: WAL, rate limits off, clean-up and the like after the answer, sessions
// read from their signed cookie, no log.
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
    // How many keys a list can reach at all: 100, unless told.
    database: reach === undefined ? {} : { defaultFindManyLimit: Number(reach) },
  },
  plugins: [apiKey({ rateLimit: { enabled: false }, deferUpdates: true })],
});
