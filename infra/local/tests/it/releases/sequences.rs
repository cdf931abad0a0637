//! Random sequences of steps: versions are 1 to n, and the project refers to the one active
//! release.

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{assert_consistent, report};
use crate::harness::TestServer;

#[derive(Debug, Clone)]
enum Step {
    Deploy {
        activate: bool,
    },
    /// A deploy whose build is pending.
    Pend,
    Rollback {
        version: u64,
    },
    Report {
        version: u64,
        status: &'static str,
        image: Option<u8>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let status = prop::sample::select(vec!["pending", "building", "ready", "active", "superseded", "failed"]);
    prop_oneof![
        3 => any::<bool>().prop_map(|activate| Step::Deploy { activate }),
        1 => Just(Step::Pend),
        3 => (1..8_u64).prop_map(|version| Step::Rollback { version }),
        3 => (1..8_u64, status, any::<Option<u8>>())
            .prop_map(|(version, status, image)| Step::Report { version, status, image }),
    ]
}

/// A minimal model of the contract: the status of each release by version.
#[derive(Default)]
struct Model {
    statuses: Vec<&'static str>,
}

impl Model {
    fn status(&self, version: u64) -> Option<&'static str> {
        self.statuses.get(usize::try_from(version).unwrap() - 1).copied()
    }

    fn set(&mut self, version: u64, status: &'static str) {
        self.statuses[usize::try_from(version).unwrap() - 1] = status;
    }

    fn supersede(&mut self) {
        self.statuses.iter_mut().filter(|status| **status == "active").for_each(|status| *status = "superseded");
    }

    /// Applies a step and returns the status of its response.
    fn apply(&mut self, step: &Step) -> u16 {
        match *step {
            Step::Deploy { activate } => {
                if activate {
                    self.supersede();
                }
                self.statuses.push(if activate { "active" } else { "ready" });
                201
            }
            Step::Pend => {
                self.statuses.push("pending");
                201
            }
            Step::Rollback { version } => match self.status(version) {
                None => 404,
                Some("pending" | "building" | "failed") => 409,
                Some(_) => {
                    self.supersede();
                    self.set(version, "active");
                    200
                }
            },
            Step::Report { version, status, .. } => match (self.status(version), status) {
                (None, _) => 404,
                (Some(from), to) if from == to => 200,
                (Some("active" | "superseded"), "ready") => 200,
                (Some("pending"), "building" | "ready" | "failed") | (Some("building"), "ready" | "failed") => {
                    self.set(version, status);
                    200
                }
                _ => 409,
            },
        }
    }
}

/// Sends a step to the server and returns the status of its response.
async fn act(server: &TestServer, slug: &str, made: &mut Vec<Value>, step: &Step) -> u16 {
    let path = |verb: &str| format!("/v1/agent_projects/{slug}/{verb}");
    match step {
        Step::Deploy { activate } => {
            let body = json!({ "commit_sha": "abcdef0", "activate": activate });
            let reply = server.post(&path("deploys"), body).send().await;
            made.push(reply.json["release"].clone());
            reply.status.as_u16()
        }
        Step::Pend => {
            let release = server.deploy(slug, json!({ "commit_sha": "abcdef0", "activate": false })).await;
            server.set_build(&release, "pending").await;
            made.push(release);
            201
        }
        Step::Rollback { version } => {
            server.post(&path("rollback"), json!({ "version": version })).send().await.status.as_u16()
        }
        Step::Report { version, status, image } => {
            let nothing = json!({ "id": 1 });
            let release = made.get(usize::try_from(*version).unwrap() - 1).unwrap_or(&nothing);
            let image_ref = image.map(|tag| format!("app:{tag}"));
            let body = json!({ "status": status, "image_ref": image_ref });
            report(server, release, body).send().await.status.as_u16()
        }
    }
}

#[test]
fn random_steps_match_the_model() {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(TestServer::start());
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let project = std::cell::Cell::new(0);
    let outcome = runner.run(&vec(step(), 1..16), |steps| {
        project.set(project.get() + 1);
        let slug = format!("site-{}", project.get());
        runtime.block_on(async {
            server.project(&slug).await;
            let (mut model, mut made) = (Model::default(), Vec::new());
            for step in &steps {
                let answer = act(&server, &slug, &mut made, step).await;
                prop_assert_eq!(answer, model.apply(step), "{:?}", step);
            }
            let list = server.get(&format!("/v1/agent_projects/{slug}/releases?limit=100")).send().await.expect(200);
            let shown = list["releases"].as_array().unwrap().iter().rev();
            let shown: Vec<_> = shown.map(|release| (release["version"].clone(), release["status"].clone())).collect();
            let expected: Vec<_> =
                (1..).zip(&model.statuses).map(|(version, status)| (json!(version), json!(status))).collect();
            prop_assert_eq!(shown, expected);
            let active =
                (1..).zip(&model.statuses).find(|(_, status)| **status == "active").map(|(version, _)| version);
            let project = server.get(&format!("/v1/agent_projects/{slug}")).send().await.expect(200);
            prop_assert_eq!(&project["agent_project"]["current_version"], &json!(active));
            Ok(())
        })
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    runtime.block_on(assert_consistent(&server));
}
