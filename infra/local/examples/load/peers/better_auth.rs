use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use karta_shared::entropy::{OsEntropy, uuid};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    KEYS, PAGE, PAGES_BEFORE, REVOKED, altered,
    measure::{Probe, Subject},
};
use crate::{client::request_with, server::Server};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../peers");

pub(super) struct BetterAuth {
    database: PathBuf,
    secret: String,
    cookie: String,
    revoked: Vec<Key>,
    usable: Vec<Key>,
}

/// The output of `seed.mjs`.
#[derive(Deserialize)]
struct Seeds {
    cookie: String,
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    id: String,
    key: String,
}

impl BetterAuth {
    pub(super) fn seed(database: &Path) -> Result<Self> {
        let secret = format!("{}{}", uuid(&OsEntropy), uuid(&OsEntropy));
        let made = node("seed.mjs", &secret)
            .arg(database)
            .args([KEYS, REVOKED].map(|count| count.to_string()))
            .output()
            .context("run npm ci in infra/peers first")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let Seeds { cookie, keys: mut revoked } = serde_json::from_slice(&made.stdout)?;
        let usable = revoked.split_off(REVOKED);
        Ok(Self { database: database.to_owned(), secret, cookie, revoked, usable })
    }

    /// Serves with the default limit: a list reaches only the first 100 keys.
    pub(super) fn serve(&self) -> Result<Server> {
        self.start(&[])
    }

    pub(super) fn serve_with_all_keys(&self) -> Result<Server> {
        self.start(&[KEYS.to_string()])
    }

    fn start(&self, arguments: &[String]) -> Result<Server> {
        let mut command = node("serve.mjs", &self.secret);
        command.arg(&self.database).args(arguments);
        Server::start(command)
    }

    pub(super) fn start_and_verify(&self) -> Result<(Server, Probe)> {
        Ok((self.serve()?, self.verification(&self.usable[0])))
    }

    pub(super) fn verifies(&self, server: &Server) -> Subject {
        Subject::new(server, self.usable.iter().map(|key| self.verification(key)))
    }

    pub(super) fn rejects_junk(&self, server: &Server) -> Subject {
        Subject::new(server, self.usable.iter().map(|key| self.rejection(&altered(&key.key))))
    }

    pub(super) fn rejects_disabled(&self, server: &Server) -> Subject {
        Subject::new(server, self.revoked.iter().map(|key| self.rejection(&key.key)))
    }

    pub(super) fn first_page(&self, server: &Server) -> Subject {
        Subject::new(server, [self.page(0)])
    }

    pub(super) fn later_page(&self, server: &Server) -> Subject {
        Subject::new(server, [self.page(PAGE * PAGES_BEFORE)])
    }

    pub(super) fn creates(&self, server: &Server) -> Subject {
        let body = json!({ "name": "peers" }).to_string();
        Subject::new(server, [Probe::new(self.request("POST", "/keys", &body), r#","key":""#)])
    }

    fn request(&self, method: &str, path: &str, body: &str) -> String {
        request_with(method, path, &format!("Cookie: {}", self.cookie), body)
    }

    fn verification(&self, key: &Key) -> Probe {
        Probe::new(self.verify(&key.key), format!(r#""id":"{}""#, key.id))
    }

    fn rejection(&self, key: &str) -> Probe {
        Probe::new(self.verify(key), r#"{"valid":false,"#)
    }

    fn verify(&self, key: &str) -> String {
        self.request("POST", "/verify", &json!({ "key": key }).to_string())
    }

    fn page(&self, offset: usize) -> Probe {
        let path = format!("/keys?limit={PAGE}&offset={offset}");
        Probe { times: PAGE, ..Probe::new(self.request("GET", &path, ""), r#""prefix":"#) }
    }
}

pub(super) fn fixed() -> Result<Server> {
    Server::start(node("fixed.mjs", ""))
}

pub(super) fn versions() -> Result<String> {
    let package: Value = serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/package.json"))?)?;
    let version = |name: &str| package["dependencies"][name].as_str().map(str::to_owned).context("no version");
    let node = Command::new(binary()).arg("--version").output()?;
    let node = String::from_utf8(node.stdout)?;
    let (plugin, driver) = (version("@better-auth/api-key")?, version("better-sqlite3")?);
    Ok(format!("@better-auth/api-key {plugin}, better-sqlite3 {driver}, Node.js {}", node.trim()))
}

fn node(script: &str, secret: &str) -> Command {
    let mut command = Command::new(binary());
    command.arg(format!("{FOLDER}/{script}")).env("NODE_ENV", "production").env("BETTER_AUTH_SECRET", secret);
    command
}

fn binary() -> String {
    format!("{FOLDER}/node_modules/.bin/node")
}
