use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{Invalid, Price, SubscriptionStatus, Tally, Timestamp, Value, usage::NANO};

/// The largest integer that every JSON parser represents exactly.
const MAX_CAP: u64 = (1 << 53) - 1;

/// Caps per UTC month, of an organization or of a key. `null` means no cap. Token caps
/// count the tokens of the prompt cache as input. The cost cap is in whole cents. `budget.threshold` is
/// published at each of `alert_percents`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Budget {
    pub input_tokens: Option<Cap>,
    pub output_tokens: Option<Cap>,
    pub total_tokens: Option<Cap>,
    pub cost_cents: Option<Cap>,
    pub alert_percents: AlertPercents,
}

#[derive(Deserialize)]
#[serde(remote = "Budget", deny_unknown_fields)]
struct BudgetFields {
    #[serde(default)]
    input_tokens: Option<Cap>,
    #[serde(default)]
    output_tokens: Option<Cap>,
    #[serde(default)]
    total_tokens: Option<Cap>,
    #[serde(default)]
    cost_cents: Option<Cap>,
    #[serde(default)]
    alert_percents: AlertPercents,
}

/// Accepts only an object. The derived implementation would also accept a list of the values.
impl<'de> Deserialize<'de> for Budget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Budget;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Budget, A::Error> {
                BudgetFields::deserialize(MapAccessDeserializer::new(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl Budget {
    /// Returns the caps that are set, each with the amount spent.
    pub fn caps(&self, spent: &Tally) -> impl Iterator<Item = (CapKind, Cap, u128)> + use<> {
        let caps = [
            (CapKind::TotalTokens, self.total_tokens, spent.total_tokens()),
            (CapKind::InputTokens, self.input_tokens, spent.all_input_tokens()),
            (CapKind::OutputTokens, self.output_tokens, spent.output_tokens),
            (CapKind::CostCents, self.cost_cents, spent.cost_cents()),
        ];
        caps.into_iter().filter_map(|(kind, cap, spent)| Some((kind, cap?, spent)))
    }

    /// Returns how much is spent of the cap that is closest to its limit, in whole percents,
    /// rounded down; 0 without a cap.
    pub fn spent_percent(&self, spent: &Tally) -> u128 {
        self.caps(spent).map(|(_, cap, spent)| cap.percent(spent)).max().unwrap_or(0)
    }

    /// Returns the caps that are set, each with the largest amount that does not reach it: in
    /// tokens, or in nano-cents. The amount of a cap of 0 is negative.
    pub fn limits(&self) -> impl Iterator<Item = (CapKind, i128)> {
        self.caps(&Tally::default()).map(|(kind, cap, _)| {
            let below = i128::from(cap.0) - 1;
            let limit = match kind {
                CapKind::TotalTokens | CapKind::InputTokens | CapKind::OutputTokens => below,
                // The cost is compared in cents that are rounded up.
                CapKind::CostCents => below * NANO.cast_signed(),
            };
            (kind, limit)
        })
    }

    /// Returns the first cap that is reached.
    pub fn reached(&self, spent: &Tally) -> Option<CapKind> {
        self.caps(spent).find(|(_, cap, spent)| *spent >= cap.0.into()).map(|(kind, _, _)| kind)
    }

    /// Returns the output tokens that the caps leave beside `input` tokens; `None` if no cap limits
    /// them. A cost cap limits them only with a price.
    pub fn output_left(&self, spent: &Tally, price: Option<Price>, input: u64) -> Option<u64> {
        let left = |cap: Option<Cap>, spent: u128| cap.map(|cap| u128::from(cap.0).saturating_sub(spent));
        let input = u128::from(input);
        let cost = left(self.cost_cents, 0).zip(price).map(|(cents, price)| {
            let left = (cents * NANO).saturating_sub(spent.cost + input * u128::from(price.input));
            left.checked_div(price.output.into()).unwrap_or(u128::MAX)
        });
        let tokens = left(self.total_tokens, spent.total_tokens() + input);
        let output = left(self.output_tokens, spent.output_tokens);
        [tokens, output, cost].into_iter().flatten().min().map(|left| u64::try_from(left).unwrap_or(u64::MAX))
    }

    pub fn audited(&self) -> Value {
        let cap = |cap: Option<Cap>| Value::from(cap.map(|cap| cap.0));
        Value::map([
            ("input_tokens", cap(self.input_tokens)),
            ("output_tokens", cap(self.output_tokens)),
            ("total_tokens", cap(self.total_tokens)),
            ("cost_cents", cap(self.cost_cents)),
            ("alert_percents", Value::list(self.alert_percents.iter().map(u64::from))),
        ])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CapKind {
    TotalTokens,
    InputTokens,
    OutputTokens,
    CostCents,
}

impl CapKind {
    /// Returns the name of the budget's field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TotalTokens => "total_tokens",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::CostCents => "cost_cents",
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::TotalTokens => "monthly token cap reached",
            Self::InputTokens => "monthly input token cap reached",
            Self::OutputTokens => "monthly output token cap reached",
            Self::CostCents => "monthly cost cap reached",
        }
    }
}

/// A cap: 0 (nothing may be spent) to 2^53−1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct Cap(u64);

impl TryFrom<u64> for Cap {
    type Error = Invalid;

    fn try_from(value: u64) -> Result<Self, Invalid> {
        if value > MAX_CAP {
            return Err(Invalid::new("must be an integer from 0 to 9007199254740991"));
        }
        Ok(Self(value))
    }
}

impl Cap {
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns whole percents, rounded down. A cap of 0 is always at 100.
    pub fn percent(self, spent: u128) -> u128 {
        (spent.saturating_mul(100)).checked_div(self.0.into()).unwrap_or(100)
    }
}

/// A whole percent from 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64")]
struct Percent(u8);

impl TryFrom<u64> for Percent {
    type Error = Invalid;

    fn try_from(percent: u64) -> Result<Self, Invalid> {
        let percent = u8::try_from(percent).ok().filter(|percent| (1..=100).contains(percent));
        percent.map(Self).ok_or(Invalid::new("must be a whole percent from 1 to 100"))
    }
}

/// At most ten percents, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Option<Vec<Percent>>")]
pub struct AlertPercents(Vec<Percent>);

impl AlertPercents {
    pub fn iter(&self) -> impl Iterator<Item = u8> {
        self.0.iter().map(|Percent(percent)| *percent)
    }
}

impl Default for AlertPercents {
    fn default() -> Self {
        Self([50, 80, 100].map(Percent).into())
    }
}

impl TryFrom<Option<Vec<Percent>>> for AlertPercents {
    type Error = Invalid;

    fn try_from(percents: Option<Vec<Percent>>) -> Result<Self, Invalid> {
        let Some(mut percents) = percents else {
            return Ok(Self::default());
        };
        if percents.len() > 10 {
            return Err(Invalid::new("must have at most 10 percents"));
        }
        percents.sort_unstable();
        percents.dedup();
        Ok(Self(percents))
    }
}

/// Whether a key may spend and, if not, why. Derived at every validation and never stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BudgetVerdict {
    Ok,
    Exhausted(Exhausted),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exhausted {
    Subscription(SubscriptionStatus),
    Cap { kind: CapKind, of: CapOwner },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CapOwner {
    Organization,
    ApiKey,
}

impl Exhausted {
    /// Returns a text for people. Programs use [`Self::cap`] and [`Self::owner`].
    pub fn reason(self) -> String {
        match self {
            Self::Subscription(status) => format!("subscription {}", status.as_str()),
            Self::Cap { kind, of: CapOwner::Organization } => kind.reason().to_owned(),
            Self::Cap { kind, of: CapOwner::ApiKey } => format!("key: {}", kind.reason()),
        }
    }

    /// Returns `None` if the subscription is the reason.
    pub const fn cap(self) -> Option<CapKind> {
        match self {
            Self::Subscription(_) => None,
            Self::Cap { kind, .. } => Some(kind),
        }
    }

    pub const fn owner(self) -> CapOwner {
        match self {
            Self::Subscription(_) => CapOwner::Organization,
            Self::Cap { of, .. } => of,
        }
    }

    /// Returns the end of the UTC month, or `None` if the subscription is the reason.
    pub fn resets_at(self, now: Timestamp) -> Option<Timestamp> {
        self.cap().map(|_| now.month().next().start())
    }
}

/// The caps that apply to a key and the amounts spent this month.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spending {
    pub organization_budget: Option<Budget>,
    pub organization: Tally,
    pub key_budget: Option<Budget>,
    pub key: Tally,
}

impl Spending {
    /// Returns the maximum of both [`Budget::spent_percent`].
    pub fn percent(&self) -> u128 {
        let of = |budget: &Option<Budget>, spent| budget.as_ref().map_or(0, |budget| budget.spent_percent(spent));
        of(&self.organization_budget, &self.organization).max(of(&self.key_budget, &self.key))
    }
}

impl BudgetVerdict {
    /// Decides whether a key may spend: by the subscription, then the organization's caps, then the key's.
    /// Compares cost in the whole cents that the usage routes return.
    pub fn new(subscription: SubscriptionStatus, spending: &Spending) -> Self {
        if !subscription.allows_spending() {
            return Self::Exhausted(Exhausted::Subscription(subscription));
        }
        let reached = |budget: &Option<Budget>, spent, of| {
            budget.as_ref().and_then(|budget| budget.reached(spent)).map(|kind| Exhausted::Cap { kind, of })
        };
        reached(&spending.organization_budget, &spending.organization, CapOwner::Organization)
            .or_else(|| reached(&spending.key_budget, &spending.key, CapOwner::ApiKey))
            .map_or(Self::Ok, Self::Exhausted)
    }

    pub fn is_ok(&self) -> bool {
        *self == Self::Ok
    }

    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Ok => None,
            Self::Exhausted(exhausted) => Some(exhausted.reason()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_parsing_is_strict() {
        let budget: Budget = serde_json::from_str(r#"{"total_tokens": 1000, "alert_percents": [80, 50, 80]}"#).unwrap();
        assert_eq!(
            serde_json::to_string(&budget).unwrap(),
            r#"{"input_tokens":null,"output_tokens":null,"total_tokens":1000,"cost_cents":null,"alert_percents":[50,80]}"#
        );
        for text in [
            r#"{"tokens":1}"#,
            r#"{"cost_cents":-1}"#,
            r#"{"cost_cents":1.5}"#,
            r#"{"cost_cents":9007199254740992}"#,
            r#"{"alert_percents":[0]}"#,
            r#"{"alert_percents":[101]}"#,
            r#"{"alert_percents":[1,2,3,4,5,6,7,8,9,10,11]}"#,
        ] {
            assert!(serde_json::from_str::<Budget>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_a_live_subscription_allows_spending() {
        let spending = Spending::default();
        assert!(BudgetVerdict::new(SubscriptionStatus::Trialing, &spending).is_ok());
        let verdict = BudgetVerdict::new(SubscriptionStatus::PastDue, &spending);
        assert_eq!(verdict.reason().as_deref(), Some("subscription past_due"));
    }

    fn budget(json: &str) -> Budget {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn reason_names_the_reached_cap() {
        let spent = Tally { input_tokens: 60, output_tokens: 40, cost: 1_000_000_001, ..Tally::default() };
        for (organization_budget, key_budget, reason) in [
            (r#"{"total_tokens":101,"cost_cents":3}"#, r#"{"input_tokens":61}"#, None),
            (r#"{"total_tokens":100}"#, "{}", Some("monthly token cap reached")),
            (r#"{"input_tokens":60}"#, "{}", Some("monthly input token cap reached")),
            (r#"{"output_tokens":40}"#, "{}", Some("monthly output token cap reached")),
            (r#"{"cost_cents":2}"#, "{}", Some("monthly cost cap reached")),
            (r#"{"total_tokens":0}"#, "{}", Some("monthly token cap reached")),
            ("{}", r#"{"total_tokens":100}"#, Some("key: monthly token cap reached")),
            ("{}", r#"{"cost_cents":1}"#, Some("key: monthly cost cap reached")),
        ] {
            let (organization_budget, key_budget) = (Some(budget(organization_budget)), Some(budget(key_budget)));
            let spending = Spending { organization_budget, organization: spent, key_budget, key: spent };
            assert_eq!(BudgetVerdict::new(SubscriptionStatus::Active, &spending).reason().as_deref(), reason);
        }
    }

    #[test]
    fn input_cap_includes_the_prompt_cache() {
        let spent = Tally { input_tokens: 1, cache_read_tokens: 2, cache_write_tokens: 3, ..Tally::default() };
        let reached = |json| budget(json).reached(&spent);
        assert_eq!(reached(r#"{"input_tokens":6}"#), Some(CapKind::InputTokens));
        assert_eq!(reached(r#"{"total_tokens":6}"#), Some(CapKind::TotalTokens));
        assert_eq!(reached(r#"{"input_tokens":7,"total_tokens":7,"output_tokens":1}"#), None);
    }

    #[test]
    fn verdict_names_the_cap_and_its_owner() {
        let spent = Tally { input_tokens: 60, output_tokens: 40, cost: 1_000_000_001, ..Tally::default() };
        let now: Timestamp = "2026-12-31T23:59:59Z".parse().unwrap();
        for kind in [CapKind::TotalTokens, CapKind::InputTokens, CapKind::OutputTokens, CapKind::CostCents] {
            let capped = || Some(budget(&format!(r#"{{"{}":1}}"#, kind.as_str())));
            for (of, organization_budget, key_budget) in
                [(CapOwner::Organization, capped(), capped()), (CapOwner::ApiKey, None, capped())]
            {
                let spending = Spending { organization_budget, organization: spent, key_budget, key: spent };
                let verdict = BudgetVerdict::new(SubscriptionStatus::Active, &spending);
                let BudgetVerdict::Exhausted(exhausted) = verdict else { panic!("{kind:?} of {of:?}") };
                assert_eq!((exhausted.cap(), exhausted.owner()), (Some(kind), of));
                assert_eq!(exhausted.resets_at(now).unwrap().to_string(), "2027-01-01T00:00:00.000Z");
                assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            }
        }
        let verdict = BudgetVerdict::new(SubscriptionStatus::Unpaid, &Spending::default());
        let BudgetVerdict::Exhausted(exhausted) = verdict else { panic!("{verdict:?}") };
        assert_eq!((exhausted.cap(), exhausted.owner()), (None, CapOwner::Organization));
        assert_eq!(exhausted.resets_at(now), None, "a subscription does not reset with the month");
    }

    #[test]
    fn limit_is_the_largest_amount_below_the_cap() {
        let budget = budget(r#"{"output_tokens":5,"cost_cents":2}"#);
        let limits: Vec<_> = budget.limits().collect();
        assert_eq!(limits, [(CapKind::OutputTokens, 4), (CapKind::CostCents, 1_000_000_000)]);
        for (output_tokens, cost, reached) in [
            (4, 1_000_000_000, None),
            (5, 1_000_000_000, Some(CapKind::OutputTokens)),
            (4, 1_000_000_001, Some(CapKind::CostCents)),
        ] {
            assert_eq!(budget.reached(&Tally { output_tokens, cost, ..Tally::default() }), reached);
        }
        assert!(self::budget(r#"{"cost_cents":0}"#).limits().all(|(_, limit)| limit < 0));
    }

    #[test]
    fn spent_percent_is_rounded_down() {
        let spent = Tally { input_tokens: 949, ..Tally::default() };
        let percent = |json| budget(json).spent_percent(&spent);
        assert_eq!(percent(r#"{"input_tokens":1000,"output_tokens":5}"#), 94);
        assert_eq!((percent("{}"), percent(r#"{"output_tokens":0}"#)), (0, 100));
    }
}
