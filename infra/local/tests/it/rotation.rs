//! Key rings that Secrets Manager rotates. Tokens and sealed values stay valid.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::Method;
use karta_shared::{
    App,
    clock::{Clock, ManualClock},
    config::{Ring, Secret, SecretSource, Secrets},
    entropy::OsEntropy,
    worker::{Wake, Worker},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use worker_model_keys_reseal::ModelKeysReseal;
use worker_secrets_rotation::{RotationStep, SecretsRotation};

use crate::{
    harness::TestServer,
    internal::{Plane, request},
    model_keys::{active_of, provider_key},
    secrets_manager::{SecretsManager, step_request},
};

const SIGNING: &str = "session-signing";
const SEALING: &str = "sealing-byok";
const MINUTE: Duration = Duration::from_mins(1);

/// A server whose secrets are in a fake Secrets Manager, stored by name.
struct Stack {
    server: TestServer,
    clock: Arc<ManualClock>,
    manager: SecretsManager,
    rotation: SecretsRotation,
    ids: HashMap<Secret, String>,
}

impl Stack {
    async fn start() -> Self {
        let (server, clock) = TestServer::start_at_noon().await;
        let manager = SecretsManager::start(Arc::clone(&clock) as Arc<dyn Clock>).await;
        let SecretSource::Fixed(texts) = server.runner.secrets.source() else { panic!("a local run's secrets") };
        let mut ids = HashMap::new();
        for (secret, text) in texts {
            manager.put(secret.name(), "by hand", text.expose_secret());
            ids.insert(secret, secret.name().to_owned());
        }
        let (client, at) = (manager.rotating.clone(), Arc::clone(&clock) as Arc<dyn Clock>);
        let rotation = SecretsRotation::new(client, ids.clone(), at, Arc::new(OsEntropy));
        Self { server, clock, manager, rotation, ids }
    }

    /// Returns the app of a new process that has fetched nothing yet.
    fn process(&self) -> App {
        let mut app = self.server.runner.app.clone();
        let source = SecretSource::Manager { client: self.manager.client.clone(), ids: self.ids.clone() };
        app.secrets = Arc::new(Secrets::new(source, Arc::clone(&app.clock)));
        app
    }

    async fn rotate(&self, secret: &str, version: &str) -> Result<(), String> {
        self.manager.rotate(&self.rotation, secret, version).await.map_err(|fault| fault.to_string())
    }

    async fn mint(&self, plane: &Plane) -> String {
        let request = request(&Method::POST, "/v1/agent_projects/app/session_tokens", Some(&self.server.admin));
        let body = json!({ "ttl_seconds": 3_600 }).to_string();
        let minted = plane.send("127.0.0.1", "localhost", request, body).await.expect(201);
        minted["token"].as_str().unwrap().to_owned()
    }
}

async fn accepts(plane: &Plane, token: &str) -> bool {
    let request = request(&Method::GET, "/v1/projects/app/whoami", Some(token));
    let answer = plane.send("127.0.0.1", "localhost", request, "").await;
    assert!([200, 401].contains(&answer.status.as_u16()), "{}", answer.text);
    answer.status == 200
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_stay_valid_across_rotations_in_every_process() {
    let stack = Stack::start().await;
    let project = json!({ "slug": "app", "name": "App" });
    stack.server.post("/v1/agent_projects", project).send().await.expect(201);
    let processes = [stack.process(), stack.process()];
    let [early, late] = [Plane::new(&processes[0]), Plane::new(&processes[1])];
    let mut tokens = vec![stack.mint(&early).await];
    // A process caches the ring for five minutes.
    stack.rotate(SIGNING, "1").await.unwrap();
    assert_eq!(stack.manager.kids(SIGNING).len(), 2);
    tokens.extend([stack.mint(&early).await, stack.mint(&late).await]);

    stack.clock.advance(9 * MINUTE);
    let refused = stack.rotate(SIGNING, "2").await.unwrap_err();
    assert!(refused.contains("not known to every process yet"), "{refused}");
    stack.clock.advance(MINUTE);
    processes[0].secrets.ring(Ring::SessionSigning).await.unwrap();
    stack.rotate(SIGNING, "2").await.unwrap();
    let [promoted, first] = <[String; 2]>::try_from(stack.manager.kids(SIGNING)).unwrap();
    assert_eq!((first.as_str(), promoted.len()), ("k1", 18));
    let newest = Plane::new(&stack.process());
    tokens.extend([stack.mint(&early).await, stack.mint(&late).await, stack.mint(&newest).await]);
    for token in &tokens {
        for plane in [&early, &late, &newest] {
            assert!(accepts(plane, token).await);
        }
    }

    // The last token from before the promotion, a moment before it expires.
    stack.clock.advance(Duration::from_secs(3_599));
    assert!(accepts(&newest, &tokens[3]).await);
    stack.rotate(SIGNING, "3").await.unwrap();
    assert_eq!(stack.manager.kids(SIGNING).len(), 3, "too early to drop the replaced key");
    assert!(accepts(&Plane::new(&stack.process()), &tokens[3]).await);

    stack.clock.advance(10 * MINUTE);
    stack.rotate(SIGNING, "4").await.unwrap();
    stack.clock.advance(126 * MINUTE);
    stack.rotate(SIGNING, "5").await.unwrap();
    let kids = stack.manager.kids(SIGNING);
    assert_eq!(kids.len(), 2, "the replaced key was dropped and a new one was added: {kids:?}");
    assert!(!kids.contains(&first) && !kids.contains(&promoted), "{kids:?}");
    let newest = Plane::new(&stack.process());
    let token = stack.mint(&newest).await;
    assert!(accepts(&early, &token).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_keys_survive_rotations_and_are_resealed() {
    let stack = Stack::start().await;
    let (before, key) = (stack.process(), provider_key("sk-"));
    let create = |app: &App| {
        let request = request(&Method::POST, "/v1/model_keys", Some(&stack.server.admin));
        let (plane, body) = (Plane::new(app), json!({ "provider": "openai", "key": key }).to_string());
        async move { plane.send("127.0.0.1", "localhost", request, body).await.expect(201) }
    };
    let opens = async |app: &App| active_of(app, &stack.server, "openai").await.expect(200)["plaintext"] == *key;
    create(&before).await;
    stack.rotate(SEALING, "1").await.unwrap();
    assert!(opens(&before).await && opens(&stack.process()).await);

    stack.clock.advance(10 * MINUTE);
    stack.rotate(SEALING, "2").await.unwrap();
    let kids = stack.manager.kids(SEALING);
    let sealed = || async {
        let items = stack.server.items(&format!("MKS#{}", stack.server.organization_id)).await;
        items[0]["kid"]["S"].as_str().unwrap().to_owned()
    };
    assert_eq!((sealed().await.as_str(), kids[1].as_str()), ("k1", "k1"));
    ModelKeysReseal::new(stack.process()).work(&Wake::Sweep).await.unwrap();
    assert_eq!(sealed().await, kids[0]);
    // A process that does not know the new key fetches it.
    assert!(opens(&before).await && opens(&stack.process()).await);

    stack.clock.advance(Duration::from_hours(24 * 30));
    stack.rotate(SEALING, "3").await.unwrap();
    assert!(stack.manager.kids(SEALING).contains(&"k1".to_owned()), "a rotation drops no sealing key");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_stay_signed_across_rotations() {
    let stack = Stack::start().await;
    let before = stack.process();
    let plane = Plane::new(&before);
    let send = async |path: &str, body: Value| {
        let request = request(&Method::POST, path, Some(&stack.server.admin));
        plane.send("127.0.0.1", "localhost", request, body.to_string()).await
    };
    let body = json!({ "url": "https://hooks.example.com/", "event_types": ["*"] });
    let made = send("/v1/webhook_endpoints", body).await.expect(201);
    for version in ["1", "2"] {
        stack.rotate("sealing-webhooks", version).await.unwrap();
        stack.clock.advance(10 * MINUTE);
        let path = format!("/v1/webhook_endpoints/{}/rotate_secret", made["webhook_endpoint"]["id"]);
        send(&path, json!({ "grace_seconds": 0 })).await.expect(201);
    }
    assert!(stack.manager.kids("sealing-webhooks").contains(&"k1".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn manual_change_during_a_rotation_is_kept() {
    let stack = Stack::start().await;
    let mut ring = stack.manager.current(SEALING);
    stack.manager.begin(SEALING, "1");
    stack.rotation.rotate(&step_request(RotationStep::CreateSecret, SEALING, "1")).await.unwrap();
    stack.manager.note_secrets(SEALING);
    ring["k2"] = json!("2".repeat(64));
    stack.manager.put(SEALING, "2", &ring.to_string());
    for step in [RotationStep::TestSecret, RotationStep::FinishSecret] {
        let refused = stack.rotation.rotate(&step_request(step, SEALING, "1")).await.unwrap_err().to_string();
        assert!(refused.contains("changed after the pending version was created"), "{refused}");
    }
    assert_eq!(stack.manager.current(SEALING), ring);
    stack.rotate(SEALING, "3").await.unwrap();
    assert_eq!(stack.manager.kids(SEALING).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn rewriting_the_same_ring_discards_pending_rotation() {
    let stack = Stack::start().await;
    stack.rotate(SIGNING, "1").await.unwrap();
    stack.clock.advance(10 * MINUTE);
    stack.manager.begin(SIGNING, "2");
    stack.rotation.rotate(&step_request(RotationStep::CreateSecret, SIGNING, "2")).await.unwrap();
    stack.clock.advance(MINUTE);
    stack.manager.put(SIGNING, "by hand again", &stack.manager.current(SIGNING).to_string());
    for step in [RotationStep::TestSecret, RotationStep::FinishSecret] {
        let refused = stack.rotation.rotate(&step_request(step, SIGNING, "2")).await.unwrap_err().to_string();
        assert!(refused.contains("changed after the pending version was created"), "{refused}");
    }
    assert_eq!(stack.manager.kids(SIGNING)[0], "k1");
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_steps_out_of_order_are_refused() {
    let stack = Stack::start().await;
    let before: Vec<Value> = [SIGNING, SEALING].map(|secret| stack.manager.current(secret)).into();
    let refused = async |step, secret: &str, version: &str| {
        stack.rotation.rotate(&step_request(step, secret, version)).await.unwrap_err().to_string()
    };
    assert!(refused(RotationStep::CreateSecret, "key-tag", "1").await.contains("is not a rotated ring"));
    assert!(refused(RotationStep::CreateSecret, "cursor", "1").await.contains("is not a rotated ring"));
    assert!(refused(RotationStep::CreateSecret, SIGNING, "1").await.contains("has no version 1"));
    stack.manager.begin(SIGNING, "1");
    for step in [RotationStep::TestSecret, RotationStep::FinishSecret] {
        assert!(refused(step, SIGNING, "1").await.contains("version 1 has no value"));
    }
    // A newer version is pending instead of this version.
    stack.rotation.rotate(&step_request(RotationStep::CreateSecret, SIGNING, "1")).await.unwrap();
    stack.manager.note_secrets(SIGNING);
    stack.manager.begin(SIGNING, "2");
    assert!(refused(RotationStep::FinishSecret, SIGNING, "1").await.contains("has no version 1"));
    assert_eq!([SIGNING, SEALING].map(|secret| stack.manager.current(secret)).to_vec(), before);
    // Finishing a version that is already current succeeds.
    stack.rotation.rotate(&step_request(RotationStep::FinishSecret, SIGNING, "by hand")).await.unwrap();
}
