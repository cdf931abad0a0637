const MAKE_CLIENT = `import { Karta } from "@karta/sdk";
const karta = new Karta({ apiKey: process.env.KARTA_API_KEY! });
`;

/** Returns a program with a block of the README, or with a sample of the documentation. */
export function program(block) {
  const before = [];
  if (!block.includes("new Karta(")) before.push(MAKE_CLIENT);
  if (block.includes("modelKeys.revoke(id)")) {
    before.push(`const { id } = (await karta.modelKeys.create("openai", process.env.OPENAI_API_KEY!)).model_key;\n`);
  }
  // One sample has `[...]` as a placeholder for the reader's list.
  return `${before.join("")}${block.replace("[...]", `["*"]`)}\nexport {};\n`;
}
