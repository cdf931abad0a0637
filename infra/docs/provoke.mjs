// Requests that provoke errors. Each is named after its expected error: `status code`, or
// `status detail` if the body has no code.
import { createHmac, randomBytes } from "node:crypto";
import { request } from "node:http";
import { cpus } from "node:os";
import { setTimeout } from "node:timers/promises";
import { failingProvider } from "./provider.mjs";
import { startRunner } from "./runner.mjs";

const STRIPE_SECRET = `whsec_${randomBytes(24).toString("hex")}`;

/** A runner and helpers to send requests to it. */
class Scene {
  /** A 503 or 504 is retried up to `attempts` requests, because a busy machine causes some. */
  constructor(start, attempts) {
    this.start = start;
    this.attempts = attempts;
  }

  /**
   * Sends a request with the first key or another credential. Returns status, headers and body
   * text.
   */
  async call(method, path, { bearer = this.start.api_key, body, raw, headers = {} } = {}) {
    if (bearer) headers = { ...headers, authorization: `Bearer ${bearer}` };
    for (let attempt = 1; ; attempt++) {
      const answer = await fetch(this.start.base_url + path, { method, headers, body: raw ?? (body && JSON.stringify(body)) });
      const text = await answer.text();
      if (![503, 504].includes(answer.status) || attempt >= this.attempts) return { status: answer.status, headers: answer.headers, text };
    }
  }

  /**
   * Sends these headers unchanged, a list as one line per value. `fetch` would join the lines and
   * set `host`.
   */
  lines(method, path, lines, body) {
    const headers = { authorization: `Bearer ${this.start.api_key}`, ...lines };
    return new Promise((resolve, reject) => {
      const sent = request(this.start.base_url + path, { method, headers }, async (answer) => {
        let text = "";
        for await (const chunk of answer) text += chunk;
        resolve({ status: answer.statusCode, headers: new Headers(answer.headers), text });
      });
      sent.on("error", reject).end(body && JSON.stringify(body));
    });
  }

  /** Sends a request that must succeed. Returns its body. */
  async make(method, path, options) {
    const { status, text } = await this.call(method, path, options);
    if (status >= 300) throw new Error(`${method} ${path}: ${status} ${text}`);
    return JSON.parse(text);
  }

  organization(slug) {
    return this.make("POST", "/v1/internal/organizations", { bearer: this.start.service_token, body: { slug, name: slug } });
  }

  async key(scopes) {
    return this.make("POST", "/v1/api_keys", { body: { name: "ci", scopes } });
  }

  async sessionToken(slug, body) {
    await this.make("POST", "/v1/agent_projects", { body: { slug, name: slug } });
    return (await this.make("POST", `/v1/agent_projects/${slug}/session_tokens`, { body })).token;
  }

  /** Creates an organization with a key of a provider. Returns its first key. */
  async modelOrganization(slug) {
    const { secret: bearer } = await this.organization(slug);
    const key = `sk-ant-api03-${randomBytes(48).toString("hex")}`;
    await this.make("POST", "/v1/model_keys", { bearer, body: { provider: "anthropic", key } });
    return bearer;
  }

  /** Creates a session and starts a turn in it. `text` chooses the answer of the provider. */
  async turn(bearer, text, body = {}) {
    const { id } = await this.make("POST", "/v1/sessions", { bearer });
    return this.say(bearer, id, text, body);
  }

  say(bearer, session, text, body = {}) {
    const options = { bearer, body: { text, model: "claude-haiku-4-5", ...body } };
    return this.call("POST", `/v1/sessions/${session}/messages`, options);
  }

  /**
   * Starts a turn whose provider does not answer, then calls `next` with its session. Returns the
   * response of the turn and of `next`.
   */
  async whileTurnRuns(bearer, next) {
    const { id } = await this.make("POST", "/v1/sessions", { bearer });
    const turn = this.say(bearer, id, "hang");
    while ((await this.make("GET", `/v1/sessions/${id}`, { bearer })).turn?.status !== "running") await setTimeout(20);
    return Promise.all([turn, next(id)]);
  }

  async endpoint(bearer = this.start.api_key) {
    const body = { url: "https://hooks.example.com/karta", event_types: ["*"] };
    return (await this.make("POST", "/v1/webhook_endpoints", { bearer, body })).webhook_endpoint.id;
  }

  stripe(livemode, secret = STRIPE_SECRET) {
    const raw = JSON.stringify({ id: "evt_1", object: "event", type: "invoice.paid", created: 1, livemode, data: { object: {} } });
    const time = Math.floor(Date.now() / 1000);
    const signature = createHmac("sha256", secret).update(`${time}.${raw}`).digest("hex");
    const headers = { "stripe-signature": `t=${time},v1=${signature}` };
    return this.call("POST", "/v1/stripe/events", { bearer: null, raw, headers });
  }
}

const CASES = {
  "400 malformed_json": (scene) => scene.call("POST", "/v1/api_keys", { raw: '{"name": ' }),
  "400 invalid_host": (scene) => scene.lines("GET", "/healthz", { host: "a b" }),
  "400 duplicate_header": (scene) =>
    scene.lines("POST", "/v1/api_keys", { "idempotency-key": ["a", "b"] }, { name: "ci", scopes: ["read"] }),
  "400 invalid_signature": (scene) => scene.stripe(false, "whsec_another"),
  "400 livemode_mismatch": (scene) => scene.stripe(true),
  "401 Unauthorized": (scene) => scene.call("GET", "/v1/whoami", { bearer: "kt_live_junk" }),
  async "402 budget_exhausted"(scene) {
    const { secret: bearer } = await scene.organization("spent");
    await scene.make("PUT", "/v1/budget", { bearer, body: { total_tokens: 0 } });
    await scene.make("POST", "/v1/agent_projects", { bearer, body: { slug: "site", name: "Site" } });
    return scene.call("POST", "/v1/agent_projects/site/session_tokens", { bearer });
  },
  async "401 credential_revoked"(scene) {
    const bearer = await scene.modelOrganization("cut-off");
    const key = await scene.make("POST", "/v1/api_keys", { bearer, body: { name: "ci", scopes: ["read", "write"] } });
    const revoke = () => scene.make("DELETE", `/v1/api_keys/${key.api_key.id}`, { bearer });
    return (await scene.whileTurnRuns(key.secret, revoke))[0];
  },
  async "403 missing scope: admin"(scene) {
    const { secret: bearer } = await scene.key(["read"]);
    return scene.call("POST", "/v1/api_keys", { bearer, body: {} });
  },
  async "403 session tokens are valid only under /v1/projects/{ref}/"(scene) {
    return scene.call("GET", "/v1/whoami", { bearer: await scene.sessionToken("flat") });
  },
  async "403 wrong project: the session token is for another project"(scene) {
    return scene.call("GET", "/v1/projects/other/whoami", { bearer: await scene.sessionToken("own") });
  },
  async "403 a session token without sub may not list sessions: mint a token with user_id"(scene) {
    return scene.call("GET", "/v1/projects/no-user/sessions", { bearer: await scene.sessionToken("no-user") });
  },
  async "403 wrong user: metadata.user_id must be the user of the session token"(scene) {
    const bearer = await scene.sessionToken("creator");
    return scene.call("POST", "/v1/projects/creator/sessions", { bearer, body: { metadata: { user_id: "user_1" } } });
  },
  async "403 wrong user: user_id must be the user of the session token"(scene) {
    const bearer = await scene.sessionToken("lister", { user_id: "user_1" });
    return scene.call("GET", "/v1/projects/lister/sessions?user_id=user_2", { bearer });
  },
  async "403 transcript_access is off: use a session token of the user, or ask the operator to enable it"(scene) {
    const { id } = await scene.make("POST", "/v1/sessions", { body: { metadata: { user_id: "user_1" } } });
    return scene.call("GET", `/v1/sessions/${id}/messages`);
  },
  "404 Not found": (scene) => scene.call("GET", "/v1/api_keys/1"),
  "404 unknown_route": (scene) => scene.call("GET", "/v1/api-keys"),
  async "409 api_key_not_active"(scene) {
    const { api_key } = await scene.key(["read"]);
    await scene.make("DELETE", `/v1/api_keys/${api_key.id}`);
    return scene.call("POST", `/v1/api_keys/${api_key.id}/rotate`);
  },
  async "409 api_key_replaced"(scene) {
    const { api_key } = await scene.key(["read"]);
    await scene.make("POST", `/v1/api_keys/${api_key.id}/rotate`);
    return scene.call("PATCH", `/v1/api_keys/${api_key.id}`, { body: { expires_at: null } });
  },
  async "409 api_key_revoked"(scene) {
    const { api_key } = await scene.key(["read"]);
    await scene.make("DELETE", `/v1/api_keys/${api_key.id}`);
    return scene.call("PATCH", `/v1/api_keys/${api_key.id}`, { body: { name: "again" } });
  },
  async "409 last_admin_key"(scene) {
    const { secret: bearer, api_key } = await scene.organization("lonely");
    return scene.call("DELETE", `/v1/api_keys/${api_key.id}`, { bearer });
  },
  async "409 no_active_release"(scene) {
    await scene.make("POST", "/v1/agent_projects", { body: { slug: "unreleased", name: "Unreleased" } });
    return scene.call("POST", "/v1/projects/unreleased/sessions");
  },
  async "409 no_turn_in_progress"(scene) {
    const { id } = await scene.make("POST", "/v1/sessions");
    return scene.call("POST", `/v1/sessions/${id}/cancel`);
  },
  async "409 no_turn_in_progress of a turn"(scene) {
    const { id } = await scene.make("POST", "/v1/sessions");
    return scene.call("POST", `/v1/sessions/${id}/cancel`, { body: { turn_id: `turn_${"0".repeat(32)}` } });
  },
  async "409 no_turn_in_progress of events"(scene) {
    const { id } = await scene.make("POST", "/v1/sessions");
    return scene.call("GET", `/v1/sessions/${id}/stream`);
  },
  async "409 turn_cancelled"(scene) {
    const bearer = await scene.modelOrganization("cancels");
    const cancel = (id) => scene.make("POST", `/v1/sessions/${id}/cancel`, { bearer });
    return (await scene.whileTurnRuns(bearer, cancel))[0];
  },
  async "409 turn_in_progress"(scene) {
    const bearer = await scene.modelOrganization("busy");
    const again = async (id) => {
      const second = await scene.say(bearer, id, "second");
      await scene.make("POST", `/v1/sessions/${id}/cancel`, { bearer });
      return second;
    };
    return (await scene.whileTurnRuns(bearer, again))[1];
  },
  async "409 recovery_under_way"(scene) {
    const path = `/v1/webhook_endpoints/${await scene.endpoint()}/recover`;
    const body = { since: new Date(Date.now() - 60_000).toISOString() };
    await scene.make("POST", path, { body });
    return scene.call("POST", path, { body });
  },
  async "409 release_transition"(scene) {
    await scene.make("POST", "/v1/agent_projects", { body: { slug: "built", name: "Built" } });
    const { release } = await scene.make("POST", "/v1/agent_projects/built/deploys", { body: { commit_sha: "0123abc" } });
    const path = `/v1/internal/releases/${release.id}/status`;
    return scene.call("POST", path, { bearer: scene.start.service_token, body: { status: "failed" } });
  },
  async "409 slug_taken"(scene) {
    const body = { slug: "taken", name: "Taken" };
    await scene.make("POST", "/v1/agent_projects", { body });
    return scene.call("POST", "/v1/agent_projects", { body });
  },
  "409 slug_taken with an id": (scene) => {
    const body = { slug: scene.start.organization_slug, name: "Another" };
    return scene.call("POST", "/v1/internal/organizations", { bearer: scene.start.service_token, body });
  },
  async "409 stripe_customer_taken"(scene) {
    const [one, other] = [await scene.organization("one"), await scene.organization("other")];
    const options = { bearer: scene.start.service_token, body: { stripe_customer_id: "cus_1" } };
    await scene.make("PATCH", `/v1/internal/organizations/${one.organization.id}`, options);
    return scene.call("PATCH", `/v1/internal/organizations/${other.organization.id}`, options);
  },
  async "409 too_many_secrets"(scene) {
    const path = `/v1/webhook_endpoints/${await scene.endpoint()}/rotate_secret`;
    for (let n = 0; n < 2; n++) await scene.make("POST", path);
    return scene.call("POST", path);
  },
  async "409 webhook_endpoint_disabled"(scene) {
    const path = `/v1/webhook_endpoints/${await scene.endpoint()}`;
    await scene.make("PATCH", path, { body: { enabled: false } });
    return scene.call("POST", `${path}/test`);
  },
  async "409 webhook_endpoint_limit"(scene) {
    const { secret: bearer } = await scene.organization("hooks");
    for (let n = 0; n < 20; n++) await scene.endpoint(bearer);
    return scene.call("POST", "/v1/webhook_endpoints", { bearer, body: { url: "https://hooks.example.com/", event_types: ["*"] } });
  },
  "413 body_too_large": (scene) => scene.call("POST", "/v1/api_keys", { raw: " ".repeat(65_537) }),
  "415 unsupported_encoding": (scene) =>
    scene.call("POST", "/v1/api_keys", { headers: { "content-encoding": "gzip" }, raw: "{}" }),
  "422 validation_failed": (scene) => scene.call("POST", "/v1/api_keys", { body: { scopes: ["read"] } }),
  async "422 idempotency_mismatch"(scene) {
    const headers = { "idempotency-key": "once" };
    await scene.make("POST", "/v1/agent_projects", { headers, body: { slug: "once", name: "Once" } });
    return scene.call("POST", "/v1/agent_projects", { headers, body: { slug: "twice", name: "Twice" } });
  },
  "422 byok_key_rejected": (scene) =>
    scene.call("POST", "/v1/model_keys", { body: { provider: "anthropic", key: `sk-${"0".repeat(40)}` } }),
  async "422 byok_key_rejected by the provider"(scene) {
    return scene.turn(await scene.modelOrganization("bad-key"), "key");
  },
  async "422 model_not_allowed"(scene) {
    const { secret: bearer, organization } = await scene.organization("choosy");
    const options = { bearer: scene.start.service_token, body: { model_id: "claude-haiku-4-5" } };
    await scene.make("PATCH", `/v1/internal/organizations/${organization.id}`, options);
    return scene.turn(bearer, "hello", { model: "gpt-5" });
  },
  async "422 model_required"(scene) {
    return scene.turn(await scene.modelOrganization("unset"), "hello", { model: "default" });
  },
  async "422 model_unpriced"(scene) {
    const { secret: bearer, organization } = await scene.organization("unpriced");
    const options = { bearer: scene.start.service_token, body: { model_id: "openrouter/acme/unpriced" } };
    await scene.make("PATCH", `/v1/internal/organizations/${organization.id}`, options);
    await scene.make("PUT", "/v1/budget", { bearer, body: { cost_cents: 100 } });
    return scene.turn(bearer, "hello", { model: "default" });
  },
  async "422 no_model_key"(scene) {
    const { secret: bearer, organization } = await scene.organization("keyless");
    const options = { bearer: scene.start.service_token, body: { model_id: "claude-haiku-4-5" } };
    await scene.make("PATCH", `/v1/internal/organizations/${organization.id}`, options);
    return scene.turn(bearer, "hello", { model: "default" });
  },
  async "422 provider_credit_exhausted"(scene) {
    return scene.turn(await scene.modelOrganization("credit"), "credit");
  },
  async "422 provider_rejected"(scene) {
    return scene.turn(await scene.modelOrganization("rejected"), "reject");
  },
  async "429 provider_rate_limited"(scene) {
    return scene.turn(await scene.modelOrganization("limited"), "limit");
  },
  async "502 provider_error"(scene) {
    return scene.turn(await scene.modelOrganization("broken"), "break");
  },
};

/**
 * Cases for a runner with the default bcrypt cost: it gets more new keys at once than may wait for
 * bcrypt.
 */
const BUSY_CASES = {
  async "503 Service unavailable"(scene) {
    const newKey = () => scene.call("POST", "/v1/api_keys", { body: { name: "ci", scopes: ["read"] } });
    const answers = await Promise.all(Array.from({ length: 20 * cpus().length }, newKey));
    return answers.find(({ status }) => status !== 201) ?? answers[0];
  },
};

async function answersOf(cases, attempts, log, env) {
  const runner = await startRunner(["--ephemeral"], log, env);
  try {
    const scene = new Scene(runner.start, attempts);
    const answers = [];
    for (const [name, send] of Object.entries(cases)) {
      const { status, headers, text } = await send(scene);
      const { request_id, ...value } = JSON.parse(text);
      const actual = `${status} ${value.error ?? value.detail}`;
      if (!name.startsWith(actual)) throw new Error(`the case ${name} returned ${actual}`);
      answers.push({ name, status, headers, request_id, value });
    }
    return answers;
  } finally {
    await runner.stop();
  }
}

/**
 * Starts runners that log to `log`, sends the requests of each case in order, and returns the
 * answers.
 */
export async function provoke(log) {
  const provider = await failingProvider();
  const env = { KARTA_STRIPE_SECRETS: STRIPE_SECRET, KARTA_PROVIDER_BASE_URLS: JSON.stringify({ anthropic: provider.url }) };
  const answers = await answersOf(CASES, 5, log, env).finally(() => provider.stop());
  return [...answers, ...(await answersOf(BUSY_CASES, 1, log, { KARTA_BCRYPT_COST: "12" }))];
}
