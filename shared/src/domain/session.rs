use std::{str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Id, Invalid, Metadata, SessionId, Slug, Timestamp, Turn, TurnId, TurnStatus, TurnUsage, UserId, Version};

/// A conversation: an ordered list of turns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub id: SessionId,
    /// Sorts the session in its lists, newest first.
    pub list_id: Id,
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
    /// The end user that the session belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Whether a session token created the session, and not an API key.
    pub created_by_token: bool,
    /// The key that created the session, or that minted the token that did.
    pub api_key_id: Id,
    /// `None` for a session that belongs to no project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<SessionProject>,
    /// Number of turns that were started. A turn's number is the count that includes it.
    pub turns: u64,
    /// The running turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_turn: Option<TurnId>,
    /// The turn that was started last, which may be the running one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_turn: Option<LastTurn>,
    /// Sums of the turns that ended.
    #[serde(flatten)]
    pub usage: SessionUsage,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// When the session stops existing, unless a turn starts before.
    pub expires_at: Timestamp,
    /// When the session was deleted. Its content is deleted later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
}

/// The project of a session, and the release that the session is pinned to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionProject {
    pub id: Id,
    pub slug: Slug,
    pub version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastTurn {
    pub id: TurnId,
    pub status: TurnStatus,
    pub started_at: Timestamp,
}

/// Usage of a session's turns. `input_tokens` includes tokens that were read from and written to
/// the provider's cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionUsage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Cost in nano-cents.
    pub cost: u64,
}

/// The properties of a new session.
#[derive(Debug, Clone)]
pub struct NewSession {
    pub id: SessionId,
    pub list_id: Id,
    pub metadata: Metadata,
    pub user_id: Option<UserId>,
    pub created_by_token: bool,
    pub api_key_id: Id,
    pub project: Option<SessionProject>,
}

/// The sessions that a caller can reach within its organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionReach {
    /// An API key on the routes without a project reaches every session.
    Organization,
    /// An API key on a project's routes reaches the sessions of this project.
    Project(Slug),
    /// A session token reaches the sessions of its project and user. A token without a user
    /// reaches the sessions without a user.
    User { project: Id, user: Option<UserId> },
}

/// How long a session is kept after its last turn: 1 to 3,650 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    days: u32,
}

impl Session {
    pub fn new(new: NewSession, retention: Retention, now: Timestamp) -> Self {
        let NewSession { id, list_id, metadata, user_id, created_by_token, api_key_id, project } = new;
        Self {
            id,
            list_id,
            metadata,
            user_id,
            created_by_token,
            api_key_id,
            project,
            turns: 0,
            open_turn: None,
            last_turn: None,
            usage: SessionUsage::default(),
            created_at: now,
            updated_at: now,
            expires_at: retention.expires_at(now),
            deleted_at: None,
        }
    }

    /// Returns whether a caller with this reach may know that the session exists. No caller may know
    /// of a deleted or expired session.
    pub fn is_reachable(&self, reach: &SessionReach, now: Timestamp) -> bool {
        self.exists(now)
            && match reach {
                SessionReach::Organization => true,
                SessionReach::Project(slug) => self.project.as_ref().is_some_and(|of| of.slug == *slug),
                SessionReach::User { project, user } => self.is_of_project(*project) && self.user_id == *user,
            }
    }

    /// Returns whether the session is neither deleted nor expired. It does not expire while a turn
    /// runs.
    pub fn exists(&self, now: Timestamp) -> bool {
        self.deleted_at.is_none() && (self.open_turn.is_some() || now < self.expires_at)
    }

    /// Returns whether API keys need `transcript_access` to read the session's content: it belongs to
    /// a user, or a session token created it.
    pub fn is_private(&self) -> bool {
        self.created_by_token || self.user_id.is_some()
    }

    fn is_of_project(&self, project: Id) -> bool {
        self.project.as_ref().is_some_and(|of| of.id == project)
    }
}

impl LastTurn {
    pub fn new(turn: &Turn) -> Self {
        Self { id: turn.id.clone(), status: turn.status, started_at: turn.started_at }
    }
}

impl SessionUsage {
    /// Returns what a turn adds. Sums saturate.
    pub fn of_turn(usage: &TurnUsage, cost: u128) -> Self {
        let input = [usage.cache_read_tokens, usage.cache_write_tokens];
        Self {
            input_tokens: input.into_iter().fold(usage.input_tokens, u64::saturating_add),
            output_tokens: usage.output_tokens,
            cost: u64::try_from(cost).unwrap_or(u64::MAX),
        }
    }
}

impl Retention {
    const MAX_DAYS: u32 = 3_650;

    pub fn expires_at(self, last_turn: Timestamp) -> Timestamp {
        last_turn.plus(Duration::from_hours(24 * u64::from(self.days)))
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { days: 30 }
    }
}

impl FromStr for Retention {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // `parse` also accepts a sign.
        let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let days = digits.and_then(|text| text.parse().ok()).filter(|days| (1..=Self::MAX_DAYS).contains(days));
        days.map(|days| Self { days }).ok_or(Invalid::new("must be a number of days from 1 to 3650"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::SeededEntropy;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn id(id: u64) -> Id {
        Id::new(id).unwrap()
    }

    fn slug(project: u64) -> Slug {
        Slug::try_from(format!("app-{project}")).unwrap()
    }

    fn user(name: &str) -> UserId {
        UserId::try_from(name.to_owned()).unwrap()
    }

    fn session(project: Option<u64>, user_id: Option<UserId>) -> Session {
        let new = NewSession {
            id: SessionId::draw(&SeededEntropy::new(1)),
            list_id: id(1),
            metadata: Metadata::default(),
            user_id,
            created_by_token: true,
            api_key_id: id(2),
            project: project.map(|of| SessionProject { id: id(of), slug: slug(of), version: Version::FIRST }),
        };
        Session::new(new, Retention::default(), now())
    }

    #[test]
    fn reach_compares_project_and_user() {
        let reaches = [
            SessionReach::Organization,
            SessionReach::Project(slug(7)),
            SessionReach::User { project: id(7), user: Some(user("ann")) },
            SessionReach::User { project: id(7), user: None },
        ];
        for (session, expected) in [
            (session(None, None), [true, false, false, false]),
            (session(None, Some(user("ann"))), [true, false, false, false]),
            (session(Some(7), None), [true, true, false, true]),
            (session(Some(7), Some(user("ann"))), [true, true, true, false]),
            (session(Some(7), Some(user("Ann"))), [true, true, false, false]),
            (session(Some(8), Some(user("ann"))), [true, false, false, false]),
        ] {
            assert_eq!(reaches.each_ref().map(|reach| session.is_reachable(reach, now())), expected, "{session:?}");
        }
    }

    #[test]
    fn deleted_or_expired_session_is_unreachable() {
        let mut session = session(Some(7), None);
        let is_reachable = |session: &Session, at| session.is_reachable(&SessionReach::Organization, at);
        let end = "2026-12-21T12:00:00Z".parse().unwrap();
        assert_eq!(session.expires_at, end);
        assert!(is_reachable(&session, end.minus(Duration::from_millis(1))) && !is_reachable(&session, end));
        session.open_turn = Some(TurnId::draw(&SeededEntropy::new(1)));
        assert!(is_reachable(&session, end), "a turn is running");
        session.deleted_at = Some(now());
        assert!(!is_reachable(&session, now()));
    }

    #[test]
    fn session_input_includes_cache_tokens() {
        let usage = TurnUsage { input_tokens: 1, output_tokens: 2, cache_read_tokens: 30, cache_write_tokens: 400 };
        let sum = SessionUsage::of_turn(&usage, 5);
        assert_eq!(sum, SessionUsage { input_tokens: 431, output_tokens: 2, cost: 5 });
    }

    #[test]
    fn retention_has_bounds() {
        for text in ["", "0", "3651", "-1", "+30", "1.5", "30d"] {
            assert!(text.parse::<Retention>().is_err(), "{text}");
        }
        let end = "3650".parse::<Retention>().unwrap().expires_at(now());
        assert_eq!(end.since(now()), Duration::from_hours(3_650 * 24));
        assert_eq!("30".parse(), Ok(Retention::default()));
    }
}
