use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{Invalid, SubscriptionStatus, Value};

/// The largest cap: what every JSON reader keeps exact.
const MAX_CAP: u64 = (1 << 53) - 1;

/// Caps per UTC month, of an organization or of one key; `null` is no cap. Tokens are counted, cost is in whole cents.
/// `alert_percents` are the shares of a cap at which the owner is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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

/// Only an object will do: what serde derives would take a list of the fields' values too.
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
    /// As the audit log shows it.
    pub fn audited(&self) -> Value {
        let cap = |cap: Option<Cap>| Value::from(cap.map(|cap| cap.0));
        Value::map([
            ("input_tokens", cap(self.input_tokens)),
            ("output_tokens", cap(self.output_tokens)),
            ("total_tokens", cap(self.total_tokens)),
            ("cost_cents", cap(self.cost_cents)),
            ("alert_percents", Value::list(self.alert_percents.0.iter().map(|percent| u64::from(*percent)))),
        ])
    }
}

/// One cap: 0 (nothing may be spent) to 2^53−1.
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

/// At most ten whole percents from 1 to 100, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Option<Vec<u8>>")]
pub struct AlertPercents(Vec<u8>);

impl Default for AlertPercents {
    fn default() -> Self {
        Self(vec![50, 80, 100])
    }
}

impl TryFrom<Option<Vec<u8>>> for AlertPercents {
    type Error = Invalid;

    fn try_from(percents: Option<Vec<u8>>) -> Result<Self, Invalid> {
        let Some(mut percents) = percents else {
            return Ok(Self::default());
        };
        percents.sort_unstable();
        percents.dedup();
        if percents.len() > 10 || percents.iter().any(|percent| !(1..=100).contains(percent)) {
            return Err(Invalid::new("must hold at most 10 whole percents from 1 to 100"));
        }
        Ok(Self(percents))
    }
}

/// Whether money may be spent, and if not, why. Derived at every validation, never stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BudgetVerdict {
    Ok,
    Exhausted { reason: String },
}

impl BudgetVerdict {
    pub fn judge(subscription: SubscriptionStatus) -> Self {
        if subscription.allows_spending() {
            Self::Ok
        } else {
            Self::Exhausted { reason: format!("subscription {}", subscription.as_str()) }
        }
    }

    pub fn is_ok(&self) -> bool {
        *self == Self::Ok
    }

    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::Exhausted { reason } => Some(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_read_strictly() {
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
    fn only_a_live_subscription_spends() {
        assert!(BudgetVerdict::judge(SubscriptionStatus::Trialing).is_ok());
        let verdict = BudgetVerdict::judge(SubscriptionStatus::PastDue);
        assert_eq!(verdict.reason(), Some("subscription past_due"));
    }
}
