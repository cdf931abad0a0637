use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Budget, BudgetVerdict, Cap, CapKind, Month, Tally};

/// How many thresholds of a month are remembered: whoever sets a new cap every minute may hear of one again.
const TOLD_AT_MOST: usize = 1_000;

/// What the owner of a budget was told of it already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetWatch {
    pub month: Month,
    /// The thresholds of this month, each with its cap: `total_tokens:1000:80`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub told: BTreeSet<String>,
    pub exhausted: bool,
    /// Counts changes: a write that depends on a read is conditional on it.
    pub version: u64,
}

/// What the owner of a budget is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BudgetNews {
    Threshold { kind: CapKind, cap: Cap, percent: u8, spent: u128 },
    Exhausted { reason: String },
    Restored,
}

impl BudgetWatch {
    /// Before anything was told.
    pub fn new(month: Month) -> Self {
        Self { month, told: BTreeSet::new(), exhausted: false, version: 0 }
    }

    /// What is new since the last look: each threshold once a month and cap, and every turn between spending and not.
    pub fn observe(
        &mut self,
        month: Month,
        budget: Option<&Budget>,
        spent: &Tally,
        verdict: &BudgetVerdict,
    ) -> Vec<BudgetNews> {
        let mut news = Vec::new();
        if month < self.month {
            // A look that began before midnight and ends behind one that began after.
            return news;
        }
        if self.month != month {
            self.month = month;
            self.told.clear();
        }
        if self.told.len() > TOLD_AT_MOST {
            self.told.clear();
        }
        for (budget, kind, cap, spent) in budget
            .into_iter()
            .flat_map(|budget| budget.caps(spent).map(move |(kind, cap, spent)| (budget, kind, cap, spent)))
        {
            let reached = budget.alert_percents.iter().filter(|percent| u128::from(*percent) <= cap.percent(spent));
            for percent in reached {
                if self.told.insert(format!("{}:{}:{percent}", kind.as_str(), cap.get())) {
                    news.push(BudgetNews::Threshold { kind, cap, percent, spent });
                }
            }
        }
        match (self.exhausted, verdict) {
            (false, BudgetVerdict::Exhausted(exhausted)) => {
                news.push(BudgetNews::Exhausted { reason: exhausted.reason() });
            }
            (true, BudgetVerdict::Ok) => news.push(BudgetNews::Restored),
            (true, BudgetVerdict::Exhausted(_)) | (false, BudgetVerdict::Ok) => {}
        }
        self.exhausted = !verdict.is_ok();
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Spending, SubscriptionStatus};

    fn month(text: &str) -> Month {
        Month::try_from(text.to_owned()).unwrap()
    }

    fn look(watch: &mut BudgetWatch, of: &str, cap: u64, spent: u128) -> Vec<String> {
        let budget: Budget = serde_json::from_value(serde_json::json!({ "total_tokens": cap })).unwrap();
        let spent = Tally { input_tokens: spent, ..Tally::default() };
        let spending =
            Spending { organization_budget: Some(budget.clone()), organization: spent, ..Spending::default() };
        let verdict = BudgetVerdict::new(SubscriptionStatus::Active, &spending);
        let news = watch.observe(month(of), Some(&budget), &spent, &verdict);
        let told = news.into_iter().map(|news| match news {
            BudgetNews::Threshold { percent, .. } => percent.to_string(),
            BudgetNews::Exhausted { reason } => reason,
            BudgetNews::Restored => "restored".to_owned(),
        });
        told.collect()
    }

    #[test]
    fn each_threshold_is_told_once_a_month_and_cap() {
        let mut watch = BudgetWatch::new(month("2026-11"));
        assert!(look(&mut watch, "2026-11", 100, 49).is_empty());
        assert_eq!(look(&mut watch, "2026-11", 100, 85), ["50", "80"]);
        assert!(look(&mut watch, "2026-11", 100, 99).is_empty());
        assert_eq!(look(&mut watch, "2026-11", 100, 100), ["100", "monthly token cap reached"]);
        assert_eq!(look(&mut watch, "2026-11", 1_000, 510), ["50", "restored"], "a raised cap is another one");
        assert_eq!(look(&mut watch, "2026-11", 100, 510), ["monthly token cap reached"], "told of this cap before");
        assert_eq!(look(&mut watch, "2026-12", 100, 50), ["50", "restored"], "another month");
        assert!(look(&mut watch, "2026-11", 100, 510).is_empty(), "nothing is told of a month that is over");
    }
}
