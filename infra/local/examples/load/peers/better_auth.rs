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
    measure::{Question, Subject},
};
use crate::{client::request_with, server::Server};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../peers");

/// Its database, seeded.
pub(super) struct BetterAuth {
    database: PathBuf,
    secret: String,
    cookie: String,
    revoked: Vec<Key>,
    usable: Vec<Key>,
}

/// What `seed.mjs` prints.
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
            .context("npm ci in infra/peers first")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let Seeds { cookie, keys: mut revoked } = serde_json::from_slice(&made.stdout)?;
        let usable = revoked.split_off(REVOKED);
        Ok(Self { database: database.to_owned(), secret, cookie, revoked, usable })
    }

    /// Under its own default, by which a list reaches the first 100 keys and no more.
    pub(super) fn serve(&self) -> Result<Server> {
        self.start(&[])
    }

    pub(super) fn serve_reaching_all(&self) -> Result<Server> {
        self.start(&[KEYS.to_string()])
    }

    fn start(&self, arguments: &[String]) -> Result<Server> {
        let mut command = node("serve.mjs", &self.secret);
        command.arg(&self.database).args(arguments);
        Server::start(command)
    }

    pub(super) fn start_and_verify(&self) -> Result<(Server, Question)> {
        Ok((self.serve()?, self.verification(&self.usable[0])))
    }

    pub(super) fn verifies(&self, server: &Server) -> Subject {
        Subject::new(server, self.usable.iter().map(|key| self.verification(key)))
    }

    pub(super) fn refuses_junk(&self, server: &Server) -> Subject {
        Subject::new(server, self.usable.iter().map(|key| self.refusal(&altered(&key.key))))
    }

    pub(super) fn refuses_disabled(&self, server: &Server) -> Subject {
        Subject::new(server, self.revoked.iter().map(|key| self.refusal(&key.key)))
    }

    pub(super) fn first_page(&self, server: &Server) -> Subject {
        Subject::new(server, [self.page(0)])
    }

    pub(super) fn page_further_on(&self, server: &Server) -> Subject {
        Subject::new(server, [self.page(PAGE * PAGES_BEFORE)])
    }

    pub(super) fn creates(&self, server: &Server) -> Subject {
        let body = json!({ "name": "peers" }).to_string();
        Subject::new(server, [Question::new(self.request("POST", "/keys", &body), r#","key":""#)])
    }

    fn request(&self, method: &str, path: &str, body: &str) -> String {
        request_with(method, path, &format!("Cookie: {}", self.cookie), body)
    }

    fn verification(&self, key: &Key) -> Question {
        Question::new(self.verify(&key.key), format!(r#""id":"{}""#, key.id))
    }

    fn refusal(&self, key: &str) -> Question {
        Question::new(self.verify(key), r#"{"valid":false,"#)
    }

    fn verify(&self, key: &str) -> String {
        self.request("POST", "/verify", &json!({ "key": key }).to_string())
    }

    fn page(&self, offset: usize) -> Question {
        let path = format!("/keys?limit={PAGE}&offset={offset}");
        Question { times: PAGE, ..Question::new(self.request("GET", &path, ""), r#""prefix":"#) }
    }
}

/// A bare `node:http` with a fixed answer.
pub(super) fn fixed() -> Result<Server> {
    Server::start(node("fixed.mjs", ""))
}

/// Such as "better-auth 1.7.5, Node.js v26.10.0".
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
