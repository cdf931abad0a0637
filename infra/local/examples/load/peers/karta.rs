use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    CACHED, KEYS, PAGE, PAGES_BEFORE, REVOKED, altered,
    measure::{Question, Subject},
};
use crate::{
    client::{once, request},
    server::Server,
};

pub(super) struct Karta {
    pub(super) runner: Server,
    admin: String,
    service: String,
    revoked: Vec<Key>,
    usable: Vec<Key>,
}

pub(super) struct Key {
    id: u64,
    secret: String,
}

impl Karta {
    /// Seeds under bcrypt's lowest cost, which only a key's first validation knows of; serves, and makes keys, under the real one.
    pub(super) async fn seed(binary: &Path, data: &Path) -> Result<Self> {
        let cheap = Server::karta(binary, data, 4)?;
        let admin = cheap.secret("api_key")?;
        let mut revoked = Vec::new();
        for _ in 0..KEYS {
            revoked.push(create(&cheap, &admin).await?);
        }
        let usable = revoked.split_off(REVOKED);
        for key in &revoked {
            once(&cheap.address(), &request("DELETE", &format!("/v1/api_keys/{}", key.id), &admin, "")).await?;
        }
        cheap.stop()?;
        let runner = serve(binary, data)?;
        let service = runner.secret("service_token")?;
        Ok(Self { runner, admin, service, revoked, usable })
    }

    pub(super) fn verifies(&self) -> Subject {
        self.asked(self.usable.iter().map(|key| validation(&self.service, key)))
    }

    /// Of keys in use: over more of them than are asked for within 3 s, no cache would help.
    pub(super) fn whoami(&self) -> Subject {
        self.asked(
            self.usable[..CACHED]
                .iter()
                .map(|key| Question::new(request("GET", "/v1/whoami", &key.secret, ""), key.named())),
        )
    }

    /// Tokens of the right shape with a wrong tag.
    pub(super) fn refuses_junk(&self) -> Subject {
        self.asked(self.usable.iter().map(|key| self.refusal(&altered(&key.secret))))
    }

    pub(super) fn refuses_revoked(&self) -> Subject {
        self.asked(self.revoked.iter().map(|key| self.refusal(&key.secret)))
    }

    pub(super) fn first_page(&self) -> Subject {
        self.asked([self.page("")])
    }

    pub(super) async fn page_further_on(&self) -> Result<Subject> {
        let mut cursor = String::new();
        for _ in 0..PAGES_BEFORE {
            let page = once(&self.runner.address(), &self.page(&cursor).request).await?;
            cursor = format!("&cursor={}", page["next_cursor"].as_str().context("no further page")?);
        }
        Ok(self.asked([self.page(&cursor)]))
    }

    pub(super) fn creates(&self) -> Subject {
        self.asked([Question::new(creation(&self.admin), r#""secret":"kt_live_"#)])
    }

    /// One whose digest is of the real cost.
    pub(super) async fn new_key(&self) -> Result<Key> {
        create(&self.runner, &self.admin).await
    }

    fn asked(&self, questions: impl IntoIterator<Item = Question>) -> Subject {
        Subject::new(&self.runner, questions)
    }

    fn refusal(&self, token: &str) -> Question {
        Question::new(validate(&self.service, token), r#"{"valid":false,"#)
    }

    fn page(&self, further: &str) -> Question {
        let path = format!("/v1/api_keys?limit={PAGE}{further}");
        Question { times: PAGE, ..Question::new(request("GET", &path, &self.admin, ""), r#""prefix":"#) }
    }
}

impl Key {
    /// How an answer names it.
    fn named(&self) -> String {
        format!(r#""api_key_id":{},"#, self.id)
    }
}

/// A start over what is there, and a question that reads the store and needs no bcrypt.
pub(super) fn start_and_read(binary: &Path, data: &Path) -> Result<(Server, Question)> {
    let runner = serve(binary, data)?;
    let id = runner.number("organization_id")?;
    let path = format!("/v1/internal/organizations/{id}");
    let read = request("GET", &path, &runner.secret("service_token")?, "");
    Ok((runner, Question::new(read, format!(r#"{{"organization":{{"id":{id},"#))))
}

pub(super) fn start_and_verify(binary: &Path, data: &Path, key: &Key) -> Result<(Server, Question)> {
    let runner = serve(binary, data)?;
    let question = validation(&runner.secret("service_token")?, key);
    Ok((runner, question))
}

fn serve(binary: &Path, data: &Path) -> Result<Server> {
    Server::karta(binary, data, 12)
}

fn validation(service: &str, key: &Key) -> Question {
    Question::new(validate(service, &key.secret), key.named())
}

fn validate(service: &str, token: &str) -> String {
    request("POST", "/v1/internal/keys/validate", service, &json!({ "key": token }).to_string())
}

fn creation(admin: &str) -> String {
    request("POST", "/v1/api_keys", admin, &json!({ "name": "peers", "scopes": ["read"] }).to_string())
}

async fn create(runner: &Server, admin: &str) -> Result<Key> {
    let created: Value = once(&runner.address(), &creation(admin)).await?;
    let id = created["api_key"]["id"].as_u64().context("no id")?;
    Ok(Key { id, secret: created["secret"].as_str().context("no secret")?.to_owned() })
}
