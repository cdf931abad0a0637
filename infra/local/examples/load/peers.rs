//! better-auth's API keys beside ours (`just bench-peers`): one generator, by turns, medians, every answer judged. What serves better-auth, and under
//! which settings, is in `infra/peers`.

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

/// Keys on either side; of them `REVOKED` are revoked here and disabled there.
const KEYS: usize = 1_000;
const REVOKED: usize = 100;
/// Keys that are asked for through the gateway's cache.
const CACHED: usize = 100;
/// Keys on a page, and how many pages lie before the one further on.
const PAGE: usize = 100;
const PAGES_BEFORE: usize = 5;

const OURS: &str = "\
Ours: the token's tag by HMAC-SHA256; SHA-256 of the token finds its proof (bcrypt ran when the process first saw it); one BatchGetItem of five items \
reads the key's state and budget at every validation, so nothing is stale; last use is written at most once a minute. The gateway's cache keeps a verdict for 3 s. A made-up key is refused by its \
tag, nothing is read. A list is a Query of the page's own items, under the gateway's cached verdict. A new key costs a bcrypt of cost 12 by design.";
const THEIRS: &str = "\
better-auth: SHA-256 of the key; one SELECT by its index and two UPDATEs (last request, last change) at every verification, so nothing is stale; a \
made-up key costs the SELECT. Nobody is asked for a credential to verify. A list is under a session read from its signed cookie; it reads the first 100 \
keys and can reach no others, unless `defaultFindManyLimit` says more: then every page reads all keys (the sixth page is measured so, 1,000). A new key \
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

    let [read, verified, beside] =
        starts([&|| karta::start_and_read(binary, &data), &|| karta::start_and_verify(binary, &data, &key), &|| {
            theirs.start_and_verify()
        }])
        .await?;
    table::millis("start to first answer out of the store", [read, beside], Goal::AtMost(0.25))?;
    table::millis("start to first verification (ours: and a bcrypt 12)", [verified, beside], Goal::None)?;
    table::note(OURS)?;
    table::note(THEIRS)?;
    table::note(&format!("{}.", better_auth::versions()?))
}

/// `goal` is that of a valid key, nothing cached.
async fn verifications(
    ours: &Karta,
    theirs: &BetterAuth,
    server: &Server,
    connections: usize,
    goal: Goal,
) -> Result<()> {
    let over = |what: &str| over(what, connections);
    let fixed = better_auth::fixed()?;
    let subjects = [&ours.verifies(), &ours.whoami(), &theirs.verifies(server), &measure::fixed(&fixed)];
    let [fresh, cached, beside, floor] = rates(subjects, connections).await?;
    fixed.stop()?;
    table::floor(&over("bare node:http, fixed answer"), floor)?;
    table::rates(&over("verify a valid key, nothing stale"), [fresh, beside], goal)?;
    table::rates(&over("the same through the gateway's cache, 100 keys"), [cached, beside], Goal::AtLeast(8.0))?;
    let junk = rates([&ours.refuses_junk(), &theirs.refuses_junk(server)], connections).await?;
    table::rates(&over("refuse a made-up key"), junk, Goal::None)?;
    let revoked = rates([&ours.refuses_revoked(), &theirs.refuses_disabled(server)], connections).await?;
    table::rates(&over("refuse a revoked key"), revoked, Goal::None)
}

async fn lists(ours: &Karta, theirs: &BetterAuth, server: &Server) -> Result<()> {
    let reaching_all = theirs.serve_reaching_all()?;
    let further_on = ours.page_further_on().await?;
    for connections in [1, 32] {
        let first = rates([&ours.first_page(), &theirs.first_page(server)], connections).await?;
        table::rates(&over("list, first 100 keys of 1,000", connections), first, Goal::None)?;
        let sixth = rates([&further_on, &theirs.page_further_on(&reaching_all)], connections).await?;
        table::rates(&over("list, sixth 100 keys of 1,000", connections), sixth, Goal::AtLeast(10.0))?;
    }
    reaching_all.stop()
}

fn over(what: &str, connections: usize) -> String {
    format!("{what}, {connections} connection{}", if connections == 1 { "" } else { "s" })
}

/// `key` with another last character.
fn altered(key: &str) -> String {
    let last = if key.ends_with('a') { "b" } else { "a" };
    format!("{}{last}", &key[..key.len() - 1])
}
