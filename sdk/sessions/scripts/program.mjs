const MAKE_CLIENT = `import { KartaSessions } from "@karta/sessions";
const sessions = new KartaSessions({ apiKey: process.env.KARTA_API_KEY! });
const session = await sessions.create();
`;

/** Returns a program with a block of the README. */
export function program(block) {
  return `${block.includes("new KartaSessions(") ? "" : MAKE_CLIENT}${block}\nexport {};\n`;
}
