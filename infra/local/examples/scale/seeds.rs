use std::{mem, path::Path, time::Instant};

use anyhow::{Context, Result, anyhow};
use dynoxide::{AttributeValue, Database, ImportOptions, Item};
use karta_local::Runner;
use karta_shared::{
    App,
    auth::BcryptPool,
    config::Ring,
    domain::{
        AllowedCidrs, ApiKey, ApiKeySettings, ApiKeyToken, Id, Keyring, Kind, Metadata, Name, Prefix, Scope, Timestamp,
    },
    entropy::OsEntropy,
    store::{
        Digest,
        table::{Key, Table, Tables},
    },
};
use serde_json::json;

use crate::{options, print_line};

/// Keys with a digest for their own token, so that they can be validated. The other keys share a
/// digest.
const PROVEN: usize = 500;
/// Keys whose reads are measured: many, so that few of their pages are in the store's cache.
const VISITED: usize = 20_000;
const BATCH: usize = 10_000;

/// Keys of a seeded store that are read, spread evenly over the store.
pub(crate) struct Seeds {
    pub(crate) proven: Vec<ApiKeyToken>,
    pub(crate) visited: Vec<(Prefix, Id)>,
}

impl Seeds {
    /// Fills a new store with `count` keys of one organization, as copies of the items of the first
    /// key.
    pub(crate) async fn create(data: &Path, count: usize) -> Result<Self> {
        let started = Instant::now();
        let runner = Runner::start(options(data)?).await?;
        let (organization, now) = (runner.bootstrap.organization.id, runner.app.clock.now());
        let ring = runner.app.secrets.ring(Ring::KeyTag).await?;
        let first = create_key(&runner.app, &ring, organization, now).await?;
        runner.stop().await;

        let database = Database::new(&data.join("store.db").to_string_lossy()).map_err(to_anyhow)?;
        let first_items = KeyItems::read(&database, organization, &first)?;
        let pool = BcryptPool::new(4);
        let mut seeds = Self { proven: Vec::new(), visited: Vec::new() };
        let (mut main, mut credentials) = (Vec::new(), Vec::new());
        database.enable_bulk_loading().map_err(to_anyhow)?;
        for index in 1..count {
            let token = ApiKeyToken::mint(&ring, &OsEntropy);
            let (prefix, id) = (token.prefix(), later(first.id, index)?);
            let is_proven = is_one_of(index, PROVEN, count);
            let digest = if is_proven { Some(pool.digest(&token, &OsEntropy).await?) } else { None };
            let copies = first_items.copies(organization, id, &prefix, digest.as_ref());
            main.extend([copies.claim, copies.key]);
            credentials.push(copies.credential);
            if is_proven {
                seeds.proven.push(token);
            }
            if is_one_of(index, VISITED, count) {
                seeds.visited.push((prefix, id));
            }
            if credentials.len() == BATCH || index + 1 == count {
                write(&database, Table::Main, mem::take(&mut main))?;
                write(&database, Table::Credentials, mem::take(&mut credentials))?;
            }
        }
        database.disable_bulk_loading().map_err(to_anyhow)?;
        let megabytes = database.db_size_bytes().map_err(to_anyhow)? / 1_000_000;
        print_line(&format!("{count} keys, {megabytes} MB on disk, seeded in {:.0?}", started.elapsed()))?;
        Ok(seeds)
    }
}

/// Returns whether `index` is one of `wanted` indexes spread evenly below `count`.
fn is_one_of(index: usize, wanted: usize, count: usize) -> bool {
    index.is_multiple_of((count / wanted).max(1))
}

/// Returns the id of a key created `millis` milliseconds after `first`.
fn later(first: Id, millis: usize) -> Result<Id> {
    Id::new(first.get() + (u64::try_from(millis)? << 12)).context("an id")
}

async fn create_key(app: &App, ring: &Keyring, organization: Id, now: Timestamp) -> Result<ApiKey> {
    let token = ApiKeyToken::mint(ring, &OsEntropy);
    let settings = ApiKeySettings {
        name: Name::try_from("ci-runner".to_owned()).map_err(to_anyhow)?,
        scopes: [Scope::Read].into_iter().collect(),
        expires_at: None,
        allowed_cidrs: AllowedCidrs::default(),
        budget: None,
        metadata: Metadata::default(),
    };
    let key = ApiKey::new(Id::draw(now, &OsEntropy), token.prefix(), settings, None, now);
    let digest = app.bcrypt.digest(&token, &OsEntropy).await?;
    let mut transaction = app.store.transaction();
    transaction.create_api_key(organization, &key, digest)?;
    transaction.commit().await?;
    Ok(key)
}

struct KeyItems {
    claim: Item,
    key: Item,
    credential: Item,
}

impl KeyItems {
    fn read(database: &Database, organization: Id, key: &ApiKey) -> Result<Self> {
        let read = |table, at: Key| -> Result<Item> {
            let request = json!({
                "TableName": Tables::local().name(table),
                "Key": { "pk": { "S": at.pk }, "sk": { "S": at.sk } },
            });
            let answer = database.get_item(serde_json::from_value(request)?).map_err(to_anyhow)?;
            answer.item.context("the first key is missing")
        };
        Ok(Self {
            claim: read(Table::Main, Key::claimed_id(Kind::ApiKey, key.id))?,
            key: read(Table::Main, Key::api_key(organization, key.id))?,
            credential: read(Table::Credentials, Key::credential(&key.prefix, key.id))?,
        })
    }

    /// Returns a copy for another key. Without `digest`, the copy keeps its digest.
    fn copies(&self, organization: Id, id: Id, prefix: &Prefix, digest: Option<&Digest>) -> Self {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let number = AttributeValue::N(id.to_string());
        let own_prefix = ("prefix", text(prefix.as_str()));
        let own_digest = digest.map(|digest| ("digest", text(digest.as_str())));
        let lineage_id = ("counted_as", number.clone());
        let credential = [("api_key_id", number.clone()), lineage_id.clone()].into_iter().chain(own_digest);
        Self {
            claim: copy(&self.claim, &Key::claimed_id(Kind::ApiKey, id), [("id", number.clone()), lineage_id.clone()]),
            key: copy(&self.key, &Key::api_key(organization, id), [("id", number), lineage_id, own_prefix]),
            credential: copy(&self.credential, &Key::credential(prefix, id), credential),
        }
    }
}

fn copy(item: &Item, at: &Key, changes: impl IntoIterator<Item = (&'static str, AttributeValue)>) -> Item {
    let primary_key = [("pk", AttributeValue::S(at.pk.clone())), ("sk", AttributeValue::S(at.sk.clone()))];
    let mut copy = item.clone();
    copy.extend(primary_key.into_iter().chain(changes).map(|(name, value)| (name.to_owned(), value)));
    copy
}

fn write(database: &Database, table: Table, items: Vec<Item>) -> Result<()> {
    database.import_items(Tables::local().name(table), items, ImportOptions::default()).map_err(to_anyhow)?;
    Ok(())
}

fn to_anyhow(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}
