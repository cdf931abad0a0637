//! Measures the validation of credentials without the network. The SDK is real, but its HTTP client
//! responds from memory.
//!
//! `validate/known proof` minus `validate/bare SDK read` is Karta's own work. `first
//! proof/validation` divided by `first proof/bare bcrypt` is the overhead of a first validation.

#![expect(clippy::unwrap_used, reason = "a bench without its setup measures nothing")]

use std::{collections::HashMap, hint::black_box, sync::Arc, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::{
    Client,
    config::{Credentials, SharedCredentialsProvider},
    types::{AttributeValue, KeysAndAttributes},
};
use aws_smithy_runtime_api::client::{
    http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    orchestrator::{HttpRequest, HttpResponse},
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use criterion::{Criterion, criterion_group, criterion_main};
use karta_shared::{
    App,
    auth::{self, BcryptPool, SessionClaims, SessionScope, Validator, Verdict},
    clock::{Clock, SystemClock},
    config::{Config, Ring, SecretSource},
    domain::{
        AllowedCidrs, ApiKey, ApiKeySettings, ApiKeyToken, Id, Keyring, Metadata, Name, Organization, ScopeSet, Slug,
        Timestamp,
    },
    entropy::OsEntropy,
    store::{Credential, Digest, table::Tables},
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const RING: &str = r#"{"current":"k1","k1":"0123456789abcdef0123456789abcdef0123456789abcdef"}"#;

/// An HTTP client that responds from memory.
#[derive(Debug, Clone)]
struct Canned {
    query: String,
    batch: String,
}

impl HttpConnector for Canned {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let queried = request.headers().get("x-amz-target").is_some_and(|operation| operation.ends_with(".Query"));
        let body = if queried { self.query.clone() } else { self.batch.clone() };
        let answer = http::Response::new(SdkBody::from(body));
        HttpConnectorFuture::ready(Ok(HttpResponse::try_from(answer).unwrap()))
    }
}

impl HttpClient for Canned {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

/// A stored key, and the app and SDK whose HTTP client returns it.
struct Stored {
    token: ApiKeyToken,
    digest: Digest,
    app: App,
    sdk: SdkConfig,
}

fn stored(runtime: &Runtime, bcrypt_cost: u32) -> Stored {
    let (now, ring) = (SystemClock.now(), ring());
    let token = ApiKeyToken::mint(&ring, &OsEntropy);
    let digest = runtime.block_on(BcryptPool::new(bcrypt_cost).digest(&token, &OsEntropy)).unwrap();
    let organization = Organization::new(Id::draw(now, &OsEntropy), slug("acme"), name("Acme"), now);
    let key = key(&token, now);
    let credential =
        Credential { organization_id: organization.id, api_key_id: key.id, lineage_id: key.id, digest: digest.clone() };
    let query = json!({ "Count": 1, "Items": [item(&credential, "KP#", "K#")] }).to_string();
    let organization_item = item(&organization, &format!("ORG#{}", organization.id), "META");
    let key_item = item(&key, &format!("KEY#{}", organization.id), &format!("{:016}", key.id.get()));
    let batch = json!({ "Responses": { "karta": [organization_item, key_item] } }).to_string();
    let sdk = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new("bench", "bench", None, None, "bench")))
        .http_client(Canned { query, batch })
        .build();
    let tables = Tables::local();
    let rings = HashMap::from([(Ring::KeyTag.into(), RING.into()), (Ring::SessionSigning.into(), RING.into())]);
    let config = Config::local(tables, Some(bcrypt_cost)).unwrap();
    let app = App::new(config, &sdk, SecretSource::Fixed(rings), Arc::new(SystemClock), Arc::new(OsEntropy));
    Stored { token, digest, app, sdk }
}

fn key(token: &ApiKeyToken, now: Timestamp) -> ApiKey {
    let settings = ApiKeySettings {
        name: name("ci-runner"),
        scopes: ScopeSet::ALL,
        expires_at: None,
        allowed_cidrs: AllowedCidrs::default(),
        budget: None,
        metadata: Metadata::default(),
    };
    ApiKey::new(Id::draw(now, &OsEntropy), token.prefix(), settings, None, now)
}

fn item<T: Serialize>(value: &T, pk: &str, sk: &str) -> Value {
    let item: serde_dynamo::Item = serde_dynamo::to_item(value).unwrap();
    let mut item = serde_json::to_value(item).unwrap();
    item["pk"] = json!({ "S": pk });
    item["sk"] = json!({ "S": sk });
    item
}

fn ring() -> Keyring {
    serde_json::from_str(RING).unwrap()
}

fn name(text: &str) -> Name {
    Name::try_from(text.to_owned()).unwrap()
}

fn slug(text: &str) -> Slug {
    Slug::try_from(text.to_owned()).unwrap()
}

fn refusal(bench: &mut Criterion) {
    let ring = ring();
    let mut forged = ApiKeyToken::mint(&ring, &OsEntropy).expose().to_owned();
    let last = if forged.ends_with('a') { "b" } else { "a" };
    forged.replace_range(39.., last);
    bench.bench_function("reject a wrong tag", |bench| {
        bench.iter(|| ApiKeyToken::parse(black_box(&forged), &ring).is_err());
    });
}

fn session_token(bench: &mut Criterion) {
    let (ring, now) = (ring(), 1_795_000_000);
    let id = Id::draw(SystemClock.now(), &OsEntropy);
    let claims = SessionClaims {
        org_id: id,
        org_slug: "acme".to_owned(),
        project_id: id,
        project_slug: "my-app".to_owned(),
        scope: SessionScope::Session,
        budget_ok: true,
        iat: now,
        exp: now + 900,
        jti: "0123456789abcdef0123456789abcdef".to_owned(),
        akid: id,
        sub: Some("user_1".to_owned()),
    };
    let token = auth::mint(&ring, &claims);
    bench.bench_function("verify a session token", |bench| {
        bench.iter(|| auth::verify(&ring, black_box(token.expose()), now).is_ok());
    });
}

fn known_proof(bench: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let stored = stored(&runtime, 4);
    let validator = Validator::new(stored.app.clone());
    let client = Client::new(&stored.sdk);
    let item_key = |pk: &str| {
        let attribute = |text: &str| AttributeValue::S(text.to_owned());
        HashMap::from([("pk".to_owned(), attribute(pk)), ("sk".to_owned(), attribute("META"))])
    };
    let mut group = bench.benchmark_group("validate");
    group.bench_function("known proof", |bench| {
        bench.to_async(&runtime).iter(|| async {
            let verdict = validator.validate(stored.token.expose()).await.unwrap();
            assert!(matches!(verdict, Verdict::Valid(_)));
        });
    });
    group.bench_function("bare SDK read", |bench| {
        bench.to_async(&runtime).iter(|| async {
            let keys = KeysAndAttributes::builder().keys(item_key("ORG#")).keys(item_key("KEY#")).consistent_read(true);
            client.batch_get_item().request_items("karta", keys.build().unwrap()).send().await.unwrap()
        });
    });
    group.finish();
}

fn first_proof(bench: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let stored = stored(&runtime, 12);
    let mut group = bench.benchmark_group("first proof");
    group.sample_size(20).measurement_time(Duration::from_secs(12));
    group.bench_function("validation", |bench| {
        bench.to_async(&runtime).iter(|| async {
            let verdict = Validator::new(stored.app.clone()).validate(stored.token.expose()).await.unwrap();
            assert!(matches!(verdict, Verdict::Valid(_)));
        });
    });
    group.bench_function("bare bcrypt", |bench| {
        bench.iter(|| assert!(bcrypt::verify(stored.token.expose(), stored.digest.as_str()).unwrap()));
    });
    group.finish();
}

criterion_group!(benches, refusal, session_token, known_proof, first_proof);
criterion_main!(benches);
