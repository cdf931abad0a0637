use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AllowedCidrs, Budget, CacheEffect, Change, Changes, Id, Metadata, Name, Prefix, Scope, ScopeSet, Timestamp, Value,
};

/// How long before its expiry the owner of a key is notified.
const EXPIRY_NOTICE: Duration = Duration::from_hours(7 * 24);

/// An API key without its digest, which is stored with the credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    pub id: Id,
    /// The id of the lineage's first key. Usage counts for the lineage.
    #[serde(rename = "counted_as")]
    pub lineage_id: Id,
    pub name: Name,
    pub prefix: Prefix,
    pub scopes: ScopeSet,
    pub created_at: Timestamp,
    /// The API key that created this one; `None` if an operator created it or it is the
    /// organization's first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<Id>,
    /// Stored in an item of its own, which functions that only validate keys do not read: there it may
    /// be `None` for a used key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<Id>,
    #[serde(default, skip_serializing_if = "AllowedCidrs::is_empty")]
    pub allowed_cidrs: AllowedCidrs,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
    /// Counts changes: a write that depends on a read is conditional on it.
    pub version: u64,
}

#[derive(Debug, Clone)]
pub struct ApiKeySettings {
    pub name: Name,
    pub scopes: ScopeSet,
    pub expires_at: Option<Timestamp>,
    pub allowed_cidrs: AllowedCidrs,
    pub budget: Option<Budget>,
    pub metadata: Metadata,
}

/// `None` keeps the current value.
#[derive(Debug, Clone, Default)]
pub struct ApiKeyPatch {
    pub name: Option<Name>,
    pub scopes: Option<ScopeSet>,
    pub expires_at: Option<Option<Timestamp>>,
    pub allowed_cidrs: Option<AllowedCidrs>,
    pub budget: Option<Option<Budget>>,
    pub metadata: Option<Metadata>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyStatus {
    Active,
    /// Replaced, and valid until its grace period ends.
    Rotating,
    Revoked,
    Expired,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyNotEditable {
    Revoked,
    /// The rotation fixed the expiry.
    Replaced,
}

/// Only an active key can be rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotActive;

impl ApiKey {
    pub fn new(id: Id, prefix: Prefix, settings: ApiKeySettings, created_by: Option<Id>, now: Timestamp) -> Self {
        Self {
            id,
            lineage_id: id,
            name: settings.name,
            prefix,
            scopes: settings.scopes,
            created_at: now,
            created_by,
            last_used_at: None,
            expires_at: settings.expires_at,
            revoked_at: None,
            replaced_by: None,
            allowed_cidrs: settings.allowed_cidrs,
            budget: settings.budget,
            metadata: settings.metadata,
            version: 1,
        }
    }

    /// Returns the status. Revocation takes precedence over expiry, and expiry over rotation.
    pub fn status(&self, now: Timestamp) -> KeyStatus {
        if self.revoked_at.is_some() {
            KeyStatus::Revoked
        } else if self.expires_at.is_some_and(|end| end <= now) {
            KeyStatus::Expired
        } else if self.replaced_by.is_some() {
            KeyStatus::Rotating
        } else {
            KeyStatus::Active
        }
    }

    pub fn is_live(&self, now: Timestamp) -> bool {
        match self.status(now) {
            KeyStatus::Active | KeyStatus::Rotating => true,
            KeyStatus::Revoked | KeyStatus::Expired => false,
        }
    }

    /// Returns whether the key is valid but was not used for `time`, counted from its last use or
    /// from its creation.
    pub fn is_unused_for(&self, time: Duration, now: Timestamp) -> bool {
        self.is_live(now) && now.since(self.last_used_at.unwrap_or(self.created_at)) >= time
    }

    pub fn expires_within(&self, time: Duration, now: Timestamp) -> bool {
        self.is_live(now) && self.expires_at.is_some_and(|end| end <= now.plus(time))
    }

    /// Returns whether this key protects its organization from a lockout: it has the admin scope,
    /// works from any address and has no expiry. This does not depend on the time, so the
    /// organization's count of such keys changes only when a key is written.
    pub fn is_usable_admin(&self) -> bool {
        self.scopes.contains(Scope::Admin)
            && self.revoked_at.is_none()
            && self.expires_at.is_none()
            && self.replaced_by.is_none()
            && self.allowed_cidrs.is_empty()
    }

    /// Returns the changes by field.
    pub fn apply(&mut self, patch: ApiKeyPatch) -> Result<Changes, KeyNotEditable> {
        if self.revoked_at.is_some() {
            return Err(KeyNotEditable::Revoked);
        }
        if self.replaced_by.is_some() && patch.expires_at.is_some() {
            return Err(KeyNotEditable::Replaced);
        }
        let before = self.clone();
        let ApiKeyPatch { name, scopes, expires_at, allowed_cidrs, budget, metadata } = patch;
        replace(&mut self.name, name);
        replace(&mut self.scopes, scopes);
        replace(&mut self.expires_at, expires_at);
        replace(&mut self.allowed_cidrs, allowed_cidrs);
        replace(&mut self.budget, budget);
        replace(&mut self.metadata, metadata);
        let changes = before.changes_to(self);
        if !changes.is_empty() {
            self.version += 1;
        }
        Ok(changes)
    }

    /// Returns `false` and changes nothing if the key is already revoked.
    pub fn revoke(&mut self, now: Timestamp) -> bool {
        if self.revoked_at.is_some() {
            return false;
        }
        self.revoked_at = Some(now);
        self.version += 1;
        true
    }

    /// Creates the replacement of this key, with the same settings, expiry and lineage.
    #[must_use]
    pub fn successor(&self, id: Id, prefix: Prefix, created_by: Id, now: Timestamp) -> Self {
        let settings = ApiKeySettings {
            name: self.name.clone(),
            scopes: self.scopes,
            expires_at: self.expires_at,
            allowed_cidrs: self.allowed_cidrs.clone(),
            budget: self.budget.clone(),
            metadata: self.metadata.clone(),
        };
        Self { lineage_id: self.lineage_id, ..Self::new(id, prefix, settings, Some(created_by), now) }
    }

    /// Marks the key as replaced. It expires with the grace period, or earlier at its own expiry.
    pub fn retire(&mut self, successor: Id, grace: Duration, now: Timestamp) -> Result<(), NotActive> {
        if self.status(now) != KeyStatus::Active {
            return Err(NotActive);
        }
        let end = now.plus(grace);
        self.expires_at = Some(self.expires_at.map_or(end, |own| own.min(end)));
        self.replaced_by = Some(successor);
        self.version += 1;
        Ok(())
    }

    /// Returns how the change to `after` affects cached verdicts.
    pub fn cache_effect(&self, after: &Self) -> CacheEffect {
        let ends = |key: &Self| key.revoked_at.into_iter().chain(key.expires_at).min();
        let sooner = match (ends(self), ends(after)) {
            (None, Some(_)) => true,
            (Some(before), Some(after)) => after < before,
            (_, None) => false,
        };
        let fewer_scopes = self.scopes.iter().any(|scope| !after.scopes.contains(scope));
        // Any new list counts as a reduction. Lists change too rarely to compare which addresses they
        // cover.
        let other_addresses = self.allowed_cidrs != after.allowed_cidrs && !after.allowed_cidrs.is_empty();
        if sooner || fewer_scopes || other_addresses {
            return CacheEffect::AccessReduced;
        }
        let validated = |key: &Self| {
            let Self { name, scopes, expires_at, allowed_cidrs, budget, metadata, .. } = key.clone();
            (name, scopes, expires_at, allowed_cidrs, budget, metadata)
        };
        if validated(self) == validated(after) { CacheEffect::None } else { CacheEffect::Stale }
    }

    /// Returns when the owner is notified, a week before the expiry. `None` for a key
    /// without expiry, for one that expires at most a week after its creation, and for a revoked or
    /// replaced key.
    pub fn expiry_notice_at(&self) -> Option<Timestamp> {
        let end = self.expires_at.filter(|_| self.revoked_at.is_none() && self.replaced_by.is_none())?;
        (end.since(self.created_at) > EXPIRY_NOTICE).then(|| end.minus(EXPIRY_NOTICE))
    }

    /// Returns the settings as the audit event of the creation shows them.
    pub fn creation(&self) -> Changes {
        self.audited().map(|(field, after)| (field.to_owned(), Change { before: Value::Null, after })).collect()
    }

    pub fn changes_to(&self, after: &Self) -> Changes {
        self.audited()
            .zip(after.audited())
            .filter(|((_, before), (_, after))| before != after)
            .map(|((field, before), (_, after))| (field.to_owned(), Change { before, after }))
            .collect()
    }

    fn audited(&self) -> impl Iterator<Item = (&'static str, Value)> {
        [
            ("name", Value::from(self.name.as_str())),
            ("scopes", Value::list(self.scopes.iter().map(Scope::as_str))),
            ("expires_at", Value::from(self.expires_at)),
            ("revoked_at", Value::from(self.revoked_at)),
            ("replaced_by", Value::from(self.replaced_by.map(Id::get))),
            ("allowed_cidrs", Value::list(self.allowed_cidrs.to_words().split_terminator(' '))),
            ("budget", Value::from(self.budget.as_ref().map(Budget::audited))),
            ("metadata", Value::map(self.metadata.pairs().iter().map(|(key, value)| (key, value.as_str())))),
        ]
        .into_iter()
    }
}

fn replace<T>(field: &mut T, new: Option<T>) {
    if let Some(new) = new {
        *field = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::SeededEntropy;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn key() -> ApiKey {
        let settings = ApiKeySettings {
            name: Name::try_from("ci".to_owned()).unwrap(),
            scopes: ScopeSet::ALL,
            expires_at: None,
            allowed_cidrs: AllowedCidrs::default(),
            budget: None,
            metadata: Metadata::default(),
        };
        let prefix = Prefix::try_from("kt_live_AbC123".to_owned()).unwrap();
        ApiKey::new(Id::draw(now(), &SeededEntropy::new(1)), prefix, settings, None, now())
    }

    #[test]
    fn key_expires_at_the_exact_millisecond() {
        let mut key = key();
        key.expires_at = Some(now().plus(Duration::from_millis(1)));
        assert_eq!(key.status(now()), KeyStatus::Active);
        assert_eq!(key.status(now().plus(Duration::from_millis(1))), KeyStatus::Expired);
        key.revoke(now());
        assert_eq!(key.status(now().plus(Duration::from_millis(1))), KeyStatus::Revoked);
    }

    const DAY: Duration = Duration::from_hours(24);
    const INSTANT: Duration = Duration::from_millis(1);

    #[test]
    fn unused_time_counts_from_last_use_or_creation() {
        let (mut key, later) = (key(), now().plus(DAY));
        assert!(key.is_unused_for(DAY, later));
        assert!(!key.is_unused_for(DAY, later.minus(INSTANT)));
        key.last_used_at = Some(now().plus(INSTANT));
        assert!(!key.is_unused_for(DAY, later));
        assert!(key.is_unused_for(DAY, later.plus(INSTANT)));
    }

    #[test]
    fn expires_within_includes_the_end_of_the_window() {
        let mut key = key();
        assert!(!key.expires_within(DAY, now()), "it does not expire");
        key.expires_at = Some(now().plus(DAY));
        assert!(key.expires_within(DAY, now()));
        assert!(!key.expires_within(DAY, now().minus(INSTANT)));
        assert!(!key.expires_within(DAY, now().plus(DAY)), "it has expired");
    }

    #[test]
    fn ended_key_is_neither_unused_nor_expiring() {
        let flags = |change: fn(&mut ApiKey)| {
            let mut key = key();
            key.expires_at = Some(now().plus(2 * DAY));
            change(&mut key);
            let later = now().plus(DAY);
            (key.is_unused_for(DAY, later), key.expires_within(DAY, later))
        };
        assert_eq!(flags(|_| {}), (true, true));
        assert_eq!(flags(|key| key.replaced_by = Some(key.id)), (true, true), "it is valid until its grace ends");
        assert_eq!(flags(|key| key.revoked_at = Some(now())), (false, false));
        assert_eq!(flags(|key| key.expires_at = Some(now())), (false, false));
    }

    #[test]
    fn second_revocation_keeps_the_first_time() {
        let mut key = key();
        assert!(key.revoke(now()));
        let first = key.clone();
        assert!(!key.revoke(now().plus(Duration::from_secs(1))));
        assert_eq!(key, first);
    }

    #[test]
    fn patch_changes_and_reports_only_named_fields() {
        let mut key = key();
        let patch = ApiKeyPatch { scopes: Some([Scope::Read].into_iter().collect()), ..ApiKeyPatch::default() };
        let changes = key.apply(patch.clone()).unwrap();
        assert_eq!(changes.keys().collect::<Vec<_>>(), ["scopes"]);
        assert_eq!(key.version, 2);
        assert!(key.apply(patch).unwrap().is_empty());
        assert_eq!(key.version, 2, "nothing changed");
        key.revoke(now());
        assert_eq!(key.apply(ApiKeyPatch::default()), Err(KeyNotEditable::Revoked));
    }

    #[test]
    fn replaced_key_ends_with_grace_or_own_expiry() {
        let (hour, day) = (Duration::from_hours(1), Duration::from_hours(24));
        let successor_id = Id::new(9).unwrap();
        for (own, grace, end) in [(None, day, day), (Some(hour), day, hour), (Some(day), hour, hour)] {
            let mut key = key();
            key.expires_at = own.map(|own| now().plus(own));
            let successor = key.successor(successor_id, key.prefix.clone(), key.id, now());
            key.retire(successor_id, grace, now()).unwrap();
            assert_eq!(key.expires_at, Some(now().plus(end)));
            assert_eq!(key.status(now()), KeyStatus::Rotating);
            assert_eq!(key.status(now().plus(end)), KeyStatus::Expired);
            assert_eq!(successor.expires_at, own.map(|own| now().plus(own)), "the successor keeps its own expiry");
            assert_eq!(key.retire(successor_id, grace, now()), Err(NotActive), "a key is replaced only once");
            let patch = ApiKeyPatch { expires_at: Some(None), ..ApiKeyPatch::default() };
            assert_eq!(key.apply(patch), Err(KeyNotEditable::Replaced));
        }
    }

    #[test]
    fn restricted_or_ending_admin_key_does_not_count() {
        assert!(key().is_usable_admin());
        let with = |change: fn(&mut ApiKey)| {
            let mut key = key();
            change(&mut key);
            key.is_usable_admin()
        };
        assert!(!with(|key| key.scopes = [Scope::Read, Scope::Write].into_iter().collect()));
        assert!(!with(|key| key.expires_at = Some(now())));
        assert!(!with(|key| key.revoked_at = Some(now())));
        assert!(!with(|key| key.replaced_by = Some(key.id)));
        assert!(!with(|key| key.allowed_cidrs = AllowedCidrs::from_words("10.0.0.0/8").unwrap()));
    }
}
