//! Reservations of running turns, and the committed numbers that they share with usage: neither
//! races nor lost responses count an amount twice, and no reservation appears in reported usage.

use std::sync::Arc;

use karta_shared::{
    clock::ManualClock,
    domain::{Budget, CapKind, CapOwner, Exhausted, Id, Month, Quantity, Timestamp, UsageEvent, UsageKind},
    store::{Amount, CommitError, Conflict, Reservation, Store, StoreError},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    budget::{put, spend, verdict},
    fault_proxy::{FaultProxy, StoreFault},
    harness::{TestServer, plain},
};

const SLICE: Amount = Amount { input_tokens: 476, output_tokens: 1_024, cost: 5_000_000_000 };
const HUGE: Amount = Amount { input_tokens: 1 << 40, output_tokens: 1 << 40, cost: 1 << 80 };

/// A key lineage of `acme` and its organization.
struct Turns {
    server: TestServer,
    store: Store,
    token: String,
    key: u64,
    lineage: Id,
}

impl Turns {
    async fn start() -> (Self, Arc<ManualClock>) {
        let (server, clock) = TestServer::start_at_noon().await;
        (Self::on(server).await, clock)
    }

    async fn on(server: TestServer) -> Self {
        let (key, token) = server.key(&["read"]).await;
        Self { store: server.runner.app.store.clone(), server, token, key, lineage: Id::new(key).unwrap() }
    }

    fn organization(&self) -> Id {
        Id::new(self.server.organization_id).unwrap()
    }

    fn now(&self) -> Timestamp {
        self.server.runner.app.clock.now()
    }

    fn month(&self) -> Month {
        self.now().month()
    }

    fn turn(&self, number: usize) -> Reservation {
        Reservation::new(self.organization(), self.lineage, self.month(), &format!("turn_{number:032x}"))
    }

    /// Returns an event of `quantity` tokens at a nano-cent each.
    fn event(&self, id: &str, kind: UsageKind, quantity: u64) -> UsageEvent {
        UsageEvent {
            client_event_id: id.to_owned().try_into().unwrap(),
            api_key_id: self.lineage,
            lineage_id: self.lineage,
            kind,
            quantity: Quantity::try_from(quantity).unwrap(),
            model: Some("gpt-4o".to_owned().try_into().unwrap()),
            cost: Some(quantity.into()),
            occurred_at: self.now(),
            session_id: None,
            model_key_id: None,
            embed_key_id: None,
        }
    }

    /// Counts the events of a turn and releases what it holds.
    async fn settle(&self, turn: &Reservation, events: &[UsageEvent]) -> Result<(), CommitError> {
        let known = self.store.known_counters(self.organization(), self.lineage, self.month()).await?;
        let mut transaction = self.store.transaction();
        transaction.count_usage(self.organization(), events, &known, Some(turn), self.now())?;
        transaction.commit().await
    }

    /// Returns the items with the totals of the organization and of the key.
    async fn items(&self) -> [Value; 2] {
        let organization = self.server.organization_id;
        let item = async |partition: String| {
            let items = self.server.items_of("karta-usage", &partition).await;
            items.iter().map(plain).find(|item| item["sk"] == self.month().to_string()).unwrap_or(json!({}))
        };
        [item(format!("UMO#{organization}")).await, item(format!("UMK#{organization}#{}", self.key)).await]
    }

    /// Asserts that every committed number is the total plus the holds, and returns the holds of
    /// the organization and of the key.
    async fn assert_consistent(&self) -> [Vec<Amount>; 2] {
        self.items().await.map(|item| {
            let number = |name: &str| item[name].as_u64().unwrap_or(0);
            let attributes = item.as_object().unwrap().iter().filter(|(name, _)| name.starts_with('h'));
            let holds: Vec<Amount> = attributes.map(|(_, amount)| amount.as_str().unwrap().parse().unwrap()).collect();
            let held = holds.iter().fold(Amount::default(), |sum, amount| sum.plus(*amount));
            let input = number("i") + number("r") + number("w") + held.input_tokens;
            let output = number("o") + held.output_tokens;
            let cost = number("c") + u64::try_from(held.cost).unwrap();
            let committed = ["ki", "ko", "kt", "kc"].map(number);
            assert_eq!(committed, [input, output, input + output, cost], "{item}");
            holds
        })
    }

    async fn assert_holds(&self, organization: &[Amount], key: &[Amount]) {
        let [of_organization, of_key] = self.assert_consistent().await;
        assert_eq!((&*of_organization, &*of_key), (organization, key));
    }

    async fn reported(&self) -> Value {
        self.server.get("/v1/usage").send().await.expect(200)
    }
}

/// Asserts that every committed number equals what is spent, and that no turn holds anything.
pub(crate) async fn assert_all_released(server: &TestServer) {
    for item in server.scan("karta-usage").await {
        let number = |name: &str| item[name].as_u64().unwrap_or(0);
        let Some(fields) = item.as_object().filter(|_| item.get("kt").is_some()) else { continue };
        assert!(!fields.keys().any(|name| name.starts_with('h')), "a turn holds an amount: {item}");
        let (input, output) = (number("i") + number("r") + number("w"), number("o"));
        let spent = [input, output, input + output, number("c")];
        assert_eq!(["ki", "ko", "kt", "kc"].map(number), spent, "{item}");
    }
}

fn budget(json: &Value) -> Budget {
    serde_json::from_value(json.clone()).unwrap()
}

fn exhausted(kind: CapKind, of: CapOwner) -> Result<(), Exhausted> {
    Err(Exhausted::Cap { kind, of })
}

#[tokio::test(flavor = "multi_thread")]
async fn reservation_is_held_until_it_is_released() {
    let (turns, _clock) = Turns::start().await;
    let caps = budget(&json!({ "total_tokens": 1_000_000 }));
    let mut turn = turns.turn(1);
    for _ in 0..2 {
        turns.store.reserve(&mut turn, (Some(&caps), None), SLICE).await.unwrap().unwrap();
    }
    assert_eq!((turn.held_by_organization, turn.held_by_key), (SLICE.plus(SLICE), Amount::default()));
    turns.assert_holds(&[SLICE.plus(SLICE)], &[]).await;
    turns.store.reserve(&mut turn, (Some(&caps), Some(&caps)), SLICE).await.unwrap().unwrap();
    turns.assert_holds(&[SLICE.plus(SLICE).plus(SLICE)], &[SLICE]).await;
    for _ in 0..2 {
        turns.store.release_reservation(&turns.turn(1)).await.unwrap();
        turns.assert_holds(&[], &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_without_caps_writes_nothing() {
    let (turns, _clock) = Turns::start().await;
    let (mut turn, none) = (turns.turn(1), Budget::default());
    turns.store.reserve(&mut turn, (Some(&none), None), HUGE).await.unwrap().unwrap();
    turns.store.release_reservation(&turn).await.unwrap();
    assert_eq!((turn, turns.items().await), (turns.turn(1), [json!({}), json!({})]));
}

#[tokio::test(flavor = "multi_thread")]
async fn cap_refuses_only_when_nothing_is_left() {
    let (turns, _clock) = Turns::start().await;
    for (cap, kind) in [
        ("input_tokens", CapKind::InputTokens),
        ("output_tokens", CapKind::OutputTokens),
        ("total_tokens", CapKind::TotalTokens),
        ("cost_cents", CapKind::CostCents),
    ] {
        let caps = budget(&json!({ cap: 1 }));
        for (budgets, of) in [((Some(&caps), None), CapOwner::Organization), ((None, Some(&caps)), CapOwner::ApiKey)] {
            let (mut first, mut second) = (turns.turn(1), turns.turn(2));
            assert_eq!(turns.store.reserve(&mut first, budgets, HUGE).await.unwrap(), Ok(()), "{cap}");
            assert_eq!(turns.store.reserve(&mut first, budgets, SLICE).await.unwrap(), exhausted(kind, of));
            assert_eq!(turns.store.reserve(&mut second, budgets, SLICE).await.unwrap(), exhausted(kind, of));
            assert_eq!(second, turns.turn(2));
            turns.store.release_reservation(&first).await.unwrap();
            assert_eq!(turns.store.reserve(&mut second, budgets, SLICE).await.unwrap(), Ok(()), "{cap}");
            turns.store.release_reservation(&second).await.unwrap();
        }
        let none = budget(&json!({ cap: 0 }));
        let refused = turns.store.reserve(&mut turns.turn(1), (Some(&none), None), SLICE).await.unwrap();
        assert_eq!(refused, exhausted(kind, CapOwner::Organization));
    }
    turns.assert_holds(&[], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_refusal_undoes_the_organizations_hold() {
    let (turns, _clock) = Turns::start().await;
    let (wide, narrow) = (budget(&json!({ "total_tokens": 1_000_000 })), budget(&json!({ "output_tokens": 1_024 })));
    let mut turn = turns.turn(1);
    let budgets = (Some(&wide), Some(&narrow));
    turns.store.reserve(&mut turn, budgets, SLICE).await.unwrap().unwrap();
    let before = turn.clone();
    let refused = turns.store.reserve(&mut turn, budgets, SLICE).await.unwrap();
    assert_eq!(refused, exhausted(CapKind::OutputTokens, CapOwner::ApiKey));
    assert_eq!(turn, before);
    turns.assert_holds(&[SLICE], &[SLICE]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn racers_stay_within_one_slice_of_the_cap() {
    const CAP: u64 = 10_000;
    let (turns, _clock) = Turns::start().await;
    put(&turns.server, json!({ "total_tokens": CAP })).await;
    let mut racers = JoinSet::new();
    for number in 0..64 {
        let (store, mut turn) = (turns.store.clone(), turns.turn(number));
        racers.spawn(async move {
            let caps = budget(&json!({ "total_tokens": CAP }));
            // A busy store may time out. The turn then asks again.
            loop {
                if let Ok(answer) = store.reserve(&mut turn, (Some(&caps), Some(&caps)), SLICE).await {
                    return answer.map(|()| turn);
                }
            }
        });
    }
    let (reserved, refused): (Vec<_>, Vec<_>) = racers.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((reserved.len(), refused.len()), (7, 57), "1,500 tokens each");
    turns.assert_holds(&[SLICE; 7], &[SLICE; 7]).await;
    assert_eq!(turns.reported().await["totals"]["total_tokens"], 0);
    assert!(verdict(&turns.server, &turns.token).await.0, "reservations are not spent");
    for (at, turn) in reserved.into_iter().flatten().enumerate() {
        let events = [
            turns.event(&format!("{at} in"), UsageKind::InputTokens, SLICE.input_tokens),
            turns.event(&format!("{at} out"), UsageKind::OutputTokens, SLICE.output_tokens),
        ];
        turns.settle(&turn, &events).await.unwrap();
    }
    turns.assert_holds(&[], &[]).await;
    assert_eq!(turns.reported().await["totals"]["total_tokens"], 10_500);
}

#[tokio::test(flavor = "multi_thread")]
async fn older_items_are_completed_before_a_reservation() {
    let (turns, _clock) = Turns::start().await;
    spend(&turns.server, turns.key, 90).await;
    for partition in ["UMO".to_owned(), "UMK".to_owned()] {
        let own = if partition == "UMK" { format!("#{}", turns.key) } else { String::new() };
        let update = json!({
            "TableName": "karta-usage",
            "Key": {
                "pk": { "S": format!("{partition}#{}{own}", turns.server.organization_id) },
                "sk": { "S": turns.month().to_string() },
            },
            "UpdateExpression": "REMOVE ki, ko, kt, kc",
        });
        turns.server.dynamodb("UpdateItem", update).await;
    }
    // A later write of totals starts the committed numbers at zero.
    spend(&turns.server, turns.key, 5).await;
    assert_eq!(turns.items().await.map(|item| item["kt"].clone()), [5, 5].map(Value::from));
    let mut racers = JoinSet::new();
    for number in 0..8 {
        let (store, mut turn) = (turns.store.clone(), turns.turn(number));
        racers.spawn(async move {
            let (caps, spent) = (budget(&json!({ "total_tokens": 96 })), budget(&json!({ "total_tokens": 95 })));
            let refused = store.reserve(&mut turn.clone(), (Some(&spent), None), SLICE).await.unwrap();
            assert_eq!(refused, exhausted(CapKind::TotalTokens, CapOwner::Organization));
            store.reserve(&mut turn, (Some(&caps), Some(&caps)), SLICE).await.unwrap().is_ok()
        });
    }
    assert_eq!(racers.join_all().await.into_iter().filter(|is_admitted| *is_admitted).count(), 1);
    turns.assert_holds(&[SLICE], &[SLICE]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_responses_reserve_once() {
    let (server, proxy) = FaultProxy::start().await;
    let turns = Turns::on(server).await;
    let caps = budget(&json!({ "total_tokens": 1_000_000 }));
    let mut turn = turns.turn(1);
    for _ in 0..3 {
        proxy.fail("UpdateItem", 1, StoreFault::DropResponse);
        turns.store.reserve(&mut turn, (Some(&caps), None), SLICE).await.unwrap().unwrap();
    }
    turns.assert_holds(&[SLICE.plus(SLICE).plus(SLICE)], &[]).await;
    // More faults than the SDK retries.
    proxy.fail("UpdateItem", 16, StoreFault::DropResponse);
    turns.store.reserve(&mut turn, (Some(&caps), None), SLICE).await.unwrap_err();
    proxy.heal();
    turns.assert_holds(&[SLICE.plus(SLICE).plus(SLICE).plus(SLICE)], &[]).await;
    turns.store.reserve(&mut turn, (Some(&caps), None), SLICE).await.unwrap().unwrap();
    assert_eq!(turn.held_by_organization, SLICE.plus(SLICE).plus(SLICE).plus(SLICE), "the repeated call counts once");
    proxy.fail("UpdateItem", 1, StoreFault::DropResponse);
    turns.store.release_reservation(&turn).await.unwrap();
    turns.assert_holds(&[], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn second_settlement_counts_nothing() {
    let (turns, _clock) = Turns::start().await;
    let caps = budget(&json!({ "total_tokens": 1_000_000 }));
    let mut turn = turns.turn(1);
    turns.store.reserve(&mut turn, (Some(&caps), Some(&caps)), SLICE).await.unwrap().unwrap();
    let kinds =
        [UsageKind::InputTokens, UsageKind::OutputTokens, UsageKind::CacheReadTokens, UsageKind::CacheWriteTokens];
    let events = kinds.map(|kind| turns.event(&format!("{kind:?}"), kind, 10));
    turns.settle(&turn, &events).await.unwrap();
    turns.assert_holds(&[], &[]).await;
    let again = turns.settle(&turn, &events).await.unwrap_err();
    assert!(matches!(again, CommitError::Conflict(Conflict::EventCounted)), "{again:?}");
    assert_eq!(turns.reported().await["totals"]["total_tokens"], 40);
    let late = turns.store.reserve(&mut turn, (Some(&caps), None), SLICE).await.unwrap_err();
    assert!(matches!(late, StoreError::Fault(_)), "a settled turn reserves nothing more: {late:?}");
    turns.assert_holds(&[], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settlement_fails_if_counters_have_changed() {
    let (turns, _clock) = Turns::start().await;
    let caps = budget(&json!({ "total_tokens": 1_000_000 }));
    let (organization, mut turn) = (turns.organization(), turns.turn(1));
    let events = [turns.event("1", UsageKind::InputTokens, 10)];
    turns.store.reserve(&mut turn, (Some(&caps), None), SLICE).await.unwrap().unwrap();
    for change in ["hold", "model"] {
        let known = turns.store.known_counters(organization, turns.lineage, turns.month()).await.unwrap();
        match change {
            "hold" => turns.store.reserve(&mut turn, (Some(&caps), None), SLICE).await.unwrap().unwrap(),
            _ => spend(&turns.server, turns.key, 5).await,
        }
        let mut transaction = turns.store.transaction();
        transaction.count_usage(organization, &events, &known, Some(&turn), turns.now()).unwrap();
        let failed = transaction.commit().await.unwrap_err();
        assert!(matches!(failed, CommitError::Conflict(Conflict::Changed)), "{change}: {failed:?}");
        turns.assert_holds(&[SLICE.plus(SLICE)], &[]).await;
    }
    turns.settle(&turn, &events).await.unwrap();
    turns.assert_holds(&[], &[]).await;
    assert_eq!(turns.reported().await["totals"]["input_tokens"], 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_gives_back_the_hold() {
    let (turns, _clock) = Turns::start().await;
    let caps = budget(&json!({ "cost_cents": 100 }));
    for events in [vec![], vec![turns.event("1", UsageKind::OutputTokens, 10)]] {
        turns.store.reserve(&mut turns.turn(1), (Some(&caps), Some(&caps)), SLICE).await.unwrap().unwrap();
        turns.settle(&turns.turn(1), &events).await.unwrap();
        turns.assert_holds(&[], &[]).await;
    }
    assert_eq!(turns.reported().await["totals"]["total_tokens"], 10);
}

/// A step of the property test, of one of four turns.
#[derive(Debug, Clone)]
enum Step {
    /// Usage that a data plane reports.
    Report(u64),
    Reserve(usize, u64, u64),
    Release(usize),
    /// The end of a turn with this much usage of each kind.
    Settle(usize, [u64; 4]),
}

fn step() -> impl Strategy<Value = Step> {
    let (turn, tokens) = (0..4_usize, 1..3_000_u64);
    prop_oneof![
        2 => tokens.clone().prop_map(Step::Report),
        4 => (turn.clone(), tokens.clone(), tokens.clone()).prop_map(|(turn, input, output)| Step::Reserve(turn, input, output)),
        1 => turn.clone().prop_map(Step::Release),
        2 => (turn, [tokens.clone(), tokens.clone(), tokens.clone(), tokens]).prop_map(|(turn, used)| Step::Settle(turn, used)),
    ]
}

async fn committed_follows_every_step(steps: Vec<Step>) {
    let (turns, _clock) = Turns::start().await;
    let (organization, key) = (budget(&json!({ "total_tokens": 20_000 })), budget(&json!({ "output_tokens": 5_000 })));
    // A turn has a new id after its end.
    let mut running: Vec<_> = (0..4).map(|number| turns.turn(number)).collect();
    let mut spent = 0;
    for (at, step) in steps.into_iter().enumerate() {
        match step {
            Step::Report(tokens) => {
                spend(&turns.server, turns.key, tokens).await;
                spent += tokens;
            }
            Step::Reserve(turn, input_tokens, output_tokens) => {
                let amount = Amount { input_tokens, output_tokens, cost: (input_tokens + output_tokens).into() };
                let (turn, budgets) = (&mut running[turn], (Some(&organization), Some(&key)));
                let before = turn.clone();
                let answer = turns.store.reserve(turn, budgets, amount).await.unwrap();
                assert_eq!(answer.is_err(), *turn == before, "a refusal changes nothing");
            }
            Step::Release(turn) => {
                turns.store.release_reservation(&running[turn]).await.unwrap();
                running[turn] = turns.turn(100 + at);
            }
            Step::Settle(turn, used) => {
                let kinds = [
                    UsageKind::InputTokens,
                    UsageKind::OutputTokens,
                    UsageKind::CacheReadTokens,
                    UsageKind::CacheWriteTokens,
                ];
                let events =
                    kinds.iter().zip(used).map(|(kind, tokens)| turns.event(&format!("{at} {kind:?}"), *kind, tokens));
                turns.settle(&running[turn], &events.collect::<Vec<_>>()).await.unwrap();
                spent += used.iter().sum::<u64>();
                running[turn] = turns.turn(100 + at);
            }
        }
        let [of_organization, of_key] = turns.assert_consistent().await;
        let open = |held: fn(&Reservation) -> Amount| running.iter().map(held).filter(|held| !held.is_zero()).count();
        assert_eq!(of_organization.len(), open(|turn| turn.held_by_organization));
        assert_eq!(of_key.len(), open(|turn| turn.held_by_key));
        assert_eq!(turns.reported().await["totals"]["total_tokens"], spent);
    }
    for turn in &running {
        turns.store.release_reservation(turn).await.unwrap();
    }
    turns.assert_holds(&[], &[]).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn committed_equals_usage_and_holds(steps in proptest::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(committed_follows_every_step(steps));
    }
}
