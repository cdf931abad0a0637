//! A process that dies or freezes at each of its awaits: before a store call arrives, after the
//! store has executed it, and at each frame of the provider. Its other awaits (the client, the queue
//! of the log, timers) change nothing that outlives it, so these moments cover them.
//!
//! The processes reach the store through a proxy of their own, which counts their calls. The server
//! that sweeps and checks does not use it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::Method;
use karta_local::provider::{Fault as ProviderFault, Script};
use karta_shared::{
    clock::ManualClock,
    config::TurnLimits,
    domain::{Turn, TurnStatus},
    settlement::estimate_tokens,
    worker::{Wake, Worker},
};
use serde_json::json;
use tokio::{runtime::Runtime, select};
use worker_turns_sweep::TurnsSweep;

use super::{
    ANTHROPIC, Conversation, EventReader, LIMITS, OPENAI, Process, TurnServer, assert_whole, end, joined,
    killed::{self, LEASE, SWEEP, charged, sums, usage_of},
    peer_app, until,
};
use crate::{
    budget::put,
    fault_proxy::{ALWAYS, ANY, FaultProxy, Seen, StoreFault},
    harness::Request,
    reservations::assert_all_released,
};

/// Calls of a sweep that find what is due: open turns, due turns and due sessions of 16 shards each.
const LOOKUPS: usize = 48;
/// Tokens of an answer that is killed at one of its frames.
const TOKENS: usize = 4;

/// The fate of the store call at which a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It never arrives.
    Lost,
    /// The store executes it.
    Applied,
    /// The store executes it after the sweep.
    Late,
}

/// The operations of a turn.
const OPERATIONS: [&str; 6] = ["BatchGetItem", "GetItem", "Query", "UpdateItem", "PutItem", "TransactWriteItems"];

/// The store calls at a renewal of a turn's lease: the renewal, and the check of the caller's access.
const CALLS_OF_RENEWAL: [&str; 2] = ["UpdateItem SES", "BatchGetItem KEY ORG"];
/// The other store calls of a turn: its state, its claim, its reservations, its log, and its end.
const CALLS_OF_TURN: [&str; 8] = [
    "BatchGetItem BUD KEY MK ORG SES UMK UMO UMP",
    "BatchGetItem MK MKS",
    "GetItem TID",
    "TransactWriteItems SES TID",
    "UpdateItem UMO",
    "UpdateItem UMK",
    "PutItem SES",
    "TransactWriteItems BDG SES UEV UMK UMO UMP",
];
/// The store calls of a sweep: what is due, the turn, its log, the counters, and its end.
const CALLS_OF_SWEEP: [&str; 5] =
    ["Query TRN", "GetItem SES", "Query SES", "BatchGetItem UMK UMO UMP", "TransactWriteItems BDG SES UEV UMK UMO UMP"];

const FATES: [Fate; 3] = [Fate::Lost, Fate::Applied, Fate::Late];

impl Fate {
    fn fault(self) -> StoreFault {
        match self {
            Self::Lost => StoreFault::Hang,
            Self::Applied => StoreFault::HoldResponse,
            Self::Late => StoreFault::HoldRequest,
        }
    }
}

/// How a turn ends if its process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Done,
    Cancelled,
    /// The cap of the key refuses a further slice.
    OverBudget,
    /// Never: the provider falls silent after a batch of the log.
    Silent,
}

struct KillServer {
    turns: TurnServer,
    clock: Arc<ManualClock>,
    /// Counts the store calls of processes that die.
    proxy: Arc<FaultProxy>,
    /// Input and output tokens of all turns so far.
    counted: (u64, u64),
    /// The kinds of the store calls at which a process died.
    kinds: BTreeSet<String>,
    moments: usize,
    /// Moments that left a turn to the sweep.
    interrupted: usize,
    last_turn: Option<Turn>,
}

impl KillServer {
    /// Starts a server whose turns renew their lease between the tokens of an answer.
    async fn start() -> Self {
        Self::start_with(Duration::from_millis(30)).await
    }

    async fn start_with(renewal: Duration) -> Self {
        let (turns, clock) = killed::start(TurnLimits { renewal, ..LIMITS }).await;
        put(&turns.server, json!({ "total_tokens": 1_000_000_000 })).await;
        let proxy = FaultProxy::before(&turns.server).await;
        let (counted, kinds) = ((0, 0), BTreeSet::new());
        Self { turns, clock, proxy, counted, kinds, moments: 0, interrupted: 0, last_turn: None }
    }

    /// Creates a session, with the credential of a new key that has a budget.
    async fn session(&self, model: &'static str, ending: Ending) -> Conversation<'_> {
        let tokens = if ending == Ending::OverBudget { 1_000 } else { 1_000_000 };
        let key = json!({ "name": "app", "scopes": ["read", "write"], "budget": { "output_tokens": tokens } });
        let (_, key) = self.turns.server.key_with(key).await;
        self.turns.session(model).await.with_token(&key)
    }

    /// Builds a request whose turn makes each kind of store call.
    fn ask(&self, process: &Process, session: &Conversation<'_>, ending: Ending) -> Request {
        let script = match ending {
            Ending::Cancelled => Script { tokens: 100_000, pause: Duration::from_millis(20), ..Script::default() },
            Ending::Done | Ending::OverBudget => {
                Script { echoes: true, pause: Duration::from_millis(3), ..Script::default() }
            }
            // Fourteen short words and four long ones.
            Ending::Silent => Script { echoes: true, fault: ProviderFault::SilentAfter(18), ..Script::default() },
        };
        self.turns.provider.push(script);
        // Each long word takes most of a slice, and three of them fill a batch of the log.
        let text = format!("{}{}", super::text(), format!(" {}", "x".repeat(1_600)).repeat(6));
        let body = json!({ "text": text, "stream": true, "model": ANTHROPIC });
        process.peer.request(session, Method::POST, "/messages").body(body).idempotency_key("once")
    }

    /// Runs a turn in a process that dies at this call of an operation. Returns false if it makes fewer.
    ///
    /// A late first reservation is executed before the sweep. Its condition does not see the turn: after
    /// the sweep, more than half a minute late, it would hold an amount until the end of the month.
    async fn kill_at(&mut self, operation: &'static str, calls: usize, fate: Fate, ending: Ending) -> bool {
        let session = self.session(ANTHROPIC, ending).await;
        let sent = self.turns.provider.ledger().len();
        let process = Process::start_with_store(&self.turns.server, &self.proxy.url).await;
        self.proxy.forget();
        self.proxy.fail_after(operation, calls, ALWAYS, fate.fault());
        let request = self.ask(&process, &session, ending);
        let is_killed = select! {
            _ = finish(request, &session, ending) => false,
            () = self.proxy.held() => true,
        };
        process.kill().await;
        self.proxy.quiet().await;
        let last = self.proxy.seen_of(operation).get(calls).cloned();
        let kind = last.as_ref().map(kind_of);
        let is_first_hold = |call: &Seen| call.body.to_string().contains("attribute_not_exists(#hold)");
        let is_late = fate == Fate::Late && !last.as_ref().is_some_and(is_first_hold);
        self.proxy.heal();
        self.clock.advance(LEASE);
        if is_late {
            self.turns.server.work(SWEEP).await;
            self.clock.advance(LEASE);
        }
        self.proxy.release();
        self.proxy.drained().await;
        sweep_concurrently(&self.turns).await;
        let at = format!("{ending:?} killed at call {calls} of {operation} ({kind:?}), which is {fate:?}");
        let (usage, turn) = check(&self.turns, &session, sent, self.counted, &at).await;
        drop(session);
        self.count(usage, turn, kind);
        is_killed
    }

    /// Runs a turn in a process that freezes at this call of an operation, and goes on after the sweep.
    /// Returns false if it makes fewer.
    async fn freeze_at(&mut self, operation: &'static str, calls: usize, fault: StoreFault) -> bool {
        let session = self.session(ANTHROPIC, Ending::Done).await;
        let sent = self.turns.provider.ledger().len();
        let process = Process::start_with_store(&self.turns.server, &self.proxy.url).await;
        self.proxy.forget();
        self.proxy.fail_after(operation, calls, 1, fault);
        let mut turn = tokio::spawn(self.ask(&process, &session, Ending::Done).send());
        let is_frozen = select! {
            _ = &mut turn => false,
            () = self.proxy.held() => true,
        };
        // Other tasks of the process freeze before their next call.
        self.proxy.fail(ANY, ALWAYS, StoreFault::HoldRequest);
        self.proxy.quiet().await;
        let kind = self.proxy.seen_of(operation).get(calls).map(kind_of);
        if is_frozen {
            self.clock.advance(LEASE);
            self.turns.server.work(SWEEP).await;
            self.proxy.heal();
            self.proxy.release();
            turn.await.unwrap();
        }
        self.proxy.heal();
        process.kill().await;
        self.proxy.drained().await;
        self.clock.advance(LEASE);
        sweep_concurrently(&self.turns).await;
        let at = format!("frozen at call {calls} of {operation} ({kind:?}) with {fault:?}");
        let (usage, turn) = check(&self.turns, &session, sent, self.counted, &at).await;
        drop(session);
        self.count(usage, turn, kind);
        is_frozen
    }

    /// Lets a sweep die at its call number `calls`, while there is one turn to settle. Returns false if
    /// it has settled the turn before.
    async fn kill_sweep_at(&mut self, calls: usize, fate: Fate) -> bool {
        let session = self.session(ANTHROPIC, Ending::Silent).await;
        let sent = self.turns.provider.ledger().len();
        let process = Process::start(&self.turns.server).await;
        let request = self.ask(&process, &session, Ending::Silent);
        let reader = tokio::spawn(request.open());
        until("a batch of the log", async || session.has_logged().await).await;
        process.kill().await;
        drop(reader);
        self.clock.advance(LEASE);

        let (sweeper, app) = (Runtime::new().unwrap(), peer_app(&self.turns.server, &self.proxy.url).await);
        self.proxy.forget();
        self.proxy.fail_after(ANY, calls, ALWAYS, fate.fault());
        let sweep = sweeper.spawn(async move { TurnsSweep::new(app).work(&Wake::Sweep).await });
        let is_killed = select! {
            swept = sweep => { swept.unwrap().unwrap(); false }
            () = self.proxy.held() => true,
        };
        end(sweeper).await;
        self.proxy.quiet().await;
        let seen = self.proxy.seen();
        let kind = is_killed.then(|| kind_of(&seen[calls]));
        let is_settled = session.last_turn().await.status != TurnStatus::Running;
        self.proxy.heal();
        if fate == Fate::Late {
            self.turns.server.work(SWEEP).await;
        }
        self.proxy.release();
        self.proxy.drained().await;
        sweep_concurrently(&self.turns).await;
        let at = format!("sweep killed at call {calls} ({kind:?}), which is {fate:?}");
        let (usage, turn) = check(&self.turns, &session, sent, self.counted, &at).await;
        assert_eq!(turn.as_ref().unwrap().status, TurnStatus::Interrupted, "{at}");
        drop(session);
        self.count(usage, turn, kind);
        is_killed && !is_settled
    }

    /// Kills a process that waits for the head of the provider's response.
    async fn kill_before_head(&mut self, model: &'static str, script: Script) {
        let session = self.session(model, Ending::Done).await;
        let sent = self.turns.provider.ledger().len();
        let process = Process::start(&self.turns.server).await;
        self.turns.provider.push(script);
        let body = json!({ "text": super::text(), "stream": true, "model": model });
        let request = process.peer.request(&session, Method::POST, "/messages").body(body);
        select! {
            response = request.open() => panic!("{response:?}"),
            () = until("the request", async || self.turns.provider.ledger().len() > sent) => {}
        }
        process.kill().await;
        self.clock.advance(LEASE);
        sweep_concurrently(&self.turns).await;
        let at = format!("{model} killed before the head");
        let (usage, turn) = check(&self.turns, &session, sent, self.counted, &at).await;
        drop(session);
        self.count(usage, turn, Some(at));
    }

    /// Kills a process that has received this many frames of the provider, `texts` of them tokens, or
    /// that has received the whole answer and ended the turn.
    async fn kill_after_frames(&mut self, model: &'static str, frames: usize, texts: usize, is_whole: bool) {
        let session = self.session(model, Ending::Done).await;
        let sent = self.turns.provider.ledger().len();
        let process = Process::start(&self.turns.server).await;
        let fault = ProviderFault::SilentAfterFrames(frames);
        self.turns.provider.push(Script { tokens: TOKENS, fault, ..Script::default() });
        let body = json!({ "text": super::text(), "stream": true, "model": model });
        let request = process.peer.request(&session, Method::POST, "/messages").body(body);
        let mut reader = EventReader::new(request.open().await);
        reader.take(texts).await;
        if is_whole {
            assert_eq!(reader.rest().await[0].kind, "done");
        }
        process.kill().await;
        self.clock.advance(LEASE);
        sweep_concurrently(&self.turns).await;
        let at = format!("{model} killed after {frames} frames");
        let (usage, turn) = check(&self.turns, &session, sent, self.counted, &at).await;
        let expected = if is_whole { TurnStatus::Completed } else { TurnStatus::Interrupted };
        assert_eq!(turn.as_ref().unwrap().status, expected, "{at}");
        drop(session);
        self.count(usage, turn, Some(at));
    }

    /// Asserts that a process died at calls of each of these kinds, and that turns were left to the
    /// sweep. Returns a summary.
    fn assert_covers(&self, kinds: &[&str]) -> String {
        let Self { moments, interrupted, kinds: covered, .. } = self;
        assert!(kinds.iter().all(|kind| covered.contains(*kind)), "{covered:?}");
        assert!(interrupted * 4 > *moments, "{interrupted} of {moments}");
        format!("{moments} moments, {interrupted} turns left to the sweep: {covered:?}")
    }

    fn count(&mut self, usage: (u64, u64), turn: Option<Turn>, kind: Option<String>) {
        self.counted = (self.counted.0 + usage.0, self.counted.1 + usage.1);
        self.moments += usize::from(kind.is_some());
        self.interrupted += usize::from(turn.as_ref().is_some_and(|turn| turn.status == TurnStatus::Interrupted));
        self.last_turn = turn;
        self.kinds.extend(kind);
    }
}

/// Sends a request for a turn and waits for the end of its response.
async fn finish(request: Request, session: &Conversation<'_>, ending: Ending) -> String {
    let cancel = async {
        if ending == Ending::Cancelled {
            until("the turn runs", async || session.get().await["turn"]["status"] == "running").await;
            session.cancel().send().await;
        }
    };
    let (response, ()) = tokio::join!(request.open(), cancel);
    response.text().await.unwrap()
}

/// Returns the kind of a call: its operation and the kinds of its items.
fn kind_of(call: &Seen) -> String {
    let accesses = call.accesses().into_iter();
    let items: BTreeSet<_> = accesses.map(|it| it.partition.split('#').next().unwrap_or_default().to_owned()).collect();
    format!("{} {}", call.operation, items.into_iter().collect::<Vec<_>>().join(" "))
}

/// Runs two sweeps at once. Those of the next moment repeat them.
async fn sweep_concurrently(turns: &TurnServer) {
    let other = TurnsSweep::new(turns.server.runner.app.clone());
    let (first, second) = tokio::join!(turns.server.try_work(SWEEP), other.work(&Wake::Sweep));
    first.and(second).unwrap();
}

/// Asserts that the turn of a session, if there is one, has ended and is counted once, that nothing
/// is held, and that another turn can run. Returns input and output tokens of both turns, and the
/// first.
async fn check(
    turns: &TurnServer,
    session: &Conversation<'_>,
    sent: usize,
    counted: (u64, u64),
    at: &str,
) -> ((u64, u64), Option<Turn>) {
    turns.provider.clear();
    let requests = turns.ledger_after(sent).len();
    assert!(requests <= 1, "{at}: {requests} requests to the provider");
    let (mut usage, mut ended) = ((0, 0), None);
    if session.get().await["turn"].is_null() {
        assert_eq!(requests, 0, "{at}: a request without a turn");
    } else {
        let turn = session.last_turn().await;
        assert_usage(turns, session, &turn, sent, at).await;
        (usage, ended) = (usage_of(&turn), Some(turn));
    }
    assert_eq!(sums(session).await, usage, "{at}");
    assert_eq!(charged(turns).await, (counted.0 + usage.0, counted.1 + usage.1), "{at}");
    assert_all_released(&turns.server).await;
    let next = session.with_token(&turns.server.admin).answer().await;
    let next = |kind: &str| next["usage"][kind].as_u64().unwrap();
    ((usage.0 + next("input_tokens"), usage.1 + next("output_tokens")), ended)
}

/// Asserts that a turn ended with one event, and that its usage is the provider's or the estimate.
async fn assert_usage(turns: &TurnServer, session: &Conversation<'_>, turn: &Turn, sent: usize, at: &str) {
    assert_ne!(turn.status, TurnStatus::Running, "{at}");
    let events = session.follow(None).await.rest().await;
    assert_whole(&events, 0);
    let logged = session.logged(&turn.id).await;
    let ends = ["done", "error"].map(|kind| logged.matches(&format!("event: {kind}\n")).count());
    assert_eq!(ends.iter().sum::<usize>(), 1, "{at}: {logged}");
    let answer = joined(&events, "text");
    let messages = session.messages().await;
    let stored = messages.get(1).map_or("", |message| message["text"].as_str().unwrap());
    assert_eq!((stored, messages[0]["role"].as_str()), (&*answer, Some("user")), "{at}");

    let (input, output) = usage_of(turn);
    let (reported, seen) = (turns.provider.ledger().get(sent).cloned(), estimate_tokens(answer.len()));
    // A request that the provider refused is not billed.
    let is_billed = |input: u64| input == 0 || input == turn.input_estimate;
    assert!(reported.as_ref().is_none_or(|entry| is_billed(entry.input_tokens)), "{at}");
    match turn.status {
        TurnStatus::Completed => {
            until("the provider's bill", async || turns.provider.ledger()[sent].output_tokens == output).await;
            assert_eq!((input, turn.estimated), (turn.input_estimate, false), "{at}");
        }
        TurnStatus::Interrupted if !turn.estimated => {
            assert!(reported.is_none(), "{at}");
            assert_eq!((input, output), (0, 0), "{at}");
        }
        TurnStatus::Interrupted => {
            assert_eq!((input, output, turn.estimated), (turn.input_estimate, seen, true), "{at}");
        }
        // The process settled it: the output includes what it received and did not send.
        TurnStatus::Cancelled | TurnStatus::Failed => {
            assert_eq!((input, turn.estimated), (turn.input_estimate, true), "{at}");
            assert!(output >= seen, "{at}: {output} of {seen}");
        }
        TurnStatus::Running => {}
    }
}

/// Kills a turn at each of its store calls. Returns a summary.
async fn kill_at_every_call(fate: Fate, endings: &[Ending]) -> String {
    let mut server = KillServer::start().await;
    for ending in endings {
        for operation in OPERATIONS {
            let mut calls = 0;
            while server.kill_at(operation, calls, fate, *ending).await {
                calls += 1;
            }
        }
    }
    server.assert_covers(&[&CALLS_OF_TURN[..], &CALLS_OF_RENEWAL[..]].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_killed_before_any_store_call_settles_once() {
    println!("{}", kill_at_every_call(Fate::Lost, &[Ending::Done]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_killed_after_any_store_call_settles_once() {
    println!("{}", kill_at_every_call(Fate::Applied, &[Ending::Done, Ending::Cancelled, Ending::OverBudget]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_whose_last_call_is_late_settles_once() {
    println!("{}", kill_at_every_call(Fate::Late, &[Ending::Done]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_killed_before_its_reservation_counts_nothing() {
    let mut server = KillServer::start().await;
    server.kill_at("TransactWriteItems", 0, Fate::Applied, Ending::Done).await;
    let turn = server.last_turn.unwrap();
    assert_eq!((turn.status, usage_of(&turn), turn.estimated), (TurnStatus::Interrupted, (0, 0), false));
}

/// The process is frozen instead, and goes on after the sweep. It notices the loss of its lease at a
/// renewal, or not before its settlement.
#[tokio::test(flavor = "multi_thread")]
async fn turn_frozen_at_any_store_call_settles_once() {
    for (renewal, fault) in [(30, StoreFault::HoldResponse), (3_600_000, StoreFault::HoldRequest)] {
        let mut server = KillServer::start_with(Duration::from_millis(renewal)).await;
        for operation in OPERATIONS {
            let mut calls = 0;
            while server.freeze_at(operation, calls, fault).await {
                calls += 1;
            }
        }
        let mut kinds = CALLS_OF_TURN.to_vec();
        if renewal < 1_000 {
            kinds.extend(CALLS_OF_RENEWAL);
        }
        println!("{}", server.assert_covers(&kinds));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sweep_killed_at_any_store_call_settles_once() {
    let mut server = KillServer::start().await;
    for fate in FATES {
        // The lookups of one kind are concurrent and equal.
        let mut calls = [0, LOOKUPS / 3, LOOKUPS * 2 / 3].into_iter().chain(LOOKUPS..);
        while server.kill_sweep_at(calls.next().unwrap(), fate).await {}
    }
    println!("{}", server.assert_covers(&CALLS_OF_SWEEP));
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_killed_at_any_provider_frame_settles_once() {
    let mut server = KillServer::start().await;
    // Frames before the tokens, and all frames.
    for (model, first, frames) in [(ANTHROPIC, 2, 9_usize), (OPENAI, 1, 8)] {
        let limited = ProviderFault::Status { status: 429, body: "{}".to_owned(), retry_after: Some(10) };
        server.kill_before_head(model, Script { fault: limited, ..Script::default() }).await;
        server.kill_before_head(model, Script { head_pause: Duration::from_hours(1), ..Script::default() }).await;
        for sent in 0..=frames {
            let texts = sent.saturating_sub(first).min(TOKENS);
            server.kill_after_frames(model, sent, texts, sent == frames).await;
        }
    }
    println!("{}", server.assert_covers(&[]));
}
