//! Sessions in the store: claims, ends and takeovers of turns, lists, content, deletion and expiry.

use std::{sync::Arc, time::Duration};

use karta_shared::{
    clock::{Clock, ManualClock},
    config::Ring,
    domain::{
        Id, MessageId, MessageRole, Metadata, ModelId, NewSession, Provider, Retention, Session, SessionId,
        SessionProject, SessionReach, SessionUsage, Slug, StopReason, Timestamp, Turn, TurnId, TurnStatus, TurnUsage,
        UserId, Version,
    },
    entropy::OsEntropy,
    store::{
        CommitError, Conflict, SealedEvents, SealedMessage, SessionList, Store, TurnClaim, TurnLease, TurnRequest,
        TurnSettlement,
    },
    transcripts::{TranscriptContext, TranscriptPart},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::harness::TestServer;

const TABLE: &str = "karta-sessions";
const LEASE: Duration = Duration::from_secs(30);

/// The part of the budgets that a turn holds, for tests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    tokens: u64,
    cost: u128,
}

struct Sessions {
    server: TestServer,
    clock: Arc<ManualClock>,
    organization: Id,
}

impl Sessions {
    async fn start() -> Self {
        let (server, clock) = TestServer::start_at_noon().await;
        let organization = Id::new(server.organization_id).unwrap();
        Self { server, clock, organization }
    }

    fn store(&self) -> &Store {
        &self.server.runner.app.store
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Creates a session in its lists.
    async fn create(&self, project: Option<u64>, user: Option<&str>) -> Session {
        let new = NewSession {
            id: SessionId::draw(&OsEntropy),
            list_id: Id::draw(self.now(), &OsEntropy),
            metadata: Metadata::default(),
            user_id: user.map(user_id),
            created_by_token: user.is_some(),
            api_key_id: id(3),
            project: project.map(|project| SessionProject {
                id: id(project),
                slug: Slug::try_from("app".to_owned()).unwrap(),
                version: Version::FIRST,
            }),
        };
        let session = Session::new(new, Retention::default(), self.now());
        let mut transaction = self.store().transaction();
        transaction.create_session(self.organization, &session).unwrap();
        transaction.commit().await.unwrap();
        session
    }

    async fn read(&self, session: &SessionId) -> Session {
        self.store().session(self.organization, session).await.unwrap().unwrap()
    }

    fn next_turn(&self, session: &Session) -> Turn {
        Turn {
            id: TurnId::draw(&OsEntropy),
            number: session.turns + 1,
            status: TurnStatus::Running,
            model: ModelId::try_from("claude-sonnet-4-5".to_owned()).unwrap(),
            provider: Provider::Anthropic,
            api_key_id: id(3),
            lineage_id: id(3),
            model_key_id: id(4),
            user_message_id: MessageId::draw(&OsEntropy),
            assistant_message_id: MessageId::draw(&OsEntropy),
            is_streamed: true,
            started_at: self.now(),
            ended_at: None,
            input_estimate: 10,
            max_tokens: 4_096,
            hides_output: false,
            price: None,
            usage: TurnUsage::default(),
            estimated: false,
            stop_reason: None,
            error_code: None,
            exhausted: None,
            retry_at: None,
            idempotency_hash: None,
            cancel_requested: false,
            last_seq: 0,
            ended_by_sweep: false,
        }
    }

    async fn message(&self, session: &SessionId, turn: &Turn, role: MessageRole, text: &[u8]) -> SealedMessage {
        let ring = self.server.runner.app.secrets.ring(Ring::SealingSessions).await.unwrap();
        let context = TranscriptContext { organization: self.organization, session, turn: &turn.id };
        let id = if role == MessageRole::User { &turn.user_message_id } else { &turn.assistant_message_id };
        SealedMessage {
            id: id.clone(),
            turn_id: turn.id.clone(),
            turn_number: turn.number,
            role,
            created_at: self.now(),
            content: context.seal(&ring, &OsEntropy, TranscriptPart::Message(role), text),
        }
    }

    async fn open(&self, session: &SessionId, message: &SealedMessage) -> Vec<u8> {
        let ring = self.server.runner.app.secrets.ring(Ring::SealingSessions).await.unwrap();
        let context = TranscriptContext { organization: self.organization, session, turn: &message.turn_id };
        context.open(&ring, TranscriptPart::Message(message.role), &message.content).unwrap().to_vec()
    }

    async fn events(&self, session: &SessionId, turn: &TurnId, first_seq: u32, last_seq: u32) -> SealedEvents {
        let ring = self.server.runner.app.secrets.ring(Ring::SealingSessions).await.unwrap();
        let context = TranscriptContext { organization: self.organization, session, turn };
        let sealed = context.seal(&ring, &OsEntropy, TranscriptPart::Events { first_seq }, b"events");
        SealedEvents::new(first_seq, last_seq, sealed, self.now())
    }

    async fn claim_with(
        &self,
        session: &Session,
        turn: &Turn,
        text: &[u8],
        request: Option<TurnRequest<'_>>,
    ) -> Result<(), CommitError> {
        let message = self.message(&session.id, turn, MessageRole::User, text).await;
        let claim = TurnClaim {
            session,
            turn,
            message: &message,
            leased_until: self.now().plus(LEASE),
            reservation: Some(&Held { tokens: 7, cost: 1 << 70 }),
            request,
        };
        let mut transaction = self.store().transaction();
        transaction.claim_turn(self.organization, &claim, self.now())?;
        transaction.commit().await
    }

    /// Starts a turn on the session as it is stored.
    async fn claim(&self, session: &SessionId) -> Turn {
        let session = self.read(session).await;
        let turn = self.next_turn(&session);
        self.claim_with(&session, &turn, b"hello", None).await.unwrap();
        turn
    }

    async fn settle(&self, session: &SessionId, turn: &Turn, status: TurnStatus) -> Result<(), CommitError> {
        self.settle_with(session, turn, status, None, None).await
    }

    async fn settle_with(
        &self,
        session: &SessionId,
        turn: &Turn,
        status: TurnStatus,
        answer: Option<&[u8]>,
        events: Option<&SealedEvents>,
    ) -> Result<(), CommitError> {
        let usage = TurnUsage { input_tokens: 10, output_tokens: 5, cache_read_tokens: 2, cache_write_tokens: 1 };
        let ended = Turn { status, usage, ended_at: Some(self.now()), last_seq: 9, ..turn.clone() };
        let last = self.events(session, &turn.id, 9, 9).await;
        let message = match answer {
            Some(text) => Some(self.message(session, turn, MessageRole::Assistant, text).await),
            None => None,
        };
        let settlement = TurnSettlement {
            session,
            leased_until: None,
            turn: &ended,
            usage: SessionUsage::of_turn(&usage, 100),
            expires_at: Retention::default().expires_at(self.now()),
            message: message.as_ref(),
            events: events.unwrap_or(&last),
        };
        let mut transaction = self.store().transaction();
        transaction.settle_turn(self.organization, &settlement, self.now())?;
        transaction.commit().await
    }

    async fn delete(&self, session: &Session) -> Result<(), CommitError> {
        let mut transaction = self.store().transaction();
        transaction.delete_session(self.organization, session, self.now())?;
        transaction.commit().await
    }

    async fn list(&self, list: SessionList<'_>) -> Vec<SessionId> {
        let (mut ids, mut below) = (Vec::new(), None);
        loop {
            let page = self.store().sessions(self.organization, list, below, 2, self.now()).await.unwrap();
            assert!(page.items.len() <= 2);
            ids.extend(page.items.into_iter().map(|session| session.id));
            below = page.resume_below;
            if below.is_none() {
                return ids;
            }
        }
    }

    /// Reads all items of the table, of every organization.
    async fn stored(&self) -> Vec<Value> {
        let answer = self.server.dynamodb("Scan", json!({ "TableName": TABLE })).await;
        answer["Items"].as_array().unwrap().clone()
    }
}

fn id(value: u64) -> Id {
    Id::new(value).unwrap()
}

fn user_id(name: &str) -> UserId {
    UserId::try_from(name.to_owned()).unwrap()
}

fn conflict(outcome: Result<(), CommitError>) -> Conflict {
    match outcome {
        Err(CommitError::Conflict(conflict)) => conflict,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_claims_wins() {
    let sessions = Sessions::start().await;
    let session = sessions.create(None, None).await;
    let turns = [sessions.next_turn(&session), sessions.next_turn(&session)];
    let outcomes = tokio::join!(
        sessions.claim_with(&session, &turns[0], b"one", None),
        sessions.claim_with(&session, &turns[1], b"two", None),
    );
    let (winner, lost) = match outcomes {
        (Ok(()), lost) => (&turns[0], lost),
        (lost, won) => {
            won.unwrap();
            (&turns[1], lost)
        }
    };
    assert_eq!(conflict(lost), Conflict::TurnInProgress);
    let claimed = sessions.read(&session.id).await;
    assert_eq!((claimed.open_turn.as_ref(), claimed.turns), (Some(&winner.id), 1));
    assert_eq!(claimed.last_turn.unwrap().status, TurnStatus::Running);
    let stored = sessions.store().turn(sessions.organization, &session.id, &winner.id).await.unwrap().unwrap();
    assert_eq!(stored.turn, *winner);
    assert_eq!(stored.reservation::<Held>().unwrap(), Some(Held { tokens: 7, cost: 1 << 70 }));
    assert_eq!(sessions.store().history(sessions.organization, &session.id).await.unwrap().messages.len(), 1);
    // A claim by the state before a turn that has ended since fails too.
    sessions.settle(&session.id, winner, TurnStatus::Completed).await.unwrap();
    let stale = sessions.next_turn(&session);
    assert_eq!(conflict(sessions.claim_with(&session, &stale, b"three", None).await), Conflict::TurnInProgress);
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_settles_once() {
    let sessions = Sessions::start().await;
    let session = sessions.create(None, None).await.id;
    let turn = sessions.claim(&session).await;
    let events = sessions.events(&session, &turn.id, 1, 9).await;
    let settle = || sessions.settle_with(&session, &turn, TurnStatus::Completed, Some(b"hi"), Some(&events));
    settle().await.unwrap();
    assert_eq!(conflict(settle().await), Conflict::TurnSettled);
    let outcome = sessions.settle(&session, &turn, TurnStatus::Interrupted).await;
    assert_eq!(conflict(outcome), Conflict::TurnSettled);
    let settled = sessions.read(&session).await;
    assert_eq!(
        (settled.open_turn, settled.usage),
        (None, SessionUsage { input_tokens: 13, output_tokens: 5, cost: 100 })
    );
    assert_eq!(settled.last_turn.unwrap().status, TurnStatus::Completed);
    let stored = sessions.store().turn(sessions.organization, &session, &turn.id).await.unwrap().unwrap();
    assert_eq!((stored.turn.status, stored.reservation::<Held>().unwrap()), (TurnStatus::Completed, None));
    let second = sessions.claim(&session).await;
    sessions.settle(&session, &second, TurnStatus::Failed).await.unwrap();
    assert_eq!(sessions.read(&session).await.usage, SessionUsage { input_tokens: 26, output_tokens: 10, cost: 200 });
}

#[tokio::test(flavor = "multi_thread")]
async fn sweep_takes_over_lost_turns() {
    let sessions = Sessions::start().await;
    let (store, organization) = (sessions.store(), sessions.organization);
    let session = sessions.create(None, None).await.id;
    let turn = sessions.claim(&session).await;
    let renew =
        async || store.renew_turn_lease(organization, &session, &turn.id, sessions.now().plus(LEASE)).await.unwrap();
    let due = async || store.due_turns(sessions.now()).await.unwrap();
    sessions.clock.advance(Duration::from_secs(20));
    assert_eq!(renew().await, TurnLease::Held { cancel_requested: false });
    sessions.clock.advance(Duration::from_secs(20));
    assert!(due().await.items.is_empty(), "the lease was renewed");
    assert!(store.request_turn_cancel(organization, &session, &turn.id).await.unwrap());
    assert_eq!(renew().await, TurnLease::Held { cancel_requested: true });
    sessions.clock.advance(LEASE);
    let found = due().await;
    assert_eq!(found.oldest, Some(sessions.now()));
    let [found] = &found.items[..] else { panic!("{found:?}") };
    assert_eq!((found.organization_id, &found.session_id, &found.turn_id), (organization, &session, &turn.id));
    let stored = store.turn(organization, &session, &found.turn_id).await.unwrap().unwrap();
    assert_eq!(stored.reservation::<Held>().unwrap(), Some(Held { tokens: 7, cost: 1 << 70 }));
    for status in [TurnStatus::Failed, TurnStatus::Interrupted] {
        // An accepted request to cancel is kept.
        assert_eq!(conflict(sessions.settle(&session, &stored.turn, status).await), Conflict::TurnSettled);
    }
    sessions.settle(&session, &stored.turn, TurnStatus::Cancelled).await.unwrap();
    assert_eq!(renew().await, TurnLease::Ended);
    assert!(!store.request_turn_cancel(organization, &session, &turn.id).await.unwrap());
    assert_eq!(conflict(sessions.settle(&session, &turn, TurnStatus::Completed).await), Conflict::TurnSettled);
    assert!(due().await.items.is_empty());
    let missing = TurnId::draw(&OsEntropy);
    let until = sessions.now().plus(LEASE);
    assert_eq!(store.renew_turn_lease(organization, &session, &missing, until).await.unwrap(), TurnLease::Ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_read_from_any_number() {
    let sessions = Sessions::start().await;
    let (store, organization) = (sessions.store(), sessions.organization);
    let session = sessions.create(None, None).await.id;
    let turn = sessions.claim(&session).await;
    let other = TurnId::draw(&OsEntropy);
    for (of, first, last) in [(&turn.id, 1, 3), (&turn.id, 4, 4), (&turn.id, 5, 12), (&other, 1, 1)] {
        let events = sessions.events(&session, of, first, last).await;
        assert!(store.append_turn_events(organization, &session, of, &events).await.unwrap());
    }
    let starts = async |after| {
        let batches = store.turn_events(organization, &session, &turn.id, after, sessions.now()).await.unwrap();
        batches.into_iter().map(|batch| batch.first_seq).collect::<Vec<_>>()
    };
    for (after, expected) in
        [(0, &[1, 4, 5][..]), (1, &[1, 4, 5]), (3, &[4, 5]), (4, &[5]), (5, &[5]), (11, &[5]), (12, &[]), (99, &[])]
    {
        assert_eq!(starts(after).await, expected, "after {after}");
    }
    let next = store.next_turn_events(organization, &session, &turn.id, 4, sessions.now()).await.unwrap();
    assert_eq!(next.len(), 1);
    assert!(
        store.next_turn_events(organization, &session, &turn.id, u32::MAX, sessions.now()).await.unwrap().is_empty()
    );
    // Another process has written these numbers.
    let late = sessions.events(&session, &turn.id, 5, 6).await;
    assert!(!store.append_turn_events(organization, &session, &turn.id, &late).await.unwrap());
    // The turn's own process may have written them with a lost response.
    sessions.settle_with(&session, &turn, TurnStatus::Completed, None, Some(&late)).await.unwrap();
    assert_eq!(starts(0).await, [1, 4, 5]);
    // A turn may have taken a quarter of an hour since its first events.
    sessions.clock.advance(Duration::from_hours(24) + Duration::from_mins(15));
    assert_eq!(starts(0).await, [1, 4, 5]);
    sessions.clock.advance(Duration::from_mins(2));
    assert_eq!(starts(0).await, [0; 0], "expired events are not returned");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_are_joined_and_paged() {
    let sessions = Sessions::start().await;
    let (store, organization) = (sessions.store(), sessions.organization);
    let mut session = sessions.create(None, None).await;
    let mut expected = Vec::new();
    for (asked, answered) in [(10, Some(800_000)), (350_000, Some(20)), (5, None), (700_000, Some(400_000))] {
        let turn = sessions.next_turn(&session);
        let asked = vec![b'q'; asked];
        sessions.claim_with(&session, &turn, &asked, None).await.unwrap();
        let answered = answered.map(|length| vec![b'a'; length]);
        sessions.settle_with(&session.id, &turn, TurnStatus::Completed, answered.as_deref(), None).await.unwrap();
        expected.extend([Some(asked), answered].into_iter().flatten());
        session = sessions.read(&session.id).await;
    }
    let history = store.history(organization, &session.id).await.unwrap().messages;
    let mut opened = Vec::new();
    for message in &history {
        opened.push(sessions.open(&session.id, message).await);
    }
    assert!(opened == expected, "{:?}", opened.iter().map(Vec::len).collect::<Vec<_>>());
    for limit in [1, 2, 100] {
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let page = store.messages(organization, &session.id, after, limit).await.unwrap();
            assert!((1..=limit).contains(&page.messages.len()));
            paged.extend(page.messages);
            after = page.resume_after;
            if after.is_none() {
                break;
            }
        }
        assert!(paged == history, "pages of {limit}");
    }
    let turn = sessions.next_turn(&session);
    assert!(matches!(
        sessions.claim_with(&session, &turn, &vec![b'q'; 3_000_000], None).await,
        Err(CommitError::Store(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_newest_first_and_separate() {
    let sessions = Sessions::start().await;
    let mut created = Vec::new();
    for (project, user) in [
        (None, None),
        (Some(7), None),
        (Some(7), Some("ann")),
        (Some(8), Some("ann")),
        (None, Some("ann")),
        (Some(7), Some("bob")),
    ] {
        created.push(sessions.create(project, user).await.id);
        sessions.clock.advance(Duration::from_secs(1));
    }
    let (ann, eve) = (user_id("ann"), user_id("eve"));
    let user = |project: Option<u64>, user| SessionList::User { project: project.map(id), user };
    for (list, expected) in [
        (SessionList::Organization, &[5, 4, 3, 2, 1, 0][..]),
        (SessionList::Project(id(7)), &[5, 2, 1]),
        (SessionList::Project(id(9)), &[]),
        (user(Some(7), &ann), &[2]),
        (user(Some(8), &ann), &[3]),
        (user(None, &ann), &[4, 3, 2]),
        (user(None, &eve), &[]),
    ] {
        let expected: Vec<_> = expected.iter().map(|index: &usize| created[*index].clone()).collect();
        assert_eq!(sessions.list(list).await, expected, "{list:?}");
    }
    // A deleted session leaves all lists at once, an expired one without any write.
    let deleted = sessions.read(&created[2]).await;
    sessions.delete(&deleted).await.unwrap();
    assert_eq!(sessions.list(user(Some(7), &ann)).await, []);
    assert_eq!(sessions.list(user(None, &ann)).await, [created[4].clone(), created[3].clone()]);
    assert_eq!(sessions.list(SessionList::Organization).await.len(), 5);
    sessions.clock.advance(Duration::from_hours(30 * 24) - Duration::from_secs(2));
    assert_eq!(sessions.list(SessionList::Organization).await, [created[5].clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_leaves_no_item() {
    let sessions = Sessions::start().await;
    let (store, organization) = (sessions.store(), sessions.organization);
    let kept = sessions.create(Some(7), Some("bob")).await;
    let before = sessions.stored().await.len();
    let session = sessions.create(Some(7), Some("ann")).await;
    let turn = sessions.claim(&session.id).await;
    assert_eq!(conflict(sessions.delete(&session).await), Conflict::TurnInProgress);
    for seq in 1..=60 {
        let events = sessions.events(&session.id, &turn.id, seq, seq).await;
        store.append_turn_events(organization, &session.id, &turn.id, &events).await.unwrap();
    }
    let answer = vec![b'a'; 800_000];
    sessions.settle_with(&session.id, &turn, TurnStatus::Completed, Some(&answer), None).await.unwrap();
    let delete_content =
        async || store.delete_session_content(organization, &session.id, sessions.now()).await.unwrap();
    assert!(!delete_content().await, "the session is not due");
    sessions.delete(&session).await.unwrap();
    assert_eq!(conflict(sessions.delete(&session).await), Conflict::SessionGone);
    let deleted = sessions.read(&session.id).await;
    assert!(!deleted.is_reachable(&SessionReach::Organization, sessions.now()));
    let late = sessions.next_turn(&deleted);
    assert_eq!(conflict(sessions.claim_with(&deleted, &late, b"late", None).await), Conflict::TurnInProgress);
    let due = store.due_sessions(sessions.now()).await.unwrap();
    let [due] = &due.items[..] else { panic!("{due:?}") };
    assert_eq!((due.organization_id, &due.session_id), (organization, &session.id));
    assert!(delete_content().await);
    assert_eq!(sessions.stored().await.len(), before);
    assert!(!delete_content().await, "nothing is left");
    assert_eq!(sessions.read(&kept.id).await, kept);
    assert!(store.due_sessions(sessions.now()).await.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_session_is_deleted_without_request() {
    let sessions = Sessions::start().await;
    let (store, organization) = (sessions.store(), sessions.organization);
    let session = sessions.create(Some(7), None).await;
    sessions.clock.advance(Duration::from_hours(30 * 24) - Duration::from_secs(1));
    let turn = sessions.claim(&session.id).await;
    sessions.clock.advance(Duration::from_secs(2));
    let delete_content =
        async || store.delete_session_content(organization, &session.id, sessions.now()).await.unwrap();
    let running = sessions.read(&session.id).await;
    assert!(running.exists(sessions.now()) && !delete_content().await, "a turn is running");
    sessions.settle(&session.id, &turn, TurnStatus::Completed).await.unwrap();
    assert!(!delete_content().await, "the turn has renewed the session");
    assert!(store.due_sessions(sessions.now()).await.unwrap().items.is_empty());
    sessions.clock.advance(Duration::from_hours(30 * 24));
    assert!(!sessions.read(&session.id).await.exists(sessions.now()));
    assert_eq!(store.due_sessions(sessions.now()).await.unwrap().items.len(), 1);
    assert!(delete_content().await);
    assert_eq!(sessions.stored().await, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_request_finds_its_turn() {
    let sessions = Sessions::start().await;
    let (store, organization) = (sessions.store(), sessions.organization);
    let session = sessions.create(None, None).await;
    let request = TurnRequest { hash: "abc", fingerprint: "f1", replaces: None };
    let turn = sessions.next_turn(&session);
    sessions.claim_with(&session, &turn, b"one", Some(request)).await.unwrap();
    let record = store.turn_record(organization, "abc", sessions.now()).await.unwrap().unwrap();
    assert_eq!((&record.session_id, &record.turn_id, record.fingerprint.as_str()), (&session.id, &turn.id, "f1"));
    assert!(store.turn_record(id(999), "abc", sessions.now()).await.unwrap().is_none());
    // The key was used before it matters that a turn runs.
    let again = sessions.next_turn(&session);
    assert_eq!(conflict(sessions.claim_with(&session, &again, b"one", Some(request)).await), Conflict::Remembered);
    sessions.settle(&session.id, &turn, TurnStatus::Failed).await.unwrap();
    let session = sessions.read(&session.id).await;
    let again = sessions.next_turn(&session);
    assert_eq!(conflict(sessions.claim_with(&session, &again, b"one", Some(request)).await), Conflict::Remembered);
    let replacing = TurnRequest { replaces: Some(&turn.id), ..request };
    sessions.claim_with(&session, &again, b"one", Some(replacing)).await.unwrap();
    let record = store.turn_record(organization, "abc", sessions.now()).await.unwrap().unwrap();
    assert_eq!(record.turn_id, again.id);
    sessions.clock.advance(Duration::from_hours(24));
    assert!(store.turn_record(organization, "abc", sessions.now()).await.unwrap().is_none(), "it has expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_organizations_find_nothing() {
    let sessions = Sessions::start().await;
    let store = sessions.store();
    let session = sessions.create(Some(7), Some("ann")).await;
    let turn = sessions.claim(&session.id).await;
    let (other, _) = sessions.server.another_organization("globex").await;
    let other = id(other);
    assert!(store.session(other, &session.id).await.unwrap().is_none());
    assert!(store.turn(other, &session.id, &turn.id).await.unwrap().is_none());
    assert!(store.history(other, &session.id).await.unwrap().messages.is_empty());
    assert!(!store.request_turn_cancel(other, &session.id, &turn.id).await.unwrap());
    assert!(!store.delete_session_content(other, &session.id, sessions.now()).await.unwrap());
    let ann = user_id("ann");
    for list in [
        SessionList::Organization,
        SessionList::Project(id(7)),
        SessionList::User { project: Some(id(7)), user: &ann },
        SessionList::User { project: None, user: &ann },
    ] {
        assert!(store.sessions(other, list, None, 10, sessions.now()).await.unwrap().items.is_empty(), "{list:?}");
    }
    let reach = SessionReach::User { project: id(7), user: Some(user_id("bob")) };
    assert!(!sessions.read(&session.id).await.is_reachable(&reach, sessions.now()));
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_state_joins_all_tables() {
    let sessions = Sessions::start().await;
    let (store, organization, server) = (sessions.store(), sessions.organization, &sessions.server);
    let session = sessions.create(None, None).await;
    let (key, _) = server.key(&["write"]).await;
    let project = server.project("app").await;
    let provider_key = crate::model_keys::provider_key("sk-ant-");
    let created =
        server.post("/v1/model_keys", json!({ "provider": "anthropic", "key": provider_key })).send().await.expect(201);
    let model_key = id(created["model_key"]["id"].as_u64().unwrap());
    server.request(http::Method::PUT, "/v1/budget").body(json!({ "total_tokens": 10 })).send().await.expect(200);
    let state = store.turn_state(organization, Some(&session.id), id(key), id(key), sessions.now()).await.unwrap();
    assert_eq!(
        (state.session, state.key.api_key.id, state.key.organization.id),
        (Some(session), id(key), organization)
    );
    assert!(state.spending.organization_budget.is_some());
    assert_eq!(state.model_keys[&Provider::Anthropic].model_key_id, model_key);
    assert_eq!(state.model_keys.len(), 1);
    let missing = SessionId::draw(&OsEntropy);
    let state = store.turn_state(organization, Some(&missing), id(key), id(key), sessions.now()).await.unwrap();
    assert_eq!(state.session, None);
    let settings = store.turn_settings(organization, Some(id(project)), &[model_key, id(5)]).await.unwrap();
    assert_eq!(settings.project.unwrap().id, id(project));
    assert_eq!(settings.model_keys.iter().map(|(key, _)| key.id).collect::<Vec<_>>(), [model_key]);
    assert!(store.turn_settings(organization, None, &[]).await.unwrap().model_keys.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn items_without_later_attributes_are_readable() {
    let sessions = Sessions::start().await;
    let session = sessions.create(None, None).await;
    let turn = sessions.claim(&session.id).await;
    let pk = format!("SES#{}#{}", sessions.organization, session.id);
    let turn_key = format!("T#{}", turn.id);
    let absent = [
        ("META", &["metadata", "user_id", "project", "last_turn", "deleted_at"][..]),
        (turn_key.as_str(), &["usage", "estimated", "cancel_requested", "last_seq", "reservation", "stop_reason"]),
    ];
    for (sk, names) in absent {
        let names: serde_json::Map<_, _> =
            names.iter().enumerate().map(|(at, name)| (format!("#{at}"), json!(name))).collect();
        let removed = names.keys().cloned().collect::<Vec<_>>().join(", ");
        let update = json!({
            "TableName": TABLE,
            "Key": { "pk": { "S": pk }, "sk": { "S": sk } },
            "UpdateExpression": format!("REMOVE {removed}"),
            "ExpressionAttributeNames": names,
        });
        sessions.server.dynamodb("UpdateItem", update).await;
    }
    assert_eq!(sessions.read(&session.id).await.last_turn, None);
    let stored = sessions.store().turn(sessions.organization, &session.id, &turn.id).await.unwrap().unwrap();
    assert_eq!(stored.reservation::<Held>().unwrap(), None);
    assert_eq!(stored.turn, turn);
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_turn_keeps_its_details() {
    let sessions = Sessions::start().await;
    let session = sessions.create(None, None).await.id;
    let turn = sessions.claim(&session).await;
    let ended = Turn {
        stop_reason: Some(StopReason::MaxTokens),
        error_code: Some("provider_error".to_owned()),
        price: Some(serde_json::from_value(json!({ "input": 1, "output": 2, "cache_read": 3 })).unwrap()),
        estimated: true,
        idempotency_hash: Some("abc".to_owned()),
        ..turn
    };
    sessions.settle(&session, &ended, TurnStatus::Failed).await.unwrap();
    let stored = sessions.store().turn(sessions.organization, &session, &ended.id).await.unwrap().unwrap().turn;
    let usage = TurnUsage { input_tokens: 10, output_tokens: 5, cache_read_tokens: 2, cache_write_tokens: 1 };
    let expected = Turn { status: TurnStatus::Failed, usage, ended_at: Some(sessions.now()), last_seq: 9, ..ended };
    assert_eq!(stored, expected);
    assert!(sessions.stored().await.iter().all(|item| !item.to_string().contains("hello")), "messages are sealed");
}
