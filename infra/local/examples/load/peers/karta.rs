use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    CACHED, KEYS, PAGE, PAGES_BEFORE, REVOKED, altered,
    measure::{Probe, Subject},
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
    /// Seeds keys with the lowest bcrypt cost, which affects only their first validations, and
    /// serves with the real cost.
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
        self.subject(self.usable.iter().map(|key| validation(&self.service, key)))
    }

    /// Only `CACHED` keys, so that each is requested again within the 3 s of the gateway's cache.
    pub(super) fn whoami(&self) -> Subject {
        self.subject(
            self.usable[..CACHED]
                .iter()
                .map(|key| Probe::new(request("GET", "/v1/whoami", &key.secret, ""), key.id_field())),
        )
    }

    pub(super) fn rejects_junk(&self) -> Subject {
        self.subject(self.usable.iter().map(|key| self.rejection(&altered(&key.secret))))
    }

    pub(super) fn rejects_revoked(&self) -> Subject {
        self.subject(self.revoked.iter().map(|key| self.rejection(&key.secret)))
    }

    pub(super) fn first_page(&self) -> Subject {
        self.subject([self.page("")])
    }

    pub(super) async fn later_page(&self) -> Result<Subject> {
        let mut cursor = String::new();
        for _ in 0..PAGES_BEFORE {
            let page = once(&self.runner.address(), &self.page(&cursor).request).await?;
            cursor = format!("&cursor={}", page["next_cursor"].as_str().context("no next page")?);
        }
        Ok(self.subject([self.page(&cursor)]))
    }

    pub(super) fn creates(&self) -> Subject {
        self.subject([Probe::new(creation(&self.admin), r#""secret":"kt_live_"#)])
    }

    /// Creates a key whose digest has the real bcrypt cost.
    pub(super) async fn new_key(&self) -> Result<Key> {
        create(&self.runner, &self.admin).await
    }

    fn subject(&self, probes: impl IntoIterator<Item = Probe>) -> Subject {
        Subject::new(&self.runner, probes)
    }

    fn rejection(&self, token: &str) -> Probe {
        Probe::new(validate(&self.service, token), r#"{"valid":false,"#)
    }

    fn page(&self, cursor: &str) -> Probe {
        let path = format!("/v1/api_keys?limit={PAGE}{cursor}");
        Probe { times: PAGE, ..Probe::new(request("GET", &path, &self.admin, ""), r#""prefix":"#) }
    }
}

impl Key {
    fn id_field(&self) -> String {
        format!(r#""api_key_id":{},"#, self.id)
    }
}

/// Starts a server over the existing data, with a probe that reads the store without bcrypt.
pub(super) fn start_and_read(binary: &Path, data: &Path) -> Result<(Server, Probe)> {
    let runner = serve(binary, data)?;
    let id = runner.number("organization_id")?;
    let path = format!("/v1/internal/organizations/{id}");
    let read = request("GET", &path, &runner.secret("service_token")?, "");
    Ok((runner, Probe::new(read, format!(r#"{{"organization":{{"id":{id},"#))))
}

pub(super) fn start_and_verify(binary: &Path, data: &Path, key: &Key) -> Result<(Server, Probe)> {
    let runner = serve(binary, data)?;
    let probe = validation(&runner.secret("service_token")?, key);
    Ok((runner, probe))
}

fn serve(binary: &Path, data: &Path) -> Result<Server> {
    Server::karta(binary, data, 12)
}

fn validation(service: &str, key: &Key) -> Probe {
    Probe::new(validate(service, &key.secret), key.id_field())
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
