//! Compares the API keys of Karta with those of better-auth: `just bench-peers`.
//!
//! Loads both servers in turns with the same generator, checks every response and prints medians.
//! `infra/peers` contains the server for better-auth and its settings.

mod better_auth;
mod karta;
mod measure;
mod table;

use std::path::Path;

use anyhow::Result;

use self::{
    better_auth::BetterAuth,
    karta::Karta,
    measure::{rates, starts},
    table::Goal,
};
use crate::server::Server;

/// Keys on either side. `REVOKED` of them are revoked in Karta and disabled in better-auth.
const KEYS: usize = 1_000;
const REVOKED: usize = 100;
/// Keys that are verified through the gateway's cache.
const CACHED: usize = 100;
const PAGE: usize = 100;
/// Pages before the later page that is measured.
const PAGES_BEFORE: usize = 5;

const OURS: &str = "\
Ours: HMAC-SHA256 checks the token's tag, and SHA-256 of the token finds its proof (bcrypt ran when the process first saw the token). Every validation \
reads the key's state and budget with one BatchGetItem of five items, so nothing is stale. Last use is written at most once a minute. The gateway caches a verdict for 3 s. A made-up key is \
rejected by its tag without a read. A list is a Query of the page's items, under the gateway's cached verdict. A new key costs a bcrypt of cost 12 by design.";
const THEIRS: &str = "\
better-auth: every verification computes SHA-256 of the key and runs one SELECT by index and two UPDATEs (last request, last change), so nothing is stale. A \
made-up key costs the SELECT. Verification requires no credential. A list uses a session read from its signed cookie. It reads only the first 100 \
keys unless `defaultFindManyLimit` is higher; then every page reads all keys, 1,000 for the sixth page here. A new key \
costs a SHA-256.";

pub(crate) async fn compare(binary: &Path, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let data = folder.join("karta");
    let ours = Karta::seed(binary, &data).await?;
    let theirs = BetterAuth::seed(&folder.join("better-auth.sqlite"))?;
    let server = theirs.serve()?;
    table::head()?;
    for (connections, goal) in [(1, Goal::AtLeast(1.5)), (32, Goal::AtLeast(2.0))] {
        verifications(&ours, &theirs, &server, connections, goal).await?;
    }
    lists(&ours, &theirs, &server).await?;
    let creates = rates([&ours.creates(), &theirs.creates(&server)], 1).await?;
    table::rates("create (bcrypt 12 against SHA-256), 1 connection", creates, Goal::None)?;
    let memory = [ours.runner.resident_megabytes()?, server.resident_megabytes()?];
    table::megabytes("resident memory after the load", memory, Goal::AtMost(1.0 / 3.0))?;
    let key = ours.new_key().await?;
    ours.runner.stop()?;
    server.stop()?;

    let [read, verified, peer_verified] =
        starts([&|| karta::start_and_read(binary, &data), &|| karta::start_and_verify(binary, &data, &key), &|| {
            theirs.start_and_verify()
        }])
        .await?;
    table::millis("start to first response from the store", [read, peer_verified], Goal::AtMost(0.25))?;
    table::millis("start to first verification (ours with a bcrypt 12)", [verified, peer_verified], Goal::None)?;
    table::note(OURS)?;
    table::note(THEIRS)?;
    table::note(&format!("{}.", better_auth::versions()?))
}

/// `goal` is the goal for valid keys without the cache.
async fn verifications(
    ours: &Karta,
    theirs: &BetterAuth,
    server: &Server,
    connections: usize,
    goal: Goal,
) -> Result<()> {
    let with_connections = |what: &str| with_connections(what, connections);
    let fixed = better_auth::fixed()?;
    let subjects = [&ours.verifies(), &ours.whoami(), &theirs.verifies(server), &measure::fixed(&fixed)];
    let [fresh, cached, peer, floor] = rates(subjects, connections).await?;
    fixed.stop()?;
    table::floor(&with_connections("bare node:http, fixed response"), floor)?;
    table::rates(&with_connections("verify a valid key, nothing stale"), [fresh, peer], goal)?;
    table::rates(
        &with_connections("the same through the gateway's cache, 100 keys"),
        [cached, peer],
        Goal::AtLeast(8.0),
    )?;
    let junk = rates([&ours.rejects_junk(), &theirs.rejects_junk(server)], connections).await?;
    table::rates(&with_connections("reject a made-up key"), junk, Goal::None)?;
    let revoked = rates([&ours.rejects_revoked(), &theirs.rejects_disabled(server)], connections).await?;
    table::rates(&with_connections("reject a revoked key"), revoked, Goal::None)
}

async fn lists(ours: &Karta, theirs: &BetterAuth, server: &Server) -> Result<()> {
    let with_all_keys = theirs.serve_with_all_keys()?;
    let later_page = ours.later_page().await?;
    for connections in [1, 32] {
        let first = rates([&ours.first_page(), &theirs.first_page(server)], connections).await?;
        table::rates(&with_connections("list, first 100 keys of 1,000", connections), first, Goal::None)?;
        let sixth = rates([&later_page, &theirs.later_page(&with_all_keys)], connections).await?;
        table::rates(&with_connections("list, sixth 100 keys of 1,000", connections), sixth, Goal::AtLeast(10.0))?;
    }
    with_all_keys.stop()
}

fn with_connections(what: &str, connections: usize) -> String {
    format!("{what}, {connections} connection{}", if connections == 1 { "" } else { "s" })
}

/// Returns `key` with another last character.
fn altered(key: &str) -> String {
    let last = if key.ends_with('a') { "b" } else { "a" };
    format!("{}{last}", &key[..key.len() - 1])
}
