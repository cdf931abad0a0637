use std::cmp::{Ordering, Reverse};

use serde::{Deserialize, Serialize};

use super::{Invalid, Plan, SubscriptionStatus, Timestamp};

/// Maximum ended subscriptions of an organization, the latest ones: every validation reads the item that holds them. All others are kept, because
/// each may still decide the status; Stripe allows a customer 500 of them, which is 150 KB of the 400 KB of an item.
const ENDED_KEPT: usize = 10;

/// An id of Stripe's: 1 to 255 letters, digits and `_`.
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
            Err(Invalid::new("must be one of Stripe's ids: 1 to 255 letters, digits and _"))
        }
    }
}

/// A step of a subscription's life, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionStep {
    Created,
    Updated,
    Deleted,
}

/// A subscription at Stripe, as the newest event about it says.
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
    /// What the event told of.
    pub step: SubscriptionStep,
    /// When the event was made, in Stripe's whole seconds.
    pub as_of: Timestamp,
}

/// The upper bounds of the ended subscriptions that were dropped: a late event of one of them is within both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedSubscriptions {
    /// The latest event.
    pub as_of: Timestamp,
    /// The latest creation. A subscription that was created later is a new one, even if its event has the same second as the latest event.
    pub created_at: Timestamp,
}

/// What an update names as changed, with the values before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscriptionBefore {
    pub status: Option<SubscriptionStatus>,
    pub plan: Option<Plan>,
    pub current_period_end: Option<Timestamp>,
    pub cancel_at_period_end: Option<bool>,
}

impl Subscription {
    /// Whether this tells something newer than `known`, of the same subscription. An end is final. Of two events of one second the later step
    /// is the newer one, and of two updates the one that starts from what is known.
    pub fn follows(&self, known: &Self, before: &SubscriptionBefore) -> bool {
        if known.step == SubscriptionStep::Deleted || self.step == SubscriptionStep::Deleted {
            return known.step != SubscriptionStep::Deleted;
        }
        match (self.as_of, self.step).cmp(&(known.as_of, known.step)) {
            Ordering::Less => false,
            Ordering::Equal => before.is(known),
            Ordering::Greater => true,
        }
    }

    /// Whether Stripe never changes its status again.
    fn has_ended(&self) -> bool {
        matches!(self.status, SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired)
    }

    /// Which one counts of several: one that allows spending before one that may again, the newest of equals.
    fn standing(&self) -> impl Ord + '_ {
        let standing = match self.status {
            SubscriptionStatus::Trialing | SubscriptionStatus::Active => 2,
            SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid | SubscriptionStatus::Paused => 1,
            SubscriptionStatus::Canceled | SubscriptionStatus::Incomplete | SubscriptionStatus::IncompleteExpired => 0,
        };
        (standing, self.created_at, &self.id)
    }
}

impl SubscriptionBefore {
    /// Whether it names something, and all that it names is so in `known`.
    fn is(&self, known: &Subscription) -> bool {
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
    /// Whether an event of an unknown subscription may be a late one of a dropped subscription.
    fn may_include(self, told: &Subscription) -> bool {
        told.as_of <= self.as_of && told.created_at <= self.created_at
    }

    #[must_use]
    fn and(self, dropped: &Subscription) -> Self {
        Self { as_of: self.as_of.max(dropped.as_of), created_at: self.created_at.max(dropped.created_at) }
    }
}

/// Puts what was told of a subscription among those that are known, the one that counts first. False, and nothing done, if something newer is
/// known of it, or if it says of a dropped subscription that it has not ended.
pub(super) fn learn(
    known: &mut Vec<Subscription>,
    dropped: &mut Option<DroppedSubscriptions>,
    mut told: Subscription,
    before: &SubscriptionBefore,
) -> bool {
    match known.iter_mut().find(|known| known.id == told.id) {
        Some(same) if !told.follows(same, before) => return false,
        Some(same) => {
            told.plan = told.plan.take().or(same.plan.take());
            *same = told;
        }
        None if !told.has_ended() && dropped.is_some_and(|dropped| dropped.may_include(&told)) => return false,
        None => known.push(told),
    }
    known.sort_by(|a, b| Reverse(a.standing()).cmp(&Reverse(b.standing())));
    while let Some(at) = surplus(known) {
        let ended = known.remove(at);
        let bounds = DroppedSubscriptions { as_of: ended.as_of, created_at: ended.created_at };
        *dropped = Some(dropped.map_or(bounds, |dropped| dropped.and(&ended)));
    }
    true
}

/// Returns the ended subscription whose last event is the oldest, if there are too many. The first in rank stays: it decides when all have ended.
fn surplus(known: &[Subscription]) -> Option<usize> {
    let ended = || known.iter().enumerate().filter(|(_, known)| known.has_ended());
    if ended().count() <= ENDED_KEPT {
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

    fn told(id: &str, step: SubscriptionStep, second: i64, status: SubscriptionStatus) -> Subscription {
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
    fn the_newer_event_counts_and_an_end_is_final() {
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
            let of = |(step, second, status)| told("sub_1", step, second, status);
            assert_eq!(of(next).follows(&of(known), before), follows, "{next:?} after {known:?}");
        }
    }

    #[test]
    fn of_several_the_one_that_allows_spending_counts() {
        use SubscriptionStatus::{Active, Canceled, PastDue};
        let mut known = Vec::new();
        for (id, status, first) in
            [("sub_1", PastDue, "sub_1"), ("sub_2", Active, "sub_2"), ("sub_3", Canceled, "sub_2")]
        {
            let told = told(id, SubscriptionStep::Updated, 1, status);
            assert!(learn(&mut known, &mut None, told, &SubscriptionBefore::default()));
            assert_eq!(known[0].id.as_str(), first);
        }
    }

    /// What an organization keeps.
    #[derive(Debug, Default, PartialEq)]
    struct Kept {
        known: Vec<Subscription>,
        dropped: Option<DroppedSubscriptions>,
    }

    impl Kept {
        fn learn(&mut self, told: Subscription) -> bool {
            learn(&mut self.known, &mut self.dropped, told, &SubscriptionBefore::default())
        }

        fn learn_all(&mut self, told: impl IntoIterator<Item = Subscription>) {
            for told in told {
                self.learn(told);
            }
        }

        fn first(&self) -> (&str, SubscriptionStatus) {
            (self.known[0].id.as_str(), self.known[0].status)
        }
    }

    fn created(second: i64, told: Subscription) -> Subscription {
        Subscription { created_at: at(second), ..told }
    }

    /// Subscriptions 0 to 59, each active when it is created and ended 100 seconds later.
    fn sixty() -> (Vec<Subscription>, Vec<Subscription>) {
        let of =
            |number: i64, step, second, status| created(number, told(&format!("sub_{number}"), step, second, status));
        let starts = (0..60).map(|number| of(number, SubscriptionStep::Updated, number, SubscriptionStatus::Active));
        let ends =
            (0..60).map(|number| of(number, SubscriptionStep::Deleted, 100 + number, SubscriptionStatus::Canceled));
        (starts.collect(), ends.collect())
    }

    #[test]
    fn live_subscriptions_are_never_forgotten() {
        use SubscriptionStatus::{Active, Canceled, Incomplete, PastDue, Paused, Trialing, Unpaid};
        for status in [Trialing, Active, PastDue, Unpaid, Incomplete, Paused] {
            let mut kept = Kept::default();
            let id = |number: i64| format!("sub_{number}");
            kept.learn_all((0..200).map(|number| told(&id(number), SubscriptionStep::Created, number, status)));
            assert_eq!(kept.known.len(), 200, "{status:?}");
            kept.learn_all((1..200).map(|number| told(&id(number), SubscriptionStep::Deleted, 200 + number, Canceled)));
            let known = &kept.known;
            assert!(known.iter().any(|known| known.id.as_str() == "sub_0" && known.status == status), "{status:?}");
            assert_eq!(known.len(), 1 + ENDED_KEPT, "the item stays bounded");
        }
    }

    #[test]
    fn the_deciding_ended_subscription_is_kept() {
        let mut kept = Kept::default();
        kept.learn(created(1, told("sub_newest", SubscriptionStep::Deleted, 0, SubscriptionStatus::Canceled)));
        let ended =
            |id: i64| told(&format!("sub_{id}"), SubscriptionStep::Deleted, 2 + id, SubscriptionStatus::Canceled);
        kept.learn_all((0..100).map(ended));
        let known = &kept.known;
        assert_eq!((known.len(), known[0].id.as_str()), (ENDED_KEPT, "sub_newest"));
        assert!(known.iter().any(|known| known.id.as_str() == "sub_99"), "the latest ends are kept");
        assert!(!known.iter().any(|known| known.id.as_str() == "sub_0"));
    }

    #[test]
    fn dropped_subscription_stays_ended() {
        use SubscriptionStatus::{Active, Canceled, IncompleteExpired, PastDue};
        let mut kept = Kept::default();
        let (starts, ends) = sixty();
        kept.learn_all(ends);
        assert_eq!(kept.first(), ("sub_59", Canceled));
        assert_eq!(kept.dropped, Some(DroppedSubscriptions { as_of: at(149), created_at: at(49) }));
        let before = kept.known.clone();
        for late in starts {
            assert!(!kept.learn(late));
        }
        for (step, second, status) in [
            (SubscriptionStep::Created, 0, Active),
            (SubscriptionStep::Updated, 50, PastDue),
            (SubscriptionStep::Updated, 149, Active),
        ] {
            assert!(!kept.learn(created(0, told("sub_0", step, second, status))), "{step:?} {second}");
        }
        kept.learn(created(0, told("sub_0", SubscriptionStep::Updated, 50, IncompleteExpired)));
        assert_eq!(kept.known, before);
    }

    #[test]
    fn new_subscription_counts_after_dropped_ones() {
        use SubscriptionStatus::{Active, Canceled, PastDue};
        for (id, created_at, second) in
            [("sub_later", 200, 200), ("sub_same_second", 149, 149), ("sub_first_heard_of_late", 20, 150)]
        {
            let mut kept = Kept::default();
            kept.learn_all(sixty().1);
            assert!(kept.learn(created(created_at, told(id, SubscriptionStep::Created, second, Active))));
            assert_eq!(kept.first(), (id, Active));
            assert!(kept.learn(created(created_at, told(id, SubscriptionStep::Updated, second, PastDue))));
            assert_eq!(kept.first(), (id, PastDue));
            assert!(kept.learn(created(created_at, told(id, SubscriptionStep::Deleted, second, Canceled))));
            assert_eq!((kept.first().1, kept.known.len()), (Canceled, ENDED_KEPT));
        }
    }

    #[test]
    fn long_stored_list_is_shortened_at_once() {
        let mut kept = Kept { known: sixty().1, dropped: None };
        assert!(kept.learn(created(60, told("sub_60", SubscriptionStep::Created, 60, SubscriptionStatus::Active))));
        assert_eq!((kept.known.len(), kept.first().0), (1 + ENDED_KEPT, "sub_60"));
        assert_eq!(kept.dropped, Some(DroppedSubscriptions { as_of: at(149), created_at: at(49) }));
    }

    proptest! {
        #[test]
        fn the_order_of_arrival_does_not_matter(order in Just((0..9_i64).collect::<Vec<_>>()).prop_shuffle()) {
            let mut known = Vec::new();
            for second in order {
                // Two subscriptions in turn; the first one ends with its last event.
                let id = if second % 2 == 0 { "sub_1" } else { "sub_2" };
                let (step, status) = match second {
                    8 => (SubscriptionStep::Deleted, SubscriptionStatus::Canceled),
                    7 => (SubscriptionStep::Updated, SubscriptionStatus::Trialing),
                    _ => (SubscriptionStep::Updated, SubscriptionStatus::PastDue),
                };
                learn(&mut known, &mut None, told(id, step, second, status), &SubscriptionBefore::default());
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
            let live = created(120, told("sub_live", SubscriptionStep::Created, 170, SubscriptionStatus::Active));
            let events: Vec<_> = starts.into_iter().chain(ends).chain([live]).collect();
            let (mut in_order, mut shuffled) = (Kept::default(), Kept::default());
            in_order.learn_all(events.iter().cloned());
            shuffled.learn_all(order.into_iter().map(|at| events[at].clone()));
            prop_assert_eq!(in_order.first(), ("sub_live", SubscriptionStatus::Active));
            prop_assert_eq!(in_order.known.len(), 1 + ENDED_KEPT);
            prop_assert_eq!(shuffled, in_order);
        }
    }

    #[test]
    fn stripes_ids_hold_nothing_that_a_key_is_made_of() {
        for text in ["", "sub#1", "sub 1", "sub-1", "é", &"a".repeat(256)] {
            assert!(StripeId::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert!(StripeId::try_from("evt_1NG8Du2eZvKYlo2CUI79vXWy".to_owned()).is_ok());
    }
}
