//! Finds environment variables that start with `KARTA_` and that nothing reads, such as a misspelt
//! name or a client's variable in place of the runner's.

use std::{collections::BTreeSet, fmt, iter};

use clap::CommandFactory;
use karta_shared::config;

use crate::cli::Arguments;

/// Variables of clients, of commands in the documentation and of this repository's scripts.
const OTHERS: [&str; 10] = [
    "KARTA_API_KEY",
    "KARTA_BASE_URL",
    "KARTA_BIN",
    "KARTA_DOCS_MARK",
    CLIENT_TOKEN,
    "KARTA_SESSION_SIGNING",
    "KARTA_SESSION_TOKEN",
    "KARTA_STREAMS",
    "KARTA_UPDATE",
    "KARTA_WEBHOOK_SECRET",
];

/// A client's variable that differs in one letter from [`RUNNER_TOKENS`].
const CLIENT_TOKEN: &str = "KARTA_SERVICE_TOKEN";
const RUNNER_TOKENS: &str = "KARTA_SERVICE_TOKENS";

/// A variable that is set and that nothing reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownVariable {
    pub name: String,
    /// The known name that differs in a few letters, if there is one.
    pub closest: Option<String>,
}

impl fmt::Display for UnknownVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the environment variable {} is unknown and has no effect", self.name)?;
        self.closest.as_ref().map_or(Ok(()), |closest| write!(f, ": did you mean {closest}?"))
    }
}

/// Returns the names of all known variables: those of flags, of the configuration and of clients.
pub fn known() -> BTreeSet<String> {
    let command = Arguments::command();
    let commands = iter::once(&command).chain(command.get_subcommands());
    let flags = commands.flat_map(clap::Command::get_arguments).filter_map(|flag| flag.get_env()?.to_str());
    let mut known: BTreeSet<String> = flags.map(ToOwned::to_owned).collect();
    known.extend(config::variables().chain(OTHERS).map(ToOwned::to_owned));
    known
}

/// Returns the variables of the environment that start with `KARTA_` and are not known, and the
/// client's service token if the runner's tokens are not set.
pub fn unknown() -> Vec<UnknownVariable> {
    unknown_of(&config::set_variables())
}

fn unknown_of(set: &BTreeSet<String>) -> Vec<UnknownVariable> {
    let known = known();
    let is_misplaced = |name: &str| name == CLIENT_TOKEN && !set.contains(RUNNER_TOKENS);
    let unknown = set.iter().filter(|name| !known.contains(*name) || is_misplaced(name));
    unknown.map(|name| UnknownVariable { closest: closest(name, &known), name: name.clone() }).collect()
}

fn closest(name: &str, known: &BTreeSet<String>) -> Option<String> {
    let others = known.iter().filter(|known| *known != name);
    let (distance, closest) = others.map(|known| (distance(name, known), known)).min()?;
    let max_distance = (name.len().saturating_sub(config::VARIABLE_PREFIX.len()) / 4).clamp(1, 3);
    (distance <= max_distance).then(|| closest.clone())
}

/// Counts the letters that are added, removed, replaced or swapped with their neighbour.
fn distance(from: &str, to: &str) -> usize {
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let mut rows: Vec<Vec<usize>> = vec![(0..=to.len()).collect()];
    for (i, x) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in to.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(x != y);
            let mut least = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == to[j - 1] && from[i - 1] == *y {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rest: &str) -> Option<UnknownVariable> {
        // In two parts: a test checks that every whole name in the sources is known.
        unknown_of(&BTreeSet::from([format!("KARTA_{rest}")])).pop()
    }

    #[test]
    fn misspelt_variable_gets_the_closest_name() {
        for (rest, closest) in [
            ("PROT", Some("KARTA_PORT")),
            ("PORTS", Some("KARTA_PORT")),
            ("EPHEMRAL", Some("KARTA_EPHEMERAL")),
            ("DATADIR", Some("KARTA_DATA_DIR")),
            ("PRICE", Some("KARTA_PRICES")),
            ("INTERNAL_HOST", Some("KARTA_INTERNAL_HOSTS")),
            ("SERVICE_TOKNES", Some("KARTA_SERVICE_TOKENS")),
            ("SECRET_STRIP", Some("KARTA_SECRET_STRIPE")),
            ("FOO", None),
            ("COLOUR", None),
            ("", None),
            ("pört", None),
        ] {
            let unknown = found(rest).unwrap();
            assert_eq!(unknown.closest.as_deref(), closest, "{rest}");
        }
        let text = found("PROT").unwrap().to_string();
        assert!(text.ends_with("PROT is unknown and has no effect: did you mean KARTA_PORT?"), "{text}");
        assert!(found("FOO").unwrap().to_string().ends_with("FOO is unknown and has no effect"));
    }

    #[test]
    fn variables_of_flags_configuration_and_clients_are_known() {
        for rest in ["PORT", "ORG", "ALLOW_LOOPBACK_WEBHOOKS", "PRICES", "TABLE", "SECRET_KEY_TAG", "API_KEY"] {
            assert_eq!(found(rest), None, "{rest}");
        }
        assert!(unknown_of(&known()).is_empty());
    }

    #[test]
    fn misplaced_client_token_is_reported() {
        assert_eq!(found("SERVICE_TOKEN").unwrap().closest.as_deref(), Some(RUNNER_TOKENS));
        let both = BTreeSet::from([CLIENT_TOKEN, RUNNER_TOKENS].map(ToOwned::to_owned));
        assert!(unknown_of(&both).is_empty());
    }

    #[test]
    fn distance_counts_edits() {
        for (from, to, edits) in
            [("", "", 0), ("", "ab", 2), ("ab", "ba", 1), ("abc", "abd", 1), ("abcd", "acd", 1), ("ab", "cd", 2)]
        {
            assert_eq!((distance(from, to), distance(to, from)), (edits, edits), "{from} {to}");
        }
    }
}
