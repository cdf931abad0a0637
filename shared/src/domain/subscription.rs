use std::cmp::{Ordering, Reverse};

use serde::{Deserialize, Serialize};

use super::{Invalid, Plan, SubscriptionStatus, Timestamp};

/// How many ended subscriptions of an organization are kept, the latest ones. The others are kept all, because each may still decide the status;
/// Stripe allows a customer 500 of them, which is 150 KB of the 400 KB of an item.
const ENDED_KEPT: usize = 50;

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

/// Puts what was told of a subscription among those that are known, the one that counts first. False, and nothing done, if something newer is
/// known of it.
pub(super) fn learn(known: &mut Vec<Subscription>, mut told: Subscription, before: &SubscriptionBefore) -> bool {
    match known.iter_mut().find(|known| known.id == told.id) {
        Some(same) if !told.follows(same, before) => return false,
        Some(same) => {
            told.plan = told.plan.take().or(same.plan.take());
            *same = told;
        }
        None => known.push(told),
    }
    known.sort_by(|a, b| Reverse(a.standing()).cmp(&Reverse(b.standing())));
    forget_ended(known);
    true
}

/// Drops the ended subscription whose last event is the oldest, once there are too many. The first in rank stays: it decides when all have
/// ended.
fn forget_ended(known: &mut Vec<Subscription>) {
    let ended = || known.iter().enumerate().filter(|(_, known)| known.has_ended());
    if ended().count() <= ENDED_KEPT {
        return;
    }
    let oldest = ended().skip(1).min_by(|(_, a), (_, b)| (a.as_of, &a.id).cmp(&(b.as_of, &b.id)));
    if let Some((at, _)) = oldest {
        known.remove(at);
    }
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
            assert!(learn(&mut known, told, &SubscriptionBefore::default()));
            assert_eq!(known[0].id.as_str(), first);
        }
    }

    fn learn_all(known: &mut Vec<Subscription>, told: impl IntoIterator<Item = Subscription>) {
        for told in told {
            learn(known, told, &SubscriptionBefore::default());
        }
    }

    #[test]
    fn live_subscriptions_are_never_forgotten() {
        use SubscriptionStatus::{Active, Canceled, Incomplete, PastDue, Paused, Trialing, Unpaid};
        for status in [Trialing, Active, PastDue, Unpaid, Incomplete, Paused] {
            let mut known = Vec::new();
            let id = |number: i64| format!("sub_{number}");
            learn_all(&mut known, (0..200).map(|number| told(&id(number), SubscriptionStep::Created, number, status)));
            assert_eq!(known.len(), 200, "{status:?}");
            let ends = (1..200).map(|number| told(&id(number), SubscriptionStep::Deleted, 200 + number, Canceled));
            learn_all(&mut known, ends);
            assert!(known.iter().any(|known| known.id.as_str() == "sub_0" && known.status == status), "{status:?}");
            assert_eq!(known.len(), 1 + ENDED_KEPT, "the item stays bounded");
        }
    }

    #[test]
    fn the_deciding_ended_subscription_is_kept() {
        let mut known = Vec::new();
        let mut newest = told("sub_newest", SubscriptionStep::Deleted, 0, SubscriptionStatus::Canceled);
        newest.created_at = at(1);
        learn_all(&mut known, [newest]);
        let ended =
            |id: i64| told(&format!("sub_{id}"), SubscriptionStep::Deleted, 2 + id, SubscriptionStatus::Canceled);
        learn_all(&mut known, (0..100).map(ended));
        assert_eq!((known.len(), known[0].id.as_str()), (ENDED_KEPT, "sub_newest"));
        assert!(known.iter().any(|known| known.id.as_str() == "sub_99"), "the latest ends are kept");
        assert!(!known.iter().any(|known| known.id.as_str() == "sub_0"));
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
                learn(&mut known, told(id, step, second, status), &SubscriptionBefore::default());
            }
            let seen: Vec<_> = known.iter().map(|known| (known.id.as_str(), known.status, known.as_of)).collect();
            prop_assert_eq!(seen, [
                ("sub_2", SubscriptionStatus::Trialing, at(7)),
                ("sub_1", SubscriptionStatus::Canceled, at(8)),
            ]);
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
