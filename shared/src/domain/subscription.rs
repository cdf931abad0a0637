use std::cmp::{Ordering, Reverse};

use serde::{Deserialize, Serialize};

use super::{Invalid, Plan, SubscriptionStatus, Timestamp};

/// Maximum number of ended subscriptions that are kept, the one that would count and the latest
/// others: every validation reads the item that holds them. Subscriptions that have not ended are all
/// kept, because each may still decide the status. Stripe allows a customer 500 of them, which is
/// 150 KB of the 400 KB of an item.
const MAX_ENDED: usize = 10;

/// An id at Stripe: 1 to 255 letters, digits and `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct StripeId(String);

impl StripeId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for StripeId {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            Ok(Self(text))
        } else {
            Err(Invalid::new("must be a Stripe id: 1 to 255 letters, digits and _"))
        }
    }
}

/// A step in the life of a subscription, in chronological order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionStep {
    Created,
    Updated,
    Deleted,
}

/// A subscription at Stripe, as of the newest event about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    pub id: StripeId,
    pub created_at: Timestamp,
    pub status: SubscriptionStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_period_start: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_period_end: Option<Timestamp>,
    pub cancel_at_period_end: bool,
    pub step: SubscriptionStep,
    /// When Stripe created the event, in whole seconds.
    pub as_of: Timestamp,
}

/// Upper bounds of the dropped subscriptions. A late event about a dropped subscription is within
/// both bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedSubscriptions {
    /// The time of the latest event.
    pub as_of: Timestamp,
    /// The time of the latest creation. A subscription that was created later is new, even if its event has the
    /// same second as the latest event.
    pub created_at: Timestamp,
}

/// The previous values of the fields that an update changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscriptionBefore {
    pub status: Option<SubscriptionStatus>,
    pub plan: Option<Plan>,
    pub current_period_end: Option<Timestamp>,
    pub cancel_at_period_end: Option<bool>,
}

impl Subscription {
    /// Returns whether this event is newer than `known`, an event about the same subscription.
    /// `before` holds the previous values of the fields that this event changed.
    ///
    /// A deletion is final. Stripe's times have whole seconds: within a second, the later step is
    /// newer, and an update is newer if its previous values match `known`.
    pub fn follows(&self, known: &Self, before: &SubscriptionBefore) -> bool {
        if known.step == SubscriptionStep::Deleted || self.step == SubscriptionStep::Deleted {
            return known.step != SubscriptionStep::Deleted;
        }
        match (self.as_of, self.step).cmp(&(known.as_of, known.step)) {
            Ordering::Less => false,
            Ordering::Equal => before.matches(known),
            Ordering::Greater => true,
        }
    }

    /// Returns whether Stripe never changes the status again.
    fn has_ended(&self) -> bool {
        matches!(self.status, SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired)
    }

    /// Ranks a subscription that allows spending above a subscription that may allow it again, and
    /// the newest first among equals.
    fn precedence(&self) -> impl Ord + '_ {
        let precedence = match self.status {
            SubscriptionStatus::Trialing | SubscriptionStatus::Active => 2,
            SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid | SubscriptionStatus::Paused => 1,
            SubscriptionStatus::Canceled | SubscriptionStatus::Incomplete | SubscriptionStatus::IncompleteExpired => 0,
        };
        (precedence, self.created_at, &self.id)
    }
}

impl SubscriptionBefore {
    /// Requires at least one field, and `known` must have all the values.
    fn matches(&self, known: &Subscription) -> bool {
        let names = [
            self.status.map(|status| status == known.status),
            self.plan.as_ref().map(|plan| Some(plan) == known.plan.as_ref()),
            self.current_period_end.map(|end| Some(end) == known.current_period_end),
            self.cancel_at_period_end.map(|cancel| cancel == known.cancel_at_period_end),
        ];
        names.iter().any(Option::is_some) && names.into_iter().flatten().all(|same| same)
    }
}

impl DroppedSubscriptions {
    /// Returns whether an event about an unknown subscription may be a late event about a dropped
    /// subscription.
    fn may_include(self, reported: &Subscription) -> bool {
        reported.as_of <= self.as_of && reported.created_at <= self.created_at
    }

    #[must_use]
    fn and(self, dropped: &Subscription) -> Self {
        Self { as_of: self.as_of.max(dropped.as_of), created_at: self.created_at.max(dropped.created_at) }
    }
}

/// Adds or updates a subscription and sorts by precedence. Returns false and does nothing if a
/// newer event is known, or if the event says that a dropped subscription has not ended.
pub(super) fn record(
    known: &mut Vec<Subscription>,
    dropped: &mut Option<DroppedSubscriptions>,
    mut reported: Subscription,
    before: &SubscriptionBefore,
) -> bool {
    match known.iter_mut().find(|known| known.id == reported.id) {
        Some(same) if !reported.follows(same, before) => return false,
        Some(same) => {
            reported.plan = reported.plan.take().or(same.plan.take());
            *same = reported;
        }
        None if !reported.has_ended() && dropped.is_some_and(|dropped| dropped.may_include(&reported)) => return false,
        None => known.push(reported),
    }
    known.sort_by(|a, b| Reverse(a.precedence()).cmp(&Reverse(b.precedence())));
    while let Some(at) = surplus(known) {
        let ended = known.remove(at);
        let bounds = DroppedSubscriptions { as_of: ended.as_of, created_at: ended.created_at };
        *dropped = Some(dropped.map_or(bounds, |dropped| dropped.and(&ended)));
    }
    true
}

/// Returns the ended subscription whose last event is the oldest, if there are too many. The first
/// in the list is kept, because it decides when all have ended.
fn surplus(known: &[Subscription]) -> Option<usize> {
    let ended = || known.iter().enumerate().filter(|(_, known)| known.has_ended());
    if ended().count() <= MAX_ENDED {
        return None;
    }
    let oldest = ended().skip(1).min_by(|(_, a), (_, b)| (a.as_of, &a.id).cmp(&(b.as_of, &b.id)));
    oldest.map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(1_795_000_000_000 + second * 1000).unwrap()
    }

    fn reported(id: &str, step: SubscriptionStep, second: i64, status: SubscriptionStatus) -> Subscription {
        Subscription {
            id: StripeId::try_from(id.to_owned()).unwrap(),
            created_at: at(0),
            status,
            plan: None,
            current_period_start: None,
            current_period_end: None,
            cancel_at_period_end: false,
            step,
            as_of: at(second),
        }
    }

    fn before(status: SubscriptionStatus) -> SubscriptionBefore {
        SubscriptionBefore { status: Some(status), ..SubscriptionBefore::default() }
    }

    #[test]
    fn newer_event_wins_and_deletion_is_final() {
        use SubscriptionStatus::{Active, Canceled, Incomplete, PastDue};
        use SubscriptionStep::{Created, Deleted, Updated};
        let none = SubscriptionBefore::default();
        for (known, next, before, follows) in [
            ((Updated, 5, Active), (Updated, 6, PastDue), &none, true),
            ((Updated, 6, PastDue), (Updated, 5, Active), &before(PastDue), false),
            ((Created, 5, Incomplete), (Updated, 5, Active), &none, true),
            ((Updated, 5, Active), (Created, 5, Incomplete), &none, false),
            ((Updated, 5, Active), (Updated, 5, PastDue), &before(Active), true),
            ((Updated, 5, PastDue), (Updated, 5, Active), &before(Incomplete), false),
            ((Updated, 5, PastDue), (Updated, 5, Active), &none, false),
            ((Updated, 5, Active), (Deleted, 5, Canceled), &none, true),
            ((Updated, 6, Active), (Deleted, 5, Canceled), &none, true),
            ((Deleted, 5, Canceled), (Updated, 9, Active), &before(Canceled), false),
            ((Deleted, 5, Canceled), (Deleted, 9, Canceled), &none, false),
        ] {
            let of = |(step, second, status)| reported("sub_1", step, second, status);
            assert_eq!(of(next).follows(&of(known), before), follows, "{next:?} after {known:?}");
        }
    }

    #[test]
    fn subscription_that_allows_spending_comes_first() {
        use SubscriptionStatus::{Active, Canceled, PastDue};
        let mut known = Vec::new();
        for (id, status, first) in
            [("sub_1", PastDue, "sub_1"), ("sub_2", Active, "sub_2"), ("sub_3", Canceled, "sub_2")]
        {
            let reported = reported(id, SubscriptionStep::Updated, 1, status);
            assert!(record(&mut known, &mut None, reported, &SubscriptionBefore::default()));
            assert_eq!(known[0].id.as_str(), first);
        }
    }

    #[derive(Debug, Default, PartialEq)]
    struct Kept {
        known: Vec<Subscription>,
        dropped: Option<DroppedSubscriptions>,
    }

    impl Kept {
        fn record(&mut self, reported: Subscription) -> bool {
            record(&mut self.known, &mut self.dropped, reported, &SubscriptionBefore::default())
        }

        fn record_all(&mut self, reported: impl IntoIterator<Item = Subscription>) {
            for reported in reported {
                self.record(reported);
            }
        }

        fn first(&self) -> (&str, SubscriptionStatus) {
            (self.known[0].id.as_str(), self.known[0].status)
        }
    }

    fn created(second: i64, reported: Subscription) -> Subscription {
        Subscription { created_at: at(second), ..reported }
    }

    /// Returns their starts and ends. Each ends 100 seconds after it is created.
    fn sixty() -> (Vec<Subscription>, Vec<Subscription>) {
        let of = |number: i64, step, second, status| {
            created(number, reported(&format!("sub_{number}"), step, second, status))
        };
        let starts = (0..60).map(|number| of(number, SubscriptionStep::Updated, number, SubscriptionStatus::Active));
        let ends =
            (0..60).map(|number| of(number, SubscriptionStep::Deleted, 100 + number, SubscriptionStatus::Canceled));
        (starts.collect(), ends.collect())
    }

    #[test]
    fn live_subscriptions_are_never_dropped() {
        use SubscriptionStatus::{Active, Canceled, Incomplete, PastDue, Paused, Trialing, Unpaid};
        for status in [Trialing, Active, PastDue, Unpaid, Incomplete, Paused] {
            let mut kept = Kept::default();
            let id = |number: i64| format!("sub_{number}");
            kept.record_all((0..200).map(|number| reported(&id(number), SubscriptionStep::Created, number, status)));
            assert_eq!(kept.known.len(), 200, "{status:?}");
            kept.record_all(
                (1..200).map(|number| reported(&id(number), SubscriptionStep::Deleted, 200 + number, Canceled)),
            );
            let known = &kept.known;
            assert!(known.iter().any(|known| known.id.as_str() == "sub_0" && known.status == status), "{status:?}");
            assert_eq!(known.len(), 1 + MAX_ENDED, "the item stays bounded");
        }
    }

    #[test]
    fn the_deciding_ended_subscription_is_kept() {
        let mut kept = Kept::default();
        kept.record(created(1, reported("sub_newest", SubscriptionStep::Deleted, 0, SubscriptionStatus::Canceled)));
        let ended =
            |id: i64| reported(&format!("sub_{id}"), SubscriptionStep::Deleted, 2 + id, SubscriptionStatus::Canceled);
        kept.record_all((0..100).map(ended));
        let known = &kept.known;
        assert_eq!((known.len(), known[0].id.as_str()), (MAX_ENDED, "sub_newest"));
        assert!(known.iter().any(|known| known.id.as_str() == "sub_99"), "the latest ends are kept");
        assert!(!known.iter().any(|known| known.id.as_str() == "sub_0"));
    }

    #[test]
    fn dropped_subscription_stays_ended() {
        use SubscriptionStatus::{Active, Canceled, IncompleteExpired, PastDue};
        let mut kept = Kept::default();
        let (starts, ends) = sixty();
        kept.record_all(ends);
        assert_eq!(kept.first(), ("sub_59", Canceled));
        assert_eq!(kept.dropped, Some(DroppedSubscriptions { as_of: at(149), created_at: at(49) }));
        let before = kept.known.clone();
        for late in starts {
            assert!(!kept.record(late));
        }
        for (step, second, status) in [
            (SubscriptionStep::Created, 0, Active),
            (SubscriptionStep::Updated, 50, PastDue),
            (SubscriptionStep::Updated, 149, Active),
        ] {
            assert!(!kept.record(created(0, reported("sub_0", step, second, status))), "{step:?} {second}");
        }
        kept.record(created(0, reported("sub_0", SubscriptionStep::Updated, 50, IncompleteExpired)));
        assert_eq!(kept.known, before);
    }

    #[test]
    fn new_subscription_counts_after_dropped_ones() {
        use SubscriptionStatus::{Active, Canceled, PastDue};
        for (id, created_at, second) in
            [("sub_later", 200, 200), ("sub_same_second", 149, 149), ("sub_reported_late", 20, 150)]
        {
            let mut kept = Kept::default();
            kept.record_all(sixty().1);
            assert!(kept.record(created(created_at, reported(id, SubscriptionStep::Created, second, Active))));
            assert_eq!(kept.first(), (id, Active));
            assert!(kept.record(created(created_at, reported(id, SubscriptionStep::Updated, second, PastDue))));
            assert_eq!(kept.first(), (id, PastDue));
            assert!(kept.record(created(created_at, reported(id, SubscriptionStep::Deleted, second, Canceled))));
            assert_eq!((kept.first().1, kept.known.len()), (Canceled, MAX_ENDED));
        }
    }

    #[test]
    fn long_stored_list_is_shortened_at_once() {
        let mut kept = Kept { known: sixty().1, dropped: None };
        assert!(
            kept.record(created(60, reported("sub_60", SubscriptionStep::Created, 60, SubscriptionStatus::Active)))
        );
        assert_eq!((kept.known.len(), kept.first().0), (1 + MAX_ENDED, "sub_60"));
        assert_eq!(kept.dropped, Some(DroppedSubscriptions { as_of: at(149), created_at: at(49) }));
    }

    proptest! {
        #[test]
        fn the_order_of_arrival_does_not_matter(order in Just((0..9_i64).collect::<Vec<_>>()).prop_shuffle()) {
            let mut known = Vec::new();
            for second in order {
                // Two subscriptions alternate. The first one ends with its last event.
                let id = if second % 2 == 0 { "sub_1" } else { "sub_2" };
                let (step, status) = match second {
                    8 => (SubscriptionStep::Deleted, SubscriptionStatus::Canceled),
                    7 => (SubscriptionStep::Updated, SubscriptionStatus::Trialing),
                    _ => (SubscriptionStep::Updated, SubscriptionStatus::PastDue),
                };
                record(&mut known, &mut None, reported(id, step, second, status), &SubscriptionBefore::default());
            }
            let seen: Vec<_> = known.iter().map(|known| (known.id.as_str(), known.status, known.as_of)).collect();
            prop_assert_eq!(seen, [
                ("sub_2", SubscriptionStatus::Trialing, at(7)),
                ("sub_1", SubscriptionStatus::Canceled, at(8)),
            ]);
        }

        #[test]
        fn the_order_does_not_matter_after_drops(order in Just((0..121_usize).collect::<Vec<_>>()).prop_shuffle()) {
            let (starts, ends) = sixty();
            let live = created(120, reported("sub_live", SubscriptionStep::Created, 170, SubscriptionStatus::Active));
            let events: Vec<_> = starts.into_iter().chain(ends).chain([live]).collect();
            let (mut in_order, mut shuffled) = (Kept::default(), Kept::default());
            in_order.record_all(events.iter().cloned());
            shuffled.record_all(order.into_iter().map(|at| events[at].clone()));
            prop_assert_eq!(in_order.first(), ("sub_live", SubscriptionStatus::Active));
            prop_assert_eq!(in_order.known.len(), 1 + MAX_ENDED);
            prop_assert_eq!(shuffled, in_order);
        }
    }

    #[test]
    fn stripe_ids_contain_no_key_separators() {
        for text in ["", "sub#1", "sub 1", "sub-1", "é", &"a".repeat(256)] {
            assert!(StripeId::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert!(StripeId::try_from("evt_1NG8Du2eZvKYlo2CUI79vXWy".to_owned()).is_ok());
    }
}
