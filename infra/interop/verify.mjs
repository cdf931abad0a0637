// Verifies Karta's session tokens with jose, and sends the runner tokens that jose signs. Reads the
// runner's JSON line from stdin; throws at the first failed check.
import { readFileSync } from "node:fs";
import { webcrypto } from "node:crypto";

globalThis.crypto ??= webcrypto; // Node.js 18 has it only as webcrypto
const { SignJWT, UnsecuredJWT, decodeProtectedHeader, generateKeyPair, jwtVerify } = await import("jose");

const start = JSON.parse(readFileSync(0, "utf8"));
const secret = new TextEncoder().encode(start.session_token_secret);
const slug = "interop-jose";
let checks = 0;

function check(what, holds, seen) {
  if (!holds) throw new Error(seen === undefined ? what : `${what}; got ${JSON.stringify(seen)}`);
  checks += 1;
}

async function call(method, path, bearer, body) {
  const headers = { authorization: `Bearer ${bearer}` };
  if (body) headers["content-type"] = "application/json";
  const answer = await fetch(start.base_url + path, { method, headers, body: body && JSON.stringify(body) });
  return { status: answer.status, body: await answer.json() };
}

async function verifies(token, key = secret) {
  try {
    return (await jwtVerify(token, key, { algorithms: ["HS256"], requiredClaims: ["iat", "exp", "jti", "sub"] })).payload;
  } catch {
    return null;
  }
}

const whoami = (token) => call("GET", `/v1/projects/${slug}/whoami`, token);

async function isRefused(what, token) {
  const { status, body } = await whoami(token);
  check(`${what} is refused`, status === 401 && body.detail === "Unauthorized", { status, detail: body.detail });
}

/** Returns the token with one character in the middle of one part changed. */
function tampered(token, part) {
  const parts = token.split(".");
  const at = parts[part].length >> 1;
  const other = parts[part][at] === "A" ? "B" : "A";
  parts[part] = parts[part].slice(0, at) + other + parts[part].slice(at + 1);
  return parts.join(".");
}

// Tokens that Karta mints.

const project = await call("POST", "/v1/agent_projects", start.api_key, { slug, name: "Interop" });
check("a project is created", project.status === 201, project);
const minted = await call("POST", `/agent_projects/${slug}/session_tokens`, start.api_key, { user_id: "user_1" });
check("a token is minted", minted.status === 201, minted.status);
const { token } = minted.body;

const header = decodeProtectedHeader(token);
check("the header says HS256", header.alg === "HS256", header);
check("the header has a kid", /^k[0-9a-z]{1,31}$/.test(header.kid), header);

const claims = await verifies(token);
check("jose verifies the token", claims !== null);
check("org_id is the organization's", claims.org_id === start.organization_id, claims);
check("org_slug is the organization's", claims.org_slug === start.organization_slug, claims);
check("project_id is the project's", claims.project_id === minted.body.project.id, claims);
check("project_slug is the project's", claims.project_slug === slug, claims);
check("scope is session", claims.scope === "session", claims);
check("budget_ok is true", claims.budget_ok === true, claims);
check("sub is the user", claims.sub === "user_1", claims);
check("jti is a string", typeof claims.jti === "string" && claims.jti !== "", claims);
check("akid is an id", Number.isSafeInteger(claims.akid) && claims.akid > 0, claims);
check("the token lives 900 s", claims.exp - claims.iat === 900, claims);
check("expires_at is exp", Math.floor(Date.parse(minted.body.expires_at) / 1000) === claims.exp, minted.body.expires_at);
check("there is no aud", !("aud" in claims), claims);

const own = await whoami(token);
check("the token is valid for its project", own.status === 200 && own.body.kind === "session", own);

for (const [part, name] of ["header", "payload", "signature"].entries()) {
  const forged = tampered(token, part);
  check(`jose refuses a changed ${name}`, (await verifies(forged)) === null);
  await isRefused(`a changed ${name}`, forged);
}
const otherSecret = new TextEncoder().encode("x".repeat(64));
check("jose refuses the token with another secret", (await verifies(token, otherSecret)) === null);

// Tokens that jose signs.

const now = Math.floor(Date.now() / 1000);
const fresh = { ...claims, jti: "interop", iat: now, exp: now + 900 };
const sign = (payload, { key = secret, alg = "HS256", kid = header.kid } = {}) =>
  new SignJWT(payload).setProtectedHeader(kid === null ? { alg } : { alg, kid }).sign(key);
const without = (claim) => Object.fromEntries(Object.entries(fresh).filter(([name]) => name !== claim));

const accepted = await whoami(await sign(fresh));
check("jose's token is accepted", accepted.status === 200, accepted);
check("jose's token has the same session", JSON.stringify(accepted.body) === JSON.stringify(own.body), accepted.body);
check("exp − iat of 3600 is accepted", (await whoami(await sign({ ...fresh, exp: now + 3600 }))).status === 200);

const unsecured = new UnsecuredJWT(fresh).encode();
await isRefused("alg none", unsecured);
const none = Buffer.from(JSON.stringify({ alg: "none", kid: header.kid })).toString("base64url");
const [, payload, signature] = (await sign(fresh)).split(".");
await isRefused("alg none with a kid and a signature", `${none}.${payload}.${signature}`);
const { privateKey } = await generateKeyPair("RS256");
await isRefused("RS256", await sign(fresh, { key: privateKey, alg: "RS256" }));
await isRefused("HS512 with Karta's secret", await sign(fresh, { alg: "HS512" }));
await isRefused("another secret", await sign(fresh, { key: otherSecret }));
await isRefused("an unknown kid", await sign(fresh, { kid: "kunknown" }));
await isRefused("the kid `current`", await sign(fresh, { kid: "current" }));
await isRefused("an empty kid", await sign(fresh, { kid: "" }));
await isRefused("no kid", await sign(fresh, { kid: null }));
await isRefused("no exp", await sign(without("exp")));
await isRefused("a past exp", await sign({ ...fresh, iat: now - 1000, exp: now - 100 }));
await isRefused("exp − iat of 3601", await sign({ ...fresh, exp: now + 3601 }));
await isRefused("another scope", await sign({ ...fresh, scope: "admin" }));

const { version } = JSON.parse(readFileSync(new URL("node_modules/jose/package.json", import.meta.url), "utf8"));
console.log(`jose ${version}, Node.js ${process.versions.node}: ${checks} checks`);
