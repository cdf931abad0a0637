use serde::{Deserialize, Serialize};

use super::{Change, Changes, Id, Name, Slug, Timestamp, Value};

/// An agent project: what session tokens are pinned to and releases are deployed to. Serialises as the contract's Project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    pub id: Id,
    pub slug: Slug,
    pub name: Name,
    /// The version of the active release; `null` before the first.
    pub current_version: Option<u64>,
    pub model_id: Option<String>,
    pub endpoint_url: Option<String>,
    pub created_at: Timestamp,
}

impl Project {
    pub fn new(id: Id, slug: Slug, name: Name, now: Timestamp) -> Self {
        Self { id, slug, name, current_version: None, model_id: None, endpoint_url: None, created_at: now }
    }

    /// The choices behind a new project, as its audit event shows them.
    pub fn creation(&self) -> Changes {
        [("slug", self.slug.as_str()), ("name", self.name.as_str())]
            .map(|(field, after)| (field.to_owned(), Change { before: Value::Null, after: after.into() }))
            .into()
    }
}
