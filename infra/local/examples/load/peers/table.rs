use std::io::Write;

use anyhow::Result;

#[derive(Clone, Copy)]
pub(super) enum Goal {
    None,
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    /// Returns the goal and whether `ratio` meets it, or an empty text without a goal.
    fn outcome(self, ratio: f64) -> String {
        let (goal, met) = match self {
            Self::None => return String::new(),
            Self::AtLeast(goal) => (format!("≥ {goal:.1}"), ratio >= goal),
            Self::AtMost(goal) => (format!("≤ {goal:.2}"), ratio <= goal),
        };
        format!("{goal}: {}", if met { "met" } else { "**missed**" })
    }
}

pub(super) fn head() -> Result<()> {
    print_line("| what | ours | better-auth | ratio | goal |\n| --- | --- | --- | --- | --- |")
}

pub(super) fn rates(what: &str, [ours, theirs]: [f64; 2], goal: Goal) -> Result<()> {
    row(what, [rate(ours), rate(theirs)], ours / theirs, goal)
}

pub(super) fn millis(what: &str, [ours, theirs]: [f64; 2], goal: Goal) -> Result<()> {
    row(what, [ours, theirs].map(|time| format!("{time:.0} ms")), ours / theirs, goal)
}

pub(super) fn megabytes(what: &str, [ours, theirs]: [f64; 2], goal: Goal) -> Result<()> {
    row(what, [ours, theirs].map(|size| format!("{size:.0} MB")), ours / theirs, goal)
}

pub(super) fn floor(what: &str, per_second: f64) -> Result<()> {
    print_line(&format!("| {what} | | {} | | |", rate(per_second)))
}

pub(super) fn note(text: &str) -> Result<()> {
    print_line(&format!("\n{text}"))
}

fn row(what: &str, [ours, theirs]: [String; 2], ratio: f64, goal: Goal) -> Result<()> {
    let digits = if ratio < 0.1 { 3 } else { 2 };
    print_line(&format!("| {what} | {ours} | {theirs} | {ratio:.digits$} | {} |", goal.outcome(ratio)))
}

/// Formats responses per second, with a decimal below 100.
fn rate(per_second: f64) -> String {
    if per_second < 100.0 { format!("{per_second:.1}/s") } else { format!("{per_second:.0}/s") }
}

fn print_line(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
