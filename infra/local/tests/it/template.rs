//! `template.yaml`: permissions, API Gateway's own responses, retained resources, firewall and
//! limits. Also: the runner does not start with a template that does not match its handlers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Method;
use karta_local::{
    Options,
    gateway::Gateway,
    provider::{FakeProvider, Script},
    registry,
    template::{AuthorizerMode, Function, TEMPLATE, Template, TemplateRoute},
};
use karta_shared::{
    clock::{Clock, ManualClock},
    config::{DEADLINE, Ring, TurnLimits},
    domain::{Id, Power, Provider, ProviderBaseUrls, Reach, ServiceTokens},
    worker::{Wake, Worker},
};
use serde_json::{Value, json};
use worker_webhook_deliveries::WebhookDeliveries;
use worker_webhook_events::{Waker, WebhookEvents};

use crate::{
    calls::Calls,
    conversation::converse,
    harness::{Request, TestServer},
    model_keys::{active_of, provider_key, rotated},
    rights,
    stripe_events::{self, configured, signed},
    webhooks::{Reaction, Receiver},
};

/// The tables and their indexes: the name in the store, and the name in policies.
pub(crate) const TABLES: [(&str, &str); 10] = [
    ("karta", "KartaTable.Arn"),
    ("karta/index/unchained", "${KartaTable.Arn}/index/unchained"),
    ("karta/index/sealed", "${KartaTable.Arn}/index/sealed"),
    ("karta-credentials", "CredentialsTable.Arn"),
    ("karta-outbox", "OutboxTable.Arn"),
    ("karta-outbox/index/due", "${OutboxTable.Arn}/index/due"),
    ("karta-usage", "UsageTable.Arn"),
    ("karta-anchors", "AnchorsTable.Arn"),
    ("karta-sessions", "SessionsTable.Arn"),
    ("karta-sessions/index/due", "${SessionsTable.Arn}/index/due"),
];
pub(crate) const LEADING_KEYS: &str = "dynamodb:LeadingKeys";

pub(crate) fn resources(kind: &str) -> BTreeMap<String, Value> {
    let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    let resources = document["Resources"].as_object().unwrap().clone();
    resources.into_iter().filter(|(_, resource)| resource["Type"] == kind).collect()
}

/// Returns the properties of each function by folder name.
pub(crate) fn functions() -> BTreeMap<String, Value> {
    let functions = resources("AWS::Serverless::Function").into_values();
    let named = functions.map(|function| {
        let binary = function["Metadata"]["BuildProperties"]["Binary"].as_str().unwrap().to_owned();
        (binary, function["Properties"].clone())
    });
    named.collect()
}

pub(crate) fn statements(function: &Value) -> Vec<&Value> {
    let policies = function["Policies"].as_array().into_iter().flatten();
    policies.flat_map(|policy| policy["Statement"].as_array().unwrap()).collect()
}

/// Returns the strings of a value that is one string or a list.
pub(crate) fn words(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(words) => words.iter().map(|word| word.as_str().unwrap()).collect(),
        word => vec![word.as_str().unwrap()],
    }
}

/// Returns every grant on a table: function, action, table and partition pattern.
fn granted() -> BTreeSet<[String; 4]> {
    let mut granted = BTreeSet::new();
    for (name, function) in functions() {
        for statement in statements(&function) {
            for action in words(&statement["Action"]).iter().filter_map(|action| action.strip_prefix("dynamodb:")) {
                for table in words(&statement["Resource"]) {
                    for keys in words(&statement["Condition"]["ForAllValues:StringLike"][LEADING_KEYS]) {
                        granted.insert([&name, action, table, keys].map(str::to_owned));
                    }
                }
            }
        }
    }
    granted
}

#[test]
fn policies_name_exact_actions_and_partitions() {
    let actions = [
        "apigateway:DELETE",
        "dynamodb:BatchGetItem",
        "dynamodb:BatchWriteItem",
        "dynamodb:ConditionCheckItem",
        "dynamodb:DeleteItem",
        "dynamodb:GetItem",
        "dynamodb:PutItem",
        "dynamodb:Query",
        "dynamodb:UpdateItem",
        "lambda:InvokeFunction",
        "secretsmanager:DescribeSecret",
        "secretsmanager:GetSecretValue",
        "secretsmanager:PutSecretValue",
        "secretsmanager:UpdateSecretVersionStage",
    ];
    for (name, function) in functions() {
        assert!(function["Role"].is_null(), "{name} has a custom role");
        for statement in statements(&function) {
            assert_eq!(statement["Effect"], "Allow", "{name}");
            let resources = words(&statement["Resource"]);
            assert!(resources.iter().all(|resource| !resource.contains('*')), "{name}: {resources:?}");
            for action in words(&statement["Action"]) {
                assert!(actions.contains(&action), "{name} may {action}");
                if !action.starts_with("dynamodb:") {
                    continue;
                }
                let condition = &statement["Condition"];
                let keys = words(&condition["ForAllValues:StringLike"][LEADING_KEYS]);
                for key in &keys {
                    let prefix = key.strip_suffix("#*").unwrap_or_default();
                    let kind = prefix.split('#').next().unwrap_or_default();
                    let letters = kind.bytes().all(|byte| byte.is_ascii_uppercase());
                    assert!(letters && !kind.is_empty(), "{name} may {action} {key}");
                }
                let exact = json!({
                    "ForAllValues:StringLike": { LEADING_KEYS: keys },
                    "Null": { LEADING_KEYS: "false" },
                });
                assert_eq!(condition, &exact, "{name}, {action}");
            }
        }
    }
}

#[test]
fn only_cache_push_may_flush_authorizer_cache() {
    let mut granted = Vec::new();
    for (name, function) in functions() {
        for statement in statements(&function) {
            if words(&statement["Action"]).iter().any(|action| action.starts_with("apigateway:")) {
                granted.push((name.clone(), statement["Action"].clone(), statement["Resource"].clone()));
            }
        }
    }
    let cache = "arn:${AWS::Partition}:apigateway:${AWS::Region}::/restapis/${Api}/stages/${Stage}/cache/authorizers";
    assert_eq!(granted, [("worker-cache-push".to_owned(), json!("apigateway:DELETE"), json!(cache))]);
}

#[test]
fn only_webhook_events_may_invoke_webhook_deliveries() {
    let mut granted = Vec::new();
    for (name, function) in functions() {
        for statement in statements(&function) {
            if words(&statement["Action"]).iter().any(|action| action.starts_with("lambda:")) {
                granted.push((name.clone(), statement["Action"].clone(), statement["Resource"].clone()));
            }
        }
    }
    let target = json!("WorkerWebhookDeliveries.Arn");
    assert_eq!(granted, [("worker-webhook-events".to_owned(), json!("lambda:InvokeFunction"), target)]);
    let variables = functions()["worker-webhook-events"]["Environment"]["Variables"].clone();
    assert_eq!(variables, json!({ "KARTA_WEBHOOK_DELIVERIES_FUNCTION": "WorkerWebhookDeliveries" }));
}

#[test]
fn only_key_validators_read_digests() {
    let touching: Vec<_> = granted().into_iter().filter(|[_, _, table, _]| table == "CredentialsTable.Arn").collect();
    let touching: Vec<_> = touching.iter().map(|[function, action, _, keys]| [&**function, action, keys]).collect();
    assert_eq!(
        touching,
        [
            ["api-keys-create", "PutItem", "KP#*"],
            ["api-keys-rotate", "PutItem", "KP#*"],
            ["authorizer", "Query", "KP#*"],
            ["internal-api-keys-create", "PutItem", "KP#*"],
            ["internal-keys-validate", "Query", "KP#*"],
            ["internal-organizations-create", "PutItem", "KP#*"],
        ]
    );
}

/// The functions whose responses stream.
const STREAMING: [&str; 2] = ["turn-streams", "turns"];
const WRITES: [&str; 3] = ["PutItem", "UpdateItem", "DeleteItem"];

#[test]
fn key_validators_write_only_times_of_use() {
    let written: Vec<_> = granted()
        .into_iter()
        .filter(|[function, action, ..]| {
            ["authorizer", "internal-keys-validate"].contains(&function.as_str()) && WRITES.contains(&action.as_str())
        })
        .collect();
    let written: Vec<_> = written.iter().map(|grant| grant.each_ref().map(String::as_str)).collect();
    assert_eq!(
        written,
        [
            ["authorizer", "UpdateItem", "KartaTable.Arn", "USED#*"],
            ["internal-keys-validate", "UpdateItem", "KartaTable.Arn", "USED#*"],
        ]
    );
}

#[test]
fn roles_that_change_access_also_audit() {
    let granted = granted();
    let state = ["KEY#*", "ORG#*", "ADM#*", "BUD#*", "PRJ#*", "MK#*", "WH#*"];
    let writers: BTreeSet<_> = granted
        .iter()
        .filter(|[_, action, table, keys]| {
            WRITES.contains(&action.as_str()) && table == "KartaTable.Arn" && state.contains(&keys.as_str())
        })
        .map(|[function, ..]| function)
        .collect();
    assert!(writers.len() > 10, "{writers:?}");
    for writer in writers {
        let audit = [writer.as_str(), "PutItem", "KartaTable.Arn", "AUD#*"].map(str::to_owned);
        assert!(granted.contains(&audit), "{writer} may change access but may not write audit events");
    }
}

#[test]
fn only_chain_worker_writes_chain_and_anchors() {
    let mut touching = Vec::new();
    for [function, action, table, keys] in granted() {
        if ["CHN#*", "UNC#*"].contains(&keys.as_str()) || table == "AnchorsTable.Arn" {
            touching.push([function, action, keys].join(" "));
        } else if keys == "AUD#*" && function == "worker-audit-chain" {
            // This worker reads and updates events to chain them.
        } else if keys == "AUD#*" && function.starts_with("worker-") {
            let does = [&*function, &action];
            assert_eq!(does, ["worker-webhook-deliveries", "PutItem"], "it audits the endpoints that it disables");
        } else if keys == "AUD#*" {
            assert!(action == "PutItem" || function == "audit-events-list", "{function} may {action} audit events");
        }
    }
    assert_eq!(
        touching,
        [
            "audit-events-list BatchGetItem CHN#*",
            "worker-audit-chain BatchGetItem CHN#*",
            "worker-audit-chain PutItem ANC#*",
            "worker-audit-chain PutItem CHN#*",
            "worker-audit-chain Query UNC#*",
            "worker-audit-chain Query CHN#*",
        ]
    );
}

#[test]
fn only_two_routes_and_sweep_read_sealed_keys() {
    let touching: Vec<_> = granted().into_iter().filter(|[_, _, _, keys]| keys == "MKS#*").collect();
    let touching: Vec<_> = touching.iter().map(|[function, action, table, _]| [&**function, action, table]).collect();
    assert_eq!(
        touching,
        [
            ["internal-model-keys-active", "GetItem", "KartaTable.Arn"],
            ["internal-model-keys-active", "UpdateItem", "KartaTable.Arn"],
            ["model-keys-create", "DeleteItem", "KartaTable.Arn"],
            ["model-keys-create", "PutItem", "KartaTable.Arn"],
            ["model-keys-revoke", "DeleteItem", "KartaTable.Arn"],
            ["turns", "BatchGetItem", "KartaTable.Arn"],
            ["worker-model-keys-reseal", "GetItem", "KartaTable.Arn"],
            ["worker-model-keys-reseal", "Query", "${KartaTable.Arn}/index/sealed"],
            ["worker-model-keys-reseal", "UpdateItem", "KartaTable.Arn"],
        ]
    );
}

#[test]
fn only_rotation_and_deliveries_read_webhook_secrets() {
    let touching: Vec<_> = granted().into_iter().filter(|[_, _, _, keys]| keys == "WHS#*").collect();
    let touching: Vec<_> = touching.iter().map(|[function, action, table, _]| [&**function, action, table]).collect();
    assert_eq!(
        touching,
        [
            ["webhook-endpoints-create", "PutItem", "KartaTable.Arn"],
            ["webhook-endpoints-delete", "DeleteItem", "KartaTable.Arn"],
            ["webhook-endpoints-rotate-secret", "GetItem", "KartaTable.Arn"],
            ["webhook-endpoints-rotate-secret", "PutItem", "KartaTable.Arn"],
            ["worker-webhook-deliveries", "GetItem", "KartaTable.Arn"],
            ["worker-webhook-deliveries", "Query", "${KartaTable.Arn}/index/sealed"],
            ["worker-webhook-deliveries", "UpdateItem", "KartaTable.Arn"],
        ]
    );
}

#[test]
fn secrets_are_readable_only_where_needed() {
    let mut given = BTreeMap::<_, Vec<_>>::new();
    for (name, function) in functions() {
        let mut readable = BTreeSet::new();
        for statement in statements(&function) {
            if words(&statement["Action"]).contains(&"secretsmanager:GetSecretValue") {
                readable.extend(words(&statement["Resource"]).into_iter().map(str::to_owned));
            }
        }
        let variables = function["Environment"]["Variables"].as_object().into_iter().flatten();
        let named = variables.filter(|(variable, _)| variable.starts_with("KARTA_SECRET_"));
        let named: BTreeSet<_> = named.map(|(_, id)| id.as_str().unwrap().to_owned()).collect();
        assert_eq!(readable, named, "{name} must have variables for exactly its readable secrets");
        for secret in readable {
            given.entry(secret).or_default().push(name.clone());
        }
    }
    let readers = [
        ("AuditSecret", &["worker-audit-chain"][..]),
        (
            "CursorSecret",
            &[
                "agent-projects-list",
                "api-keys-list",
                "audit-events-list",
                "model-keys-list",
                "release-logs-list",
                "releases-list",
                "sessions",
                "usage-keys-list",
                "webhook-deliveries-list",
                "webhook-endpoints-list",
            ],
        ),
        ("DataPlanesSecret", &["worker-cache-push"]),
        (
            "KeyTagSecret",
            &[
                "api-keys-create",
                "api-keys-rotate",
                "authorizer",
                "internal-api-keys-create",
                "internal-keys-validate",
                "internal-organizations-create",
            ],
        ),
        (
            "SealingByokSecret",
            &[
                "internal-model-keys-active",
                "model-keys-create",
                "turns",
                "worker-model-keys-reseal",
                "worker-secrets-rotation",
            ],
        ),
        ("SealingSessionsSecret", &["sessions", "turn-streams", "turns", "worker-turns-sweep"]),
        (
            "SealingWebhooksSecret",
            &[
                "webhook-endpoints-create",
                "webhook-endpoints-rotate-secret",
                "worker-secrets-rotation",
                "worker-webhook-deliveries",
            ],
        ),
        (
            "ServiceTokensSecret",
            &[
                "internal-active-release-get",
                "internal-api-keys-create",
                "internal-keys-validate",
                "internal-model-keys-active",
                "internal-model-settings-get",
                "internal-organizations-create",
                "internal-organizations-get",
                "internal-organizations-update",
                "internal-releases-status",
                "internal-usage-events-create",
                "internal-whoami",
                "worker-cache-push",
            ],
        ),
        ("SessionSigningSecret", &["authorizer", "session-tokens-create", "worker-secrets-rotation"]),
        ("StripeSecret", &["stripe-events-create"]),
    ];
    let expected =
        readers.map(|(secret, readers)| (secret.to_owned(), readers.iter().map(ToString::to_string).collect()));
    assert_eq!(given, BTreeMap::from(expected));
}

#[test]
fn only_rotation_writes_rings_and_nothing_else() {
    let rotation = "worker-secrets-rotation";
    for (name, function) in functions() {
        for statement in statements(&function) {
            let actions = words(&statement["Action"]);
            let writes = |action: &&str| action.starts_with("secretsmanager:") && !action.ends_with(":GetSecretValue");
            assert!(name == rotation || !actions.iter().any(writes), "{name}: {actions:?}");
            if name == rotation {
                assert!(actions.iter().all(|action| action.starts_with("secretsmanager:")), "{actions:?}");
                let rings = ["SessionSigningSecret", "SealingByokSecret", "SealingWebhooksSecret"];
                assert_eq!(words(&statement["Resource"]), rings);
            }
        }
    }
    let function = &resources("AWS::Serverless::Function")["WorkerSecretsRotation"];
    assert_eq!(function["Condition"], "Rotates", "the function exists only if rotation is enabled");
    let schedules = resources("AWS::SecretsManager::RotationSchedule");
    for (id, schedule) in &schedules {
        assert_eq!(schedule["Properties"]["RotationLambdaARN"], "WorkerSecretsRotation.Arn", "{id}");
        assert_eq!(schedule["Properties"]["RotateImmediatelyOnUpdate"], false, "{id}");
        assert!(schedule["Condition"].as_str().unwrap().starts_with("Rotates"), "{id} must be optional");
    }
    assert_eq!(schedules.len(), 3);
}

#[test]
fn functions_with_store_permissions_connect_at_startup() {
    // The rotation function has only a client of Secrets Manager.
    for (name, function) in functions().into_iter().filter(|(name, _)| name != worker_secrets_rotation::NAME) {
        let mut actions = statements(&function).into_iter().flat_map(|statement| words(&statement["Action"]));
        let may_ask = actions.any(|action| action.starts_with("dynamodb:"));
        let path = format!("{}/../../functions/{name}/src/lib.rs", env!("CARGO_MANIFEST_DIR"));
        let never_asks = fs::read_to_string(path).unwrap().contains("const USES_STORE: bool = false;");
        assert_eq!(may_ask, !never_asks, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a line for each route")]
async fn functions_do_just_what_their_policies_allow() {
    let (clock, calls) = (Arc::new(ManualClock::at("2026-11-21T12:00:00Z".parse().unwrap())), Calls::kept());
    let provider = FakeProvider::start(Script::default()).await.unwrap();
    let options = Options {
        outbound_reach: Reach::Loopback,
        call_observer: Some(Arc::new(calls.clone())),
        provider_base_urls: Some(provider.replace(ProviderBaseUrls::default(), Provider::OpenAi)),
        ..configured(Arc::clone(&clock) as Arc<dyn Clock>)
    };
    let server = TestServer::start_as(options, None).await;
    converse(&server, &clock, &provider, &calls).await;
    let ((key, token), (other, _)) = (server.key(&["admin"]).await, server.key(&["admin"]).await);
    let (itself, itself_token) = server.key(&["admin"]).await;
    // The grace period requires another admin key.
    let rotate_itself = server.post(&format!("/v1/api_keys/{itself}/rotate"), json!({ "grace_seconds": 599 }));
    let (_, unused) = server.key(&["read"]).await;
    let path = format!("/v1/api_keys/{key}");
    // Expiry notices become due when the clock advances.
    let (soon, later) = ("2026-12-02T12:00:00Z", "2026-12-03T12:00:00Z");
    let new_key = json!({ "name": "ci", "scopes": ["admin"] });
    let ending_key = json!({ "name": "ci", "scopes": ["read"], "expires_at": soon });
    let (temporary, _) = server.key_with(ending_key.clone()).await;
    let temporary = format!("/v1/api_keys/{temporary}");
    let create_organization = || {
        server.service(Method::POST, "/v1/internal/organizations").body(json!({ "slug": "globex", "name": "Globex" }))
    };
    let prefix = server.get(&path).send().await.expect(200)["api_key"]["prefix"].take();
    let usage_event = json!({
        "api_key_id": key, "api_key_prefix": prefix, "kind": "input_tokens", "quantity": 10, "model": "gpt-4o",
        "occurred_at": "2026-11-21T12:00:00Z", "client_event_id": "1",
    });
    let organization = format!("/v1/internal/organizations/{}", server.organization_id);
    let customer = |id: &str| server.service(Method::PATCH, &organization).body(json!({ "stripe_customer_id": id }));
    let validation = server.service(Method::POST, "/v1/internal/keys/validate").body(json!({ "key": unused }));
    let new_project = json!({ "slug": "app", "name": "App" });
    server.project("shop").await;
    let session = server.session_token("shop", json!({})).await;
    let release = server.deploy("shop", json!({ "commit_sha": "abcdef0" })).await;
    let report = |log: &str| {
        let path = format!("/v1/internal/releases/{}/status", release["id"]);
        server.service(Method::POST, &path).body(json!({ "status": "ready", "build_log": log }))
    };
    report("one\ntwo").send().await.expect(200);
    let service = |path: &str| server.service(Method::GET, &format!("/v1/internal/{path}"));
    let shop = format!("organization_id={}&project_id={}", server.organization_id, release["project_id"]);
    let deploy = server.post("/v1/agent_projects/shop/deploys", json!({ "commit_sha": "abcdef1" }));
    let model_key = |provider: &str, start: &str| {
        server.post("/v1/model_keys", json!({ "provider": provider, "key": provider_key(start) }))
    };
    let revoked_model_key = model_key("openrouter", "sk-or-").send().await.expect(201);
    let revoked_model_key = format!("/v1/model_keys/{}", revoked_model_key["model_key"]["id"]);
    let invoice = stripe_events::event("evt_2", "invoice.paid", 1, &json!({ "id": "in_1", "customer": "cus_1" }));
    for (function, request) in vec![
        ("authorizer", server.get("/v1/whoami").bearer(&token)),
        ("authorizer", server.get("/v1/projects/shop/whoami").bearer(&session)),
        ("whoami", server.get("/v1/whoami")),
        ("healthz", server.get("/healthz")),
        ("api-keys-create", server.post("/v1/api_keys", new_key).idempotency_key("1")),
        ("api-keys-create", server.post("/v1/api_keys", ending_key)),
        ("api-keys-list", server.get("/v1/api_keys?limit=1")),
        ("api-keys-get", server.get(&path)),
        ("api-keys-update", server.patch(&path, json!({ "scopes": ["read"] }))),
        ("api-keys-update", server.patch(&path, json!({ "scopes": ["admin"] }))),
        // A key that changes itself is read together with its organization and its last use.
        ("api-keys-update", server.patch(&path, json!({ "name": "itself" })).bearer(&token)),
        ("api-keys-rotate", rotate_itself.bearer(&itself_token)),
        ("api-keys-revoke", server.delete(&format!("/v1/api_keys/{itself}")).bearer(&itself_token)),
        ("api-keys-update", server.patch(&temporary, json!({ "expires_at": later }))),
        ("api-keys-rotate", server.post(&format!("{temporary}/rotate"), json!({}))),
        ("api-keys-rotate", server.post(&format!("{path}/rotate"), json!({})).idempotency_key("1")),
        ("api-keys-revoke", server.delete(&format!("/v1/api_keys/{other}"))),
        ("agent-projects-create", server.post("/v1/agent_projects", new_project).idempotency_key("1")),
        ("agent-projects-list", server.get("/v1/agent_projects?limit=1")),
        ("agent-projects-get", server.get("/v1/agent_projects/app")),
        ("agent-projects-update", server.patch("/v1/agent_projects/app", json!({ "model_id": "m" }))),
        ("release-logs-list", server.get("/v1/agent_projects/shop/releases/1/logs?limit=1")),
        ("internal-releases-status", report("one")),
        ("deploys-create", deploy.idempotency_key("1")),
        ("releases-list", server.get("/v1/agent_projects/shop/releases?limit=1")),
        ("releases-rollback", server.post("/v1/agent_projects/shop/rollback", json!({ "version": 1 }))),
        (
            "internal-active-release-get",
            service(&format!("projects/shop/active_release?organization_id={}", server.organization_id)),
        ),
        ("internal-model-settings-get", service(&format!("model_settings?{shop}"))),
        ("model-keys-create", model_key("anthropic", "sk-ant-").idempotency_key("1")),
        ("model-keys-create", model_key("anthropic", "sk-ant-").idempotency_key("2")),
        ("model-keys-create", model_key("openai", "sk-")),
        ("model-keys-list", server.get("/v1/model_keys?limit=1")),
        ("model-keys-revoke", server.delete(&revoked_model_key)),
        ("session-tokens-create", server.post("/v1/agent_projects/app/session_tokens", json!({}))),
        ("projects-whoami", server.get("/v1/projects/app/whoami")),
        ("usage-get", server.get("/v1/usage")),
        ("usage-keys-list", server.get("/v1/usage/keys?limit=1")),
        ("budget-update", server.request(Method::PUT, "/v1/budget").body(json!({ "total_tokens": 10 }))),
        ("budget-get", server.get("/v1/budget")),
        ("api-keys-update", server.patch(&temporary, json!({ "budget": { "total_tokens": 10 } }))),
        (
            "internal-usage-events-create",
            server.service(Method::POST, "/v1/internal/usage/events").body(json!({ "events": [usage_event] })),
        ),
        ("internal-organizations-update", customer("cus_0")),
        (
            "internal-organizations-update",
            server.service(Method::PATCH, &organization).body(json!({ "subscription_status": "trialing" })),
        ),
        ("internal-whoami", server.service(Method::GET, "/v1/internal/whoami")),
        ("internal-keys-validate", validation),
        ("internal-organizations-create", create_organization().idempotency_key("1")),
        // The error response contains the id of the organization that has the slug.
        ("internal-organizations-create", create_organization()),
        (
            "internal-api-keys-create",
            server
                .service(Method::POST, &format!("{organization}/api_keys"))
                .body(json!({ "name": "rescue", "scopes": ["admin"] }))
                .idempotency_key("1"),
        ),
        ("internal-organizations-get", server.service(Method::GET, &organization)),
        ("internal-organizations-update", customer("cus_1")),
        ("stripe-events-create", signed(&server, &stripe_events::updated("evt_1", 1, "past_due").to_string())),
        ("stripe-events-create", signed(&server, &invoice.to_string())),
        ("billing-get", server.get("/v1/billing")),
        ("internal-organizations-update", customer("cus_2")),
    ] {
        let reply = request.send().await;
        assert!(reply.status.is_success() || reply.json["error"] == "slug_taken", "{function}: {}", reply.text);
    }
    server.work("worker-audit-chain").await;
    server.get("/v1/audit_events?limit=1").send().await.expect(200);
    webhooks(&server, &clock).await;
    clock.advance(Duration::from_hours(5 * 24));
    postpone_unreadable_notice(&server).await;
    // After a rotation of the ring, a request reseals the provider key that it reads, and the sweep
    // reseals the others.
    let rotated = rotated(&server);
    active_of(&rotated, &server, "anthropic").await.expect(200);
    for tick in registry::workers(&rotated, &server.runner.gateway).into_values() {
        tick().await.unwrap();
    }
    // The delivery worker reseals webhook secrets in the same way.
    let body = json!({ "url": "https://hooks.example.com", "event_types": ["*"] });
    for _ in 0..2 {
        server.post("/v1/webhook_endpoints", body.clone()).send().await.expect(201);
    }
    server.get("/v1/webhook_endpoints?limit=1").send().await.expect(200);
    let rotated = server.app_with_ring(Ring::SealingWebhooks, |ring| {
        ring["k2"] = json!("2".repeat(64));
        ring["current"] = json!("k2");
    });
    let deliveries = WebhookDeliveries::new(rotated.for_function(WebhookDeliveries::NAME), Vec::new());
    deliveries.work(&Wake::Sweep).await.unwrap();
    let recorded = calls.seen();
    let unpermitted = rights::unpermitted(&recorded);
    assert!(unpermitted.is_empty(), "calls without a permission: {unpermitted:#?}");
    let mut unused = rights::unused(&recorded);
    unused.retain(|permission| !permission.needs_fake_service());
    assert!(unused.is_empty(), "unused permissions: {unused:#?}");
}

/// Lets the worker postpone a notice that it cannot read.
async fn postpone_unreadable_notice(server: &TestServer) {
    let notice = json!({
        "pk": { "S": format!("XPR#{}", server.organization_id) },
        "sk": { "S": "?" },
        "organization_id": { "N": server.organization_id.to_string() },
        "due_shard": { "S": "XPR#0" },
        "due_at": { "S": "2026-11-21T12:00:00.000Z" },
    });
    server.dynamodb("PutItem", json!({ "TableName": "karta-outbox", "Item": notice })).await;
    server.try_work("worker-expiry-notices").await.unwrap_err();
}

/// Calls every webhook route and both webhook workers.
async fn webhooks(server: &TestServer, clock: &ManualClock) {
    let (receiver, woken) = (Receiver::start().await, Arc::new(Mutex::new(BTreeSet::new())));
    let noted = Arc::clone(&woken);
    let waker = Waker::Local(Arc::new(move |_, endpoint| {
        noted.lock().unwrap().insert(endpoint);
    }));
    let events = WebhookEvents::new(server.runner.app.for_function(WebhookEvents::NAME), waker);
    let deliveries = WebhookDeliveries::new(server.runner.app.for_function(WebhookDeliveries::NAME), Vec::new())
        .with_max_wait(Duration::ZERO);
    let organization_id = Id::new(server.organization_id).unwrap();
    let ask = async |function: &str, request: Request| {
        let reply = request.send().await;
        assert!(reply.status.is_success(), "{function}: {}", reply.text);
        reply.json
    };
    let work = async |wake: Wake| {
        events.work(&wake).await.unwrap();
        let due = std::mem::take(&mut *woken.lock().unwrap());
        for webhook_endpoint_id in due {
            deliveries.work(&Wake::Endpoint { organization_id, webhook_endpoint_id }).await.unwrap();
        }
    };
    let route = "/v1/webhook_endpoints";
    // More events than one page of a recovery.
    for _ in 0..30 {
        server.key(&["read"]).await;
    }
    clock.advance(Duration::from_millis(2_500));
    let body = json!({ "url": receiver.url, "event_types": ["*"] });
    let made = ask("webhook-endpoints-create", server.post(route, body).idempotency_key("1")).await;
    let endpoint = format!("{route}/{}", made["webhook_endpoint"]["id"]);
    for (function, request) in [
        ("webhook-endpoints-list", server.get(&format!("{route}?limit=1"))),
        ("webhook-endpoints-get", server.get(&endpoint)),
        (
            "webhook-endpoints-rotate-secret",
            server.post(&format!("{endpoint}/rotate_secret"), json!({})).idempotency_key("1"),
        ),
        ("webhook-endpoints-test", server.request(Method::POST, &format!("{endpoint}/test"))),
    ] {
        ask(function, request).await;
    }
    // Events from before the endpoint are not sent. The ping fails and waits for its retry.
    receiver.react(Reaction::Status(500));
    work(Wake::Sweep).await;
    let mut listed = ask("webhook-deliveries-list", server.get(&format!("{endpoint}/deliveries?limit=1"))).await;
    let ping = listed["deliveries"][0].take();
    assert_eq!((&ping["event_type"], &ping["status"]), (&json!("ping"), &json!("pending")));
    let replay = format!("{endpoint}/deliveries/{}/replay", ping["id"]);
    ask("webhook-deliveries-replay", server.request(Method::POST, &replay)).await;
    work(Wake::Sweep).await;
    // A recovery over several pages, which finds unsent events and a pending delivery.
    clock.advance(Duration::from_millis(1));
    let since = json!({ "since": "2026-11-21T11:00:00Z" });
    ask("webhook-endpoints-recover", server.post(&format!("{endpoint}/recover"), since)).await;
    receiver.react(Reaction::Status(200));
    work(Wake::Sweep).await;
    assert!(receiver.received().len() > 30);
    ask("webhook-deliveries-list", server.get(&format!("{endpoint}/deliveries?limit=1"))).await;
    receiver.react(Reaction::Status(410));
    server.key(&["read"]).await;
    work(Wake::Sweep).await;
    assert_eq!(server.get(&endpoint).send().await.expect(200)["webhook_endpoint"]["disabled_reason"], "gone");
    ask("webhook-endpoints-update", server.patch(&endpoint, json!({ "enabled": true }))).await;
    // The queue gets a delivery while its endpoint is deleted.
    let queue = format!("WHQ#{organization_id}");
    let queue = server.items_of("karta-outbox", &queue).await.remove(0);
    ask("webhook-endpoints-delete", server.delete(&endpoint)).await;
    server.dynamodb("PutItem", json!({ "TableName": "karta-outbox", "Item": queue })).await;
    work(Wake::Sweep).await;
    assert!(server.outbox("WHQ").await.is_empty());
}

#[test]
fn template_secret_generators_never_change() {
    let secrets = resources("AWS::SecretsManager::Secret").into_iter();
    let generators: BTreeMap<_, _> = secrets
        .map(|(name, secret)| {
            let properties = &secret["Properties"];
            let given = &properties["SecretString"];
            (name, if given.is_null() { properties["GenerateSecretString"].clone() } else { given.clone() })
        })
        .collect();
    insta::assert_json_snapshot!(generators, @r#"
    {
      "AuditSecret": {
        "ExcludePunctuation": true,
        "GenerateStringKey": "k1",
        "PasswordLength": 64,
        "SecretStringTemplate": "{\"current\":\"k1\"}"
      },
      "CursorSecret": {
        "ExcludePunctuation": true,
        "GenerateStringKey": "k1",
        "PasswordLength": 64,
        "SecretStringTemplate": "{\"current\":\"k1\"}"
      },
      "DataPlanesSecret": "{}",
      "KeyTagSecret": {
        "ExcludePunctuation": true,
        "GenerateStringKey": "k1",
        "PasswordLength": 64,
        "SecretStringTemplate": "{\"current\":\"k1\"}"
      },
      "SealingByokSecret": {
        "ExcludePunctuation": true,
        "GenerateStringKey": "k1",
        "PasswordLength": 64,
        "SecretStringTemplate": "{\"current\":\"k1\"}"
      },
      "SealingSessionsSecret": {
        "ExcludePunctuation": true,
        "GenerateStringKey": "k1",
        "PasswordLength": 64,
        "SecretStringTemplate": "{\"current\":\"k1\"}"
      },
      "SealingWebhooksSecret": {
        "ExcludePunctuation": true,
        "GenerateStringKey": "k1",
        "PasswordLength": 64,
        "SecretStringTemplate": "{\"current\":\"k1\"}"
      },
      "ServiceTokensSecret": {
        "ExcludePunctuation": true,
        "GenerateStringKey": "operator",
        "PasswordLength": 64,
        "SecretStringTemplate": "{\"powers\":{\"operator\":[\"provision\"]}}"
      },
      "SessionSigningSecret": {
        "ExcludePunctuation": true,
        "GenerateStringKey": "k1",
        "PasswordLength": 64,
        "SecretStringTemplate": "{\"current\":\"k1\"}"
      },
      "StripeSecret": "{}"
    }
    "#);
}

#[test]
fn generated_service_tokens_are_valid() {
    let secret = &resources("AWS::SecretsManager::Secret")["ServiceTokensSecret"];
    let generator = &secret["Properties"]["GenerateSecretString"];
    let mut generated: Value = serde_json::from_str(generator["SecretStringTemplate"].as_str().unwrap()).unwrap();
    let token = "Ab1z".repeat(16);
    generated[generator["GenerateStringKey"].as_str().unwrap()] = json!(token);
    let tokens: ServiceTokens = serde_json::from_value(generated).unwrap();
    let operator = tokens.find(&token).unwrap();
    assert_eq!(Power::ALL.into_iter().filter(|power| operator.may(*power)).collect::<Vec<_>>(), [Power::Provision]);
}

#[test]
fn internal_routes_are_closed_by_default() {
    let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    for (parameter, variable) in
        [("InternalAllowedIps", "KARTA_INTERNAL_ALLOWED_IPS"), ("InternalHosts", "KARTA_INTERNAL_HOSTS")]
    {
        assert_eq!(document["Parameters"][parameter]["Default"], "", "{parameter}");
        for (name, function) in functions() {
            let value = function["Environment"]["Variables"][variable].as_str();
            assert_eq!(value, name.starts_with("internal-").then_some(parameter), "{name}");
        }
    }
}

#[test]
fn tables_and_secrets_outlive_their_stack() {
    let tables = resources("AWS::DynamoDB::Table");
    for (name, resource) in tables.iter().chain(&resources("AWS::SecretsManager::Secret")) {
        assert_eq!(
            (&resource["DeletionPolicy"], &resource["UpdateReplacePolicy"]),
            (&json!("Retain"), &json!("Retain")),
            "{name}"
        );
    }
    assert_eq!(tables.len(), TABLES.iter().filter(|(name, _)| !name.contains('/')).count());
    for (name, table) in tables {
        let properties = &table["Properties"];
        assert_eq!(properties["BillingMode"], "PAY_PER_REQUEST", "{name}");
        assert_eq!(properties["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"], true, "{name}");
        assert_eq!(properties["SSESpecification"]["SSEEnabled"], true, "{name}");
        assert_eq!(properties["DeletionProtectionEnabled"], "DeletionProtection", "{name}");
    }
    let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    assert_eq!(document["Parameters"]["DeletionProtection"]["Default"], "true");
}

#[test]
fn gateway_responses_match_the_contract() {
    let unauthorized = crate::harness::unauthorized();
    let not_found = crate::harness::unknown_route();
    let unavailable = json!({ "detail": "Service unavailable" });
    let rate_limited = json!({ "error": "rate_limited", "retry_after_seconds": 1 });
    let error = |error: &str, message: &str| json!({ "error": error, "message": message });
    let invalid =
        |message: &str, field: &str| json!({ "error": "validation_failed", "message": message, "field": field });
    let expected = BTreeMap::from([
        ("ACCESS_DENIED", (401, unauthorized.clone())),
        ("AUTHORIZER_CONFIGURATION_ERROR", (503, unavailable.clone())),
        ("AUTHORIZER_FAILURE", (503, unavailable.clone())),
        ("BAD_REQUEST_BODY", (400, error("malformed_json", "The body is not valid JSON"))),
        ("BAD_REQUEST_PARAMETERS", (422, invalid("A parameter is not valid", "parameters"))),
        ("DEFAULT_4XX", (404, not_found.clone())),
        ("DEFAULT_5XX", (503, unavailable.clone())),
        ("EXPIRED_TOKEN", (404, not_found.clone())),
        ("INTEGRATION_FAILURE", (503, unavailable)),
        ("INTEGRATION_TIMEOUT", (504, json!({ "detail": "Timed out" }))),
        ("INVALID_API_KEY", (401, unauthorized.clone())),
        ("INVALID_SIGNATURE", (404, not_found.clone())),
        ("MISSING_AUTHENTICATION_TOKEN", (404, not_found.clone())),
        ("QUOTA_EXCEEDED", (429, rate_limited.clone())),
        ("REQUEST_TOO_LARGE", (413, error("body_too_large", "The body is too large"))),
        ("RESOURCE_NOT_FOUND", (404, not_found.clone())),
        ("THROTTLED", (429, rate_limited)),
        ("UNAUTHORIZED", (401, unauthorized)),
        ("UNSUPPORTED_MEDIA_TYPE", (422, invalid("Content-Type must be application/json", "content-type"))),
        ("WAF_FILTERED", (404, not_found)),
    ]);
    let responses = Template::parse(TEMPLATE).unwrap().gateway_responses;
    assert_eq!(responses.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, response) in responses {
        let mut body: Value = serde_json::from_str(&response.body.replace("$context.requestId", "a-b-c")).unwrap();
        assert_eq!(body.as_object_mut().unwrap().remove("request_id"), Some(json!("a-b-c")), "{name}");
        assert_eq!((response.status, body), expected[name.as_str()], "{name}");
        assert_eq!(response.headers["X-Request-Id"], "context.requestId", "{name}");
        assert_eq!(response.headers["Content-Type"], "'application/json'", "{name}");
        let challenge = response.headers.get("WWW-Authenticate").map(String::as_str);
        assert_eq!(challenge, (response.status == 401).then_some("'Bearer'"), "{name}");
        let retry_after = response.headers.get("Retry-After").map(String::as_str);
        assert_eq!(retry_after, [429, 503, 504].contains(&response.status).then_some("'1'"), "{name}");
    }
}

#[test]
fn firewall_refusal_equals_unknown_path_answer() {
    let responses = &resources("AWS::Serverless::Api")["Api"]["Properties"]["GatewayResponses"];
    assert_eq!(responses["WAF_FILTERED"], responses["MISSING_AUTHENTICATION_TOKEN"]);
}

/// Collects the fields of a rule's statement that have this name.
fn named<'a>(statement: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    match statement {
        Value::Object(fields) => {
            for (field, value) in fields {
                if field == name {
                    found.push(value);
                }
                named(value, name, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| named(item, name, found)),
        _ => {}
    }
}

#[test]
fn firewall_covers_internal_and_key_creating_routes() {
    let acls = resources("AWS::WAFv2::WebACL");
    let rules = acls["WebAcl"]["Properties"]["Rules"].as_array().unwrap();
    let covered = |rule: &str| {
        let rule = rules.iter().find(|candidate| candidate["Name"] == rule).unwrap();
        let mut matches = Vec::new();
        named(&rule["Statement"], "ByteMatchStatement", &mut matches);
        let paths: Vec<_> = matches.iter().filter(|found| found["FieldToMatch"]["UriPath"].is_object()).collect();
        let [path] = paths[..] else { panic!("{rule} must match one path") };
        assert_eq!(path["PositionalConstraint"], "CONTAINS", "the stage may precede the path");
        path["SearchString"].as_str().unwrap().to_owned()
    };
    let template = Template::parse(TEMPLATE).unwrap();
    let routes =
        template.functions.iter().flat_map(|function| function.routes.iter().map(move |route| (function, route)));
    let creators = key_creators();
    let internal = covered("internal-routes");
    for (function, route) in routes {
        let is_internal = function.binary.starts_with("internal-");
        assert_eq!(route.path.contains(&internal), is_internal, "{}", route.path);
        for rule in ["key-creation-by-credential", "key-creation-by-address"] {
            let counted = route.method == Method::POST && route.path.contains(&covered(rule));
            assert_eq!(counted, creators.contains(&function.binary) && !is_internal, "{rule}: {}", route.path);
        }
    }
    let encoded = rules.iter().find(|rule| rule["Name"] == "encoded-slashes").unwrap();
    assert_eq!((&encoded["Action"], rules.len()), (&json!({ "Block": {} }), 4));
    let encoded = regex::Regex::new(encoded["Statement"]["RegexMatchStatement"]["RegexString"].as_str().unwrap());
    let encoded = encoded.unwrap();
    for path in ["/v1/internal/organizations/%2e%2e%2fx/api_keys", "/v1/api_keys/..%5cx/rotate", "/v1/%252f"] {
        assert!(encoded.is_match(path), "{path}");
    }
    for resource in acls.values().chain(resources("AWS::WAFv2::IPSet").values()) {
        assert_eq!(resource["Condition"], "HasFirewall");
    }
}

#[test]
fn access_log_holds_no_credential() {
    let settings = &resources("AWS::Serverless::Api")["Api"]["Properties"]["AccessLogSetting"];
    let (condition, setting) = (&settings[0], &settings[1]);
    assert_eq!(condition, "LogsAccess");
    let format = setting["Format"].as_str().unwrap();
    let variables: BTreeSet<_> =
        format.split("$context.").skip(1).map(|rest| rest.split(['"', ',']).next().unwrap()).collect();
    // The log has no headers (such as the user agent), paths or queries, because clients control
    // their content.
    let expected = [
        "domainName",
        "error.responseType",
        "extendedRequestId",
        "httpMethod",
        "identity.sourceIp",
        "integrationLatency",
        "requestId",
        "requestTimeEpoch",
        "resourcePath",
        "responseLatency",
        "responseLength",
        "status",
        "waf.status",
    ];
    assert_eq!(variables, BTreeSet::from(expected));
    assert_eq!(format.matches('$').count(), expected.len());
    let line = format.split("$context.requestTimeEpoch").collect::<Vec<_>>().join("1");
    assert!(serde_json::from_str::<Value>(&line).unwrap().is_object(), "{line}");
}

#[test]
fn every_log_group_has_a_retention() {
    let groups = resources("AWS::Logs::LogGroup");
    for (name, group) in &groups {
        let retention = group["Properties"]["RetentionInDays"].as_str();
        let (expected, kept) = match name.as_str() {
            "WorkerAuditChainLogs" => ("AuditLogRetentionDays", json!("Retain")),
            _ => ("LogRetentionDays", Value::Null),
        };
        assert_eq!(retention, Some(expected), "{name}");
        assert_eq!((&group["DeletionPolicy"], &group["UpdateReplacePolicy"]), (&kept, &kept), "{name}");
    }
    for (name, function) in functions() {
        let group = function["LoggingConfig"]["LogGroup"].as_str().unwrap();
        assert!(groups.contains_key(group), "{name}");
    }
    let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    let days = document["Parameters"]["AuditLogRetentionDays"]["AllowedValues"].as_array().unwrap();
    assert!(
        days.iter().all(|days| days.as_u64().unwrap() >= 365),
        "the audit chain's log must be kept for at least a year"
    );
}

#[test]
fn reserved_concurrency_parameters_may_be_zero() {
    let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    let mut reserved = BTreeMap::new();
    for (name, function) in functions() {
        if let Some(reservation) = function.get("ReservedConcurrentExecutions") {
            let [condition, parameter, none] = reservation.as_array().unwrap().as_slice() else { panic!("{name}") };
            assert_eq!(none, "AWS::NoValue", "{name}");
            let zero = json!([[parameter, 0]]);
            assert_eq!(document["Conditions"][condition.as_str().unwrap()], zero, "{name}");
            let parameter = &document["Parameters"][parameter.as_str().unwrap()];
            assert_eq!(parameter["MinValue"], 0, "{name}");
            reserved.insert(name, parameter["Default"].as_u64().unwrap());
        }
    }
    let expected = [
        ("authorizer", 0),
        ("internal-keys-validate", 0),
        ("turn-streams", 0),
        ("turns", 0),
        ("worker-webhook-deliveries", 20),
    ];
    assert_eq!(reserved, expected.map(|(name, default)| (name.to_owned(), default)).into());
}

#[test]
fn stack_stays_below_the_resource_limit() {
    let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    // SAM adds a role to each function, a rule and a permission to each schedule, and a permission
    // or a mapping to each other event. To the API it adds a deployment, a stage and a permission
    // for each authorizer.
    let resource_count = |resource: &Value| {
        let properties = &resource["Properties"];
        match resource["Type"].as_str().unwrap() {
            "AWS::Serverless::Function" => {
                let events = properties["Events"].as_object().into_iter().flat_map(|events| events.values());
                let of_events: usize = events.map(|event| 1 + usize::from(event["Type"] == "Schedule")).sum();
                2 + of_events + usize::from(properties["EventInvokeConfig"].is_object())
            }
            "AWS::Serverless::Api" => 3 + properties["Auth"]["Authorizers"].as_object().unwrap().len(),
            _ => 1,
        }
    };
    let sum: usize = document["Resources"].as_object().unwrap().values().map(resource_count).sum();
    assert!(sum <= 480, "{sum} of CloudFormation's 500");
}

#[test]
fn functions_are_built_with_the_lock_file() {
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml")).unwrap();
    assert!(manifest.contains("\n[workspace.metadata.lambda.build]\nlocked = true\n"));
    for (name, function) in resources("AWS::Serverless::Function") {
        assert_eq!(function["Metadata"]["BuildMethod"], "rust-cargolambda", "{name}");
    }
}

#[test]
fn function_deadline_precedes_lambda_and_gateway_timeouts() {
    let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    let usual = &document["Globals"]["Function"]["Timeout"];
    let routes =
        Template::parse(TEMPLATE).unwrap().functions.into_iter().filter(|function| !function.routes.is_empty());
    for name in routes.map(|function| function.binary).chain(["authorizer".to_owned()]) {
        let seconds = functions()[&name].get("Timeout").unwrap_or(usual).as_u64().unwrap();
        let bounds = if STREAMING.contains(&name.as_str()) {
            let TurnLimits { streamed, settle, .. } = TurnLimits::DEFAULT;
            (streamed + settle).as_secs() + 1..901
        } else {
            DEADLINE.as_secs() + 1..29
        };
        assert!(bounds.contains(&seconds), "{name}");
    }
}

/// The API names the functions that it calls, so a reference back would be circular.
#[test]
fn functions_of_the_api_do_not_name_it() {
    fn names(value: &Value) -> bool {
        match value {
            Value::String(text) => text == "Api" || text.contains("${Api}") || text.contains("${Api."),
            Value::Array(items) => items.iter().any(names),
            Value::Object(fields) => fields.iter().any(|(name, field)| name != "RestApiId" && names(field)),
            _ => false,
        }
    }
    for (name, mut function) in functions() {
        let events = function["Events"].as_object_mut().into_iter().flat_map(|events| events.values_mut());
        let mut is_called = name == "authorizer";
        for event in events {
            is_called |= event["Type"].take() == "Api";
        }
        assert!(!is_called || !names(&function), "{name}");
    }
}

#[test]
fn only_streaming_functions_may_stream() {
    let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    let mut permitted = Vec::new();
    for permission in resources("AWS::Lambda::Permission").into_values() {
        let properties = &permission["Properties"];
        if properties["Action"] != "lambda:InvokeWithResponseStream" {
            continue;
        }
        assert_eq!(properties["Principal"], "apigateway.amazonaws.com");
        let arn = "arn:${AWS::Partition}:execute-api:${AWS::Region}:${AWS::AccountId}:${Api}/*";
        assert_eq!(properties["SourceArn"], arn, "only this API");
        let function = &document["Resources"][properties["FunctionName"].as_str().unwrap()];
        permitted.push(function["Metadata"]["BuildProperties"]["Binary"].as_str().unwrap().to_owned());
    }
    permitted.sort();
    assert_eq!(permitted, STREAMING);
    for (name, function) in functions() {
        let streams = STREAMING.contains(&name.as_str());
        let mode = function["Environment"]["Variables"]["KARTA_RESPONSE_TRANSFER_MODE"].as_str();
        assert_eq!(mode, streams.then_some("ResponseTransferMode"), "{name}");
        for event in function["Events"].as_object().into_iter().flat_map(|events| events.values()) {
            // SAM compares the mode as a string: `!Ref` of a parameter works, `!If` does not.
            let event = &event["Properties"];
            assert_eq!(event["ResponseTransferMode"].as_str(), streams.then_some("ResponseTransferMode"), "{name}");
            assert_eq!(event["TimeoutInMillis"].as_u64(), streams.then_some(900_000), "{name}");
        }
    }
}

#[test]
fn no_function_starts_from_a_snapshot() {
    // Copies of a snapshot would generate the same random numbers.
    assert!(!TEMPLATE.contains("SnapStart"));
}

#[test]
fn only_listed_routes_bypass_the_authorizer() {
    let template = Template::parse(TEMPLATE).unwrap();
    let routes = template.functions.iter().flat_map(|function| &function.routes);
    let open: BTreeSet<_> =
        routes.filter(|route| !route.is_authorized()).map(|route| format!("{} {}", route.method, route.path)).collect();
    // The internal routes check the allowlists and a service token. Stripe's route checks a
    // signature.
    let expected = [
        "GET /docs",
        "GET /healthz",
        "GET /openapi.json",
        "GET /v1/internal/model_keys/active",
        "GET /v1/internal/model_settings",
        "GET /v1/internal/organizations/{id}",
        "GET /v1/internal/projects/{slug}/active_release",
        "GET /v1/internal/whoami",
        "HEAD /healthz",
        "OPTIONS /v1/projects/{ref}/sessions",
        "OPTIONS /v1/projects/{ref}/sessions/{id}",
        "OPTIONS /v1/projects/{ref}/sessions/{id}/cancel",
        "OPTIONS /v1/projects/{ref}/sessions/{id}/messages",
        "OPTIONS /v1/projects/{ref}/sessions/{id}/stream",
        "OPTIONS /v1/projects/{ref}/whoami",
        "PATCH /v1/internal/organizations/{id}",
        "POST /v1/internal/keys/validate",
        "POST /v1/internal/organizations",
        "POST /v1/internal/organizations/{id}/api_keys",
        "POST /v1/internal/releases/{id}/status",
        "POST /v1/internal/usage/events",
        "POST /v1/stripe/events",
    ];
    assert_eq!(open.iter().collect::<Vec<_>>(), expected);
    assert_eq!((template.authorizer.binary.as_str(), template.authorizer.cached_seconds), ("authorizer", 3));
}

/// Returns the functions that may store a credential and therefore run bcrypt.
fn key_creators() -> BTreeSet<String> {
    let granted = granted().into_iter();
    granted
        .filter(|[_, action, _, keys]| action == "PutItem" && keys == "KP#*")
        .map(|[function, ..]| function)
        .collect()
}

#[test]
fn routes_that_create_or_open_keys_are_throttled() {
    let document: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    // Returns a number, or the default of the parameter of that name.
    let number = |value: &Value| {
        let parameter = value.as_str().map(|name| document["Parameters"][name]["Default"].as_u64());
        parameter.unwrap_or_else(|| value.as_u64()).unwrap()
    };
    let settings = resources("AWS::Serverless::Api")["Api"]["Properties"]["MethodSettings"].clone();
    let settings = settings.as_array().unwrap().iter().map(|setting| {
        let word = |name: &str| setting[name].as_str().unwrap().to_owned();
        let limits = ["ThrottlingRateLimit", "ThrottlingBurstLimit"].map(|limit| number(&setting[limit]));
        ((word("HttpMethod"), word("ResourcePath")), limits)
    });
    let mut settings: BTreeMap<_, _> = settings.collect();
    let ceiling = settings.remove(&("*".to_owned(), "/*".to_owned())).unwrap();
    let creators = key_creators();
    // A function that may read a sealed key can open it.
    let openers = granted().into_iter().filter(|[_, action, _, keys]| action == "GetItem" && keys == "MKS#*");
    let throttled: BTreeSet<_> = openers.map(|[function, ..]| function).chain(creators.clone()).collect();
    let template = Template::parse(TEMPLATE).unwrap();
    let functions = template.functions.iter().filter(|function| throttled.contains(&function.binary));
    let routes = functions.flat_map(|function| function.routes.iter().map(move |route| (function, route)));
    let expected = routes.map(|(function, route)| {
        let path = format!("/{}", route.path.replace('/', "~1"));
        let limits = if creators.contains(&function.binary) { [50, 100] } else { [200, 400] };
        ((route.method.to_string(), path), limits)
    });
    assert_eq!(settings, expected.collect());
    assert!(creators.len() >= 4 && ceiling > [200, 400], "{creators:?} {ceiling:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn template_that_does_not_match_handlers_is_refused() {
    let server = TestServer::start().await;
    let refusal = |edit: &dyn Fn(&mut Template)| {
        let mut template = Template::parse(TEMPLATE).unwrap();
        edit(&mut template);
        Gateway::new(&server.runner.app, &template).unwrap_err().to_string()
    };
    let message = refusal(&|template| {
        let (name, path) = ("api-keys-burn".to_owned(), "/burn".to_owned());
        let routes = vec![TemplateRoute { name, method: Method::GET, path, authorizer: Some(AuthorizerMode::Cached) }];
        template.functions.push(Function {
            binary: "api-keys-burn".to_owned(),
            routes,
            outbox_prefixes: Vec::new(),
            schedule: None,
            indexes: Vec::new(),
        });
    });
    assert_eq!(message, "template.yaml lists api-keys-burn, which has no handler in registry.rs");
    let message = refusal(&|template| template.functions.retain(|function| function.binary != "whoami"));
    assert_eq!(message, "the handler whoami is not in template.yaml");
    let message = refusal(&|template| template.authorizer.binary = "whoami".to_owned());
    assert!(message.contains("authorizer"), "{message}");
    let message = refusal(&|template| {
        template.gateway_responses.remove("ACCESS_DENIED");
    });
    assert_eq!(message, "template.yaml has no GatewayResponse ACCESS_DENIED");
}

#[test]
fn invalid_template_is_refused_with_its_fault() {
    for (before, after, named) in [
        ("Binary: api-keys-list", "Binary: api-keys-lists", "ApiKeysList builds api-keys-lists"),
        ("Method: PATCH", "Method: [PATCH]", "ApiKeysUpdate, event Route"),
        ("DefaultAuthorizer: Credential", "Comment: none", "no DefaultAuthorizer"),
        ("Authorizer: NONE", "Authorizer: AWS_IAM", "unknown Authorizer AWS_IAM"),
        ("StatusCode: 401", "StatusCode: often", "GatewayResponses.UNAUTHORIZED"),
        ("Resources:", "Resource:", "no Resources"),
        ("AWSTemplateFormatVersion:", "- AWSTemplateFormatVersion:", "not YAML"),
    ] {
        let edited = TEMPLATE.replacen(before, after, 1);
        assert_ne!(edited, TEMPLATE, "template.yaml must contain {before}");
        let message = format!("{:#}", Template::parse(&edited).unwrap_err());
        assert!(message.contains(named), "{message}");
    }
}
