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

use crate::{options, say};

/// How many keys have a digest of their own, so that they can be proven; the others share one.
const PROVEN: usize = 500;
/// In how many keys' places first validations look, so that few of them find their pages in the store's cache.
const VISITED: usize = 20_000;
/// How many keys are written at once.
const BATCH: usize = 10_000;

/// What a seeded store is asked for: keys from everywhere in it.
pub(crate) struct Seeds {
    pub(crate) proven: Vec<ApiKeyToken>,
    pub(crate) visited: Vec<(Prefix, Id)>,
}

impl Seeds {
    /// Fills a new store with this many keys of one organization: copies of the items that one of them was written as.
    pub(crate) async fn sow(data: &Path, count: usize) -> Result<Self> {
        let started = Instant::now();
        let runner = Runner::start(options(data)?).await?;
        let (organization, now) = (runner.founded.organization.id, runner.app.clock.now());
        let ring = runner.app.secrets.ring(Ring::KeyTag).await?;
        let first = create_key(&runner.app, &ring, organization, now).await?;
        runner.stop().await;

        let database = Database::new(&data.join("store.db").to_string_lossy()).map_err(said)?;
        let pattern = Pattern::read(&database, organization, &first)?;
        let pool = BcryptPool::new(4);
        let mut seeds = Self { proven: Vec::new(), visited: Vec::new() };
        let (mut main, mut credentials) = (Vec::new(), Vec::new());
        database.enable_bulk_loading().map_err(said)?;
        for index in 1..count {
            let token = ApiKeyToken::mint(&ring, &OsEntropy);
            let (prefix, id) = (token.prefix(), later(first.id, index)?);
            let is_proven = is_one_of(index, PROVEN, count);
            let digest = if is_proven { Some(pool.digest(&token, &OsEntropy).await?) } else { None };
            let copies = pattern.copies(organization, id, &prefix, digest.as_ref());
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
        database.disable_bulk_loading().map_err(said)?;
        let megabytes = database.db_size_bytes().map_err(said)? / 1_000_000;
        say(&format!("{count} keys, {megabytes} MB on disk, seeded in {:.0?}", started.elapsed()))?;
        Ok(seeds)
    }
}

/// Whether an index is one of some `wanted`, evenly spread below `count`.
fn is_one_of(index: usize, wanted: usize, count: usize) -> bool {
    index.is_multiple_of((count / wanted).max(1))
}

/// The id of a key that was made so many milliseconds after another.
fn later(first: Id, millis: usize) -> Result<Id> {
    Id::new(first.get() + (u64::try_from(millis)? << 12)).context("an id")
}

async fn create_key(app: &App, ring: &Keyring, organization: Id, now: Timestamp) -> Result<ApiKey> {
    let token = ApiKeyToken::mint(ring, &OsEntropy);
    let settings = ApiKeySettings {
        name: Name::try_from("ci-runner".to_owned()).map_err(said)?,
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

/// The items of one key, as the code wrote them or with another key's values.
struct Pattern {
    claim: Item,
    key: Item,
    credential: Item,
}

impl Pattern {
    fn read(database: &Database, organization: Id, key: &ApiKey) -> Result<Self> {
        let read = |table, at: Key| -> Result<Item> {
            let request = json!({
                "TableName": Tables::local().name(table),
                "Key": { "pk": { "S": at.pk }, "sk": { "S": at.sk } },
            });
            let answer = database.get_item(serde_json::from_value(request)?).map_err(said)?;
            answer.item.context("the first key is not there")
        };
        Ok(Self {
            claim: read(Table::Main, Key::claimed_id(Kind::ApiKey, key.id))?,
            key: read(Table::Main, Key::api_key(organization, key.id))?,
            credential: read(Table::Credentials, Key::credential(&key.prefix, key.id))?,
        })
    }

    /// The same for another key, under the digest that is given or else the same one.
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
    let place = [("pk", AttributeValue::S(at.pk.clone())), ("sk", AttributeValue::S(at.sk.clone()))];
    let mut copy = item.clone();
    copy.extend(place.into_iter().chain(changes).map(|(name, value)| (name.to_owned(), value)));
    copy
}

fn write(database: &Database, table: Table, items: Vec<Item>) -> Result<()> {
    database.import_items(Tables::local().name(table), items, ImportOptions::default()).map_err(said)?;
    Ok(())
}

fn said(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}
