use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Budget, BudgetVerdict, Cap, CapKind, Month, Tally};

/// Maximum number of remembered thresholds. Beyond it all are forgotten, so a caller who keeps
/// changing caps may get one reported twice.
const MAX_REPORTED: usize = 1_000;

/// The last reported state of a budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetWatch {
    pub month: Month,
    /// Thresholds of this month, each with its cap: `total_tokens:1000:80`. Stored as `told`.
    #[serde(default, rename = "told", skip_serializing_if = "BTreeSet::is_empty")]
    pub reported: BTreeSet<String>,
    pub exhausted: bool,
    /// Counts changes: a write that depends on a read is conditional on it.
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BudgetNotice {
    Threshold { kind: CapKind, cap: Cap, percent: u8, spent: u128 },
    Exhausted { reason: String },
    Restored,
}

impl BudgetWatch {
    pub fn new(month: Month) -> Self {
        Self { month, reported: BTreeSet::new(), exhausted: false, version: 0 }
    }

    /// Returns what to report since the last observation: each threshold once per month and cap,
    /// and each change between exhausted and restored.
    pub fn observe(
        &mut self,
        month: Month,
        budget: Option<&Budget>,
        spent: &Tally,
        verdict: &BudgetVerdict,
    ) -> Vec<BudgetNotice> {
        let mut notices = Vec::new();
        if month < self.month {
            // This observation began before midnight and ended after an observation that began
            // later.
            return notices;
        }
        if self.month != month {
            self.month = month;
            self.reported.clear();
        }
        if self.reported.len() > MAX_REPORTED {
            self.reported.clear();
        }
        for (budget, kind, cap, spent) in budget
            .into_iter()
            .flat_map(|budget| budget.caps(spent).map(move |(kind, cap, spent)| (budget, kind, cap, spent)))
        {
            let reached = budget.alert_percents.iter().filter(|percent| u128::from(*percent) <= cap.percent(spent));
            for percent in reached {
                if self.reported.insert(format!("{}:{}:{percent}", kind.as_str(), cap.get())) {
                    notices.push(BudgetNotice::Threshold { kind, cap, percent, spent });
                }
            }
        }
        match (self.exhausted, verdict) {
            (false, BudgetVerdict::Exhausted(exhausted)) => {
                notices.push(BudgetNotice::Exhausted { reason: exhausted.reason() });
            }
            (true, BudgetVerdict::Ok) => notices.push(BudgetNotice::Restored),
            (true, BudgetVerdict::Exhausted(_)) | (false, BudgetVerdict::Ok) => {}
        }
        self.exhausted = !verdict.is_ok();
        notices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Spending, SubscriptionStatus};

    fn month(text: &str) -> Month {
        Month::try_from(text.to_owned()).unwrap()
    }

    fn observe(watch: &mut BudgetWatch, of: &str, cap: u64, spent: u128) -> Vec<String> {
        let budget: Budget = serde_json::from_value(serde_json::json!({ "total_tokens": cap })).unwrap();
        let spent = Tally { input_tokens: spent, ..Tally::default() };
        let spending =
            Spending { organization_budget: Some(budget.clone()), organization: spent, ..Spending::default() };
        let verdict = BudgetVerdict::new(SubscriptionStatus::Active, &spending);
        let notices = watch.observe(month(of), Some(&budget), &spent, &verdict);
        let reported = notices.into_iter().map(|notice| match notice {
            BudgetNotice::Threshold { percent, .. } => percent.to_string(),
            BudgetNotice::Exhausted { reason } => reason,
            BudgetNotice::Restored => "restored".to_owned(),
        });
        reported.collect()
    }

    #[test]
    fn each_threshold_is_reported_once_per_cap() {
        let mut watch = BudgetWatch::new(month("2026-11"));
        assert!(observe(&mut watch, "2026-11", 100, 49).is_empty());
        assert_eq!(observe(&mut watch, "2026-11", 100, 85), ["50", "80"]);
        assert!(observe(&mut watch, "2026-11", 100, 99).is_empty());
        assert_eq!(observe(&mut watch, "2026-11", 100, 100), ["100", "monthly token cap reached"]);
        assert_eq!(observe(&mut watch, "2026-11", 1_000, 510), ["50", "restored"], "a raised cap counts as a new one");
        assert_eq!(observe(&mut watch, "2026-11", 100, 510), ["monthly token cap reached"], "already reported");
        assert_eq!(observe(&mut watch, "2026-12", 100, 50), ["50", "restored"], "a new month");
        assert!(observe(&mut watch, "2026-11", 100, 510).is_empty(), "past months are not reported");
    }
}
