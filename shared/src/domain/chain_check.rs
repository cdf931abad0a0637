//! Checks an organization's audit log for tampering, with the ring `audit`.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
};

use super::{Anchor, EventMark, Hash32, Id, Keyring, Link, Timestamp, chain::is_overdue};

/// An organization's audit log, read in this order: links, events, anchors, then links again.
#[derive(Debug, Clone, Default)]
pub struct AuditLog {
    pub events: BTreeMap<String, EventMark>,
    pub links: BTreeMap<u64, Link>,
    /// The link into which the worker put each event.
    pub claims: BTreeMap<String, u64>,
    /// Each link has one anchor, unless the chain was set back.
    pub anchors: BTreeMap<u64, Vec<Anchor>>,
    /// The last link before the events were read. The events of later links may have been read
    /// before they were chained.
    pub settled: u64,
    /// Whether the log holds the event of the organization's creation.
    pub created: bool,
    /// Sort keys of items that are neither event, link, claim nor anchor.
    pub unreadable: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    pub events: usize,
    pub links: usize,
    pub pending: usize,
    pub findings: Vec<Finding>,
}

/// Evidence of tampering, with the sort keys of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    LogMissing,
    CreationMissing,
    Unreadable { sk: String },
    LinksMissing { from: u64, to: u64 },
    LinkChanged { n: u64 },
    LinkDetached { n: u64 },
    KeyUnknown { n: u64 },
    MacWrong { n: u64 },
    AnchorMissing { n: u64 },
    AnchorDiffers { n: u64 },
    EventMissing { sk: String, n: u64 },
    EventChanged { sk: String, n: u64 },
    EventMisplaced { sk: String, n: u64 },
    EventListedTwice { sk: String, n: u64 },
    EventNotListed { sk: String, n: u64 },
    EventNowhere { sk: String, n: u64 },
    EventUnaccounted { sk: String },
    EventOverdue { sk: String },
    EventUnsound { sk: String },
    ClaimWrong { sk: String },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LogMissing => f.write_str("the audit log is missing: no events, links or anchors"),
            Self::CreationMissing => f.write_str("the audit log does not begin with the organization's creation"),
            Self::Unreadable { sk } => write!(f, "{sk:?} cannot be read"),
            Self::LinksMissing { from, to } if from == to => write!(f, "link {from} is missing"),
            Self::LinksMissing { from, to } => write!(f, "links {from} to {to} are missing"),
            Self::LinkChanged { n } => write!(f, "link {n} does not match its hash"),
            Self::LinkDetached { n } => write!(f, "link {n} does not follow the link before it"),
            Self::KeyUnknown { n } => write!(f, "link {n} has a MAC by a key that the ring does not hold"),
            Self::MacWrong { n } => write!(f, "link {n} has an invalid MAC"),
            Self::AnchorMissing { n } => write!(f, "link {n} has no anchor"),
            Self::AnchorDiffers { n } => write!(f, "link {n} differs from its anchor"),
            Self::EventMissing { sk, n } => write!(f, "event {sk} of link {n} is missing"),
            Self::EventChanged { sk, n } => write!(f, "event {sk} differs from its digest in link {n}"),
            Self::EventMisplaced { sk, n } => write!(f, "event {sk} is in link {n} but does not name it"),
            Self::EventListedTwice { sk, n } => write!(f, "event {sk} is in link {n} and in an earlier link"),
            Self::EventNotListed { sk, n } => write!(f, "event {sk} names link {n}, which does not list it"),
            Self::EventNowhere { sk, n } => write!(f, "event {sk} names link {n}, which is missing"),
            Self::EventUnaccounted { sk } => write!(f, "event {sk} is neither chained nor waiting"),
            Self::EventOverdue { sk } => write!(f, "event {sk} has been waiting for more than ten minutes"),
            Self::EventUnsound { sk } => write!(f, "event {sk} is malformed"),
            Self::ClaimWrong { sk } => {
                write!(f, "the claim of event {sk} is missing or names a link that does not list the event")
            }
        }
    }
}

/// Compares events, links and anchors and verifies the MACs. A waiting event is a finding only if
/// it was overdue at `now`, when the read began.
pub fn check(organization: Id, log: &AuditLog, ring: &Keyring, now: Timestamp) -> Checked {
    let mut findings: Vec<_> = log.unreadable.iter().map(|sk| Finding::Unreadable { sk: sk.clone() }).collect();
    // The creation of an organization is itself an event, so a log is never empty.
    if log.events.is_empty() && log.links.is_empty() && log.anchors.is_empty() {
        findings.push(Finding::LogMissing);
    }
    missing_links(log, &mut findings);
    for (n, link) in &log.links {
        check_link(organization, *n, link, log, ring, &mut findings);
    }
    let listed = listed_events(log, &mut findings);
    for (sk, (n, digest)) in &listed {
        check_listed(log, sk, *n, *digest, &mut findings);
    }
    let mut pending = 0;
    for (sk, mark) in log.events.iter().filter(|(sk, _)| !listed.contains_key(sk.as_str())) {
        let sk = sk.clone();
        match mark.link {
            Some(n) if log.links.contains_key(&n) => findings.push(Finding::EventNotListed { sk, n }),
            Some(n) => findings.push(Finding::EventNowhere { sk, n }),
            None if !mark.unchained => findings.push(Finding::EventUnaccounted { sk }),
            None => {
                pending += 1;
                if !mark.sound {
                    findings.push(Finding::EventUnsound { sk });
                } else if is_overdue(&sk, now) {
                    findings.push(Finding::EventOverdue { sk });
                }
            }
        }
    }
    let stray = |(sk, n): &(&String, &u64)| listed.get(sk.as_str()).is_none_or(|(listing, _)| listing != *n);
    findings.extend(log.claims.iter().filter(stray).map(|(sk, _)| Finding::ClaimWrong { sk: sk.clone() }));
    // A log that was deleted and then continued is consistent in itself.
    if findings.is_empty() && !log.created {
        findings.push(Finding::CreationMissing);
    }
    Checked { events: log.events.len(), links: log.links.len(), pending, findings }
}

/// Checks up to the last link or anchor.
fn missing_links(log: &AuditLog, findings: &mut Vec<Finding>) {
    let mut next = 1;
    let anchored = log.anchors.keys().next_back().copied().unwrap_or(0);
    for n in log.links.keys().copied().chain([anchored.saturating_add(1)]) {
        if n > next {
            findings.push(Finding::LinksMissing { from: next, to: n - 1 });
        }
        next = next.max(n.saturating_add(1));
    }
}

fn check_link(organization: Id, n: u64, link: &Link, log: &AuditLog, ring: &Keyring, findings: &mut Vec<Finding>) {
    let before = n.checked_sub(1).and_then(|n| log.links.get(&n));
    if link.n != n || n == 0 || link.recomputed(organization) != link.hash {
        findings.push(Finding::LinkChanged { n });
    } else if (n == 1 || before.is_some()) && !link.follows(organization, before.map(|link| link.hash)) {
        findings.push(Finding::LinkDetached { n });
    }
    match link.is_genuine(ring) {
        Some(true) => {}
        Some(false) => findings.push(Finding::MacWrong { n }),
        None => findings.push(Finding::KeyUnknown { n }),
    }
    match log.anchors.get(&n) {
        None if n <= log.settled => findings.push(Finding::AnchorMissing { n }),
        Some(anchors) if *anchors != [Anchor::from(link)] => findings.push(Finding::AnchorDiffers { n }),
        None | Some(_) => {}
    }
}

fn listed_events<'a>(log: &'a AuditLog, findings: &mut Vec<Finding>) -> BTreeMap<&'a str, (u64, Hash32)> {
    let mut listed = BTreeMap::new();
    for (n, link) in &log.links {
        for event in &link.events {
            match listed.entry(event.sk.as_str()) {
                Entry::Vacant(entry) => drop(entry.insert((*n, event.digest))),
                Entry::Occupied(_) => findings.push(Finding::EventListedTwice { sk: event.sk.clone(), n: *n }),
            }
        }
    }
    listed
}

fn check_listed(log: &AuditLog, sk: &str, n: u64, digest: Hash32, findings: &mut Vec<Finding>) {
    let late = n > log.settled;
    let sk = sk.to_owned();
    let Some(mark) = log.events.get(&sk) else {
        if !late {
            findings.push(Finding::EventMissing { sk, n });
        }
        return;
    };
    if !late && !log.claims.contains_key(&sk) {
        findings.push(Finding::ClaimWrong { sk: sk.clone() });
    }
    let was_unchained = late && mark.link.is_none() && mark.unchained;
    if mark.digest != digest {
        findings.push(Finding::EventChanged { sk, n });
    } else if !was_unchained && (mark.link != Some(n) || mark.unchained) {
        findings.push(Finding::EventMisplaced { sk, n });
    } else if !mark.sound {
        findings.push(Finding::EventUnsound { sk });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::ChainedEvent;

    const WAITING: &str = "2026-11-22T00:00:00.000Z#1";

    fn organization() -> Id {
        Id::new(7).unwrap()
    }

    fn now() -> Timestamp {
        "2026-11-22T00:10:00Z".parse().unwrap()
    }

    fn ring(letter: &str) -> Keyring {
        Keyring::single("k1", letter.repeat(32)).unwrap()
    }

    fn digest(text: &str) -> Hash32 {
        Hash32::for_event(text.as_bytes())
    }

    fn mark(text: &str) -> EventMark {
        EventMark { digest: digest(text), link: Some(1), unchained: false, sound: true }
    }

    /// Links of these sizes, and one waiting event.
    fn log(sizes: &[usize], ring: &Keyring) -> AuditLog {
        let mut log = AuditLog { settled: sizes.len() as u64, created: true, ..AuditLog::default() };
        for (at, size) in sizes.iter().enumerate() {
            let sks = (0..*size).map(|event| format!("{at}#{event}"));
            let events: Vec<_> = sks.map(|sk| ChainedEvent { digest: digest(&sk), sk }).collect();
            append(&mut log, events, ring);
        }
        log.events.insert(WAITING.to_owned(), EventMark { link: None, unchained: true, ..mark(WAITING) });
        log
    }

    fn append(log: &mut AuditLog, events: Vec<ChainedEvent>, ring: &Keyring) {
        let at = "2026-11-22T00:00:00Z".parse().unwrap();
        let link = Link::after(log.links.values().next_back(), organization(), at, events, ring);
        for event in &link.events {
            let mark = EventMark { digest: event.digest, link: Some(link.n), unchained: false, sound: true };
            log.events.insert(event.sk.clone(), mark);
            log.claims.insert(event.sk.clone(), link.n);
        }
        log.anchors.entry(link.n).or_default().push(Anchor::from(&link));
        log.links.insert(link.n, link);
    }

    fn findings(log: &AuditLog) -> Vec<Finding> {
        check(organization(), log, &ring("a"), now()).findings
    }

    #[test]
    fn valid_log_has_no_findings() {
        let checked = check(organization(), &log(&[2, 1, 3], &ring("a")), &ring("a"), now());
        assert_eq!(checked, Checked { events: 7, links: 3, pending: 1, findings: Vec::new() });
    }

    #[test]
    fn missing_log_is_a_finding() {
        assert_eq!(findings(&AuditLog::default()), [Finding::LogMissing]);
        let restarted = AuditLog { created: false, ..log(&[2], &ring("a")) };
        assert_eq!(findings(&restarted), [Finding::CreationMissing]);
        let mut claimed = AuditLog::default();
        claimed.claims.insert("0#0".to_owned(), 1);
        assert!(findings(&claimed).contains(&Finding::LogMissing), "claims are not a log");
    }

    #[test]
    fn overdue_event_is_a_finding() {
        let log = log(&[1], &ring("a"));
        let later = now().plus(std::time::Duration::from_millis(1));
        let checked = check(organization(), &log, &ring("a"), later);
        assert_eq!((checked.pending, checked.findings), (1, vec![Finding::EventOverdue { sk: WAITING.to_owned() }]));
    }

    #[test]
    fn chaining_during_the_read_is_not_a_finding() {
        let whole = log(&[2, 1, 3], &ring("a"));
        let mut read = whole.clone();
        read.settled = 2;
        // Of the third link, one event was read before it was chained and two were not written yet.
        read.events.insert("2#0".to_owned(), EventMark { link: None, unchained: true, ..whole.events["2#0"] });
        read.events.retain(|sk, _| !["2#1", "2#2"].contains(&sk.as_str()));
        read.claims.retain(|_, n| *n < 3);
        read.anchors.remove(&3);
        assert_eq!(findings(&read), []);
        read.settled = 3;
        let sk = |event: u8| format!("2#{event}");
        let expected = [
            Finding::AnchorMissing { n: 3 },
            Finding::ClaimWrong { sk: sk(0) },
            Finding::EventMisplaced { sk: sk(0), n: 3 },
            Finding::EventMissing { sk: sk(1), n: 3 },
            Finding::EventMissing { sk: sk(2), n: 3 },
        ];
        assert_eq!(findings(&read), expected);
    }

    #[test]
    fn recomputed_chain_has_invalid_macs() {
        let forged = log(&[2, 1], &ring("b"));
        assert_eq!(findings(&forged), [Finding::MacWrong { n: 1 }, Finding::MacWrong { n: 2 }]);
        let unknown = Keyring::single("k2", "a".repeat(32)).unwrap();
        assert_eq!(findings(&log(&[1], &unknown)), [Finding::KeyUnknown { n: 1 }]);
    }

    #[test]
    fn anchors_reveal_a_cut_or_rechained_tail() {
        let mut cut = log(&[2, 1, 3, 1], &ring("a"));
        cut.links.retain(|n, _| *n < 3);
        cut.claims.retain(|_, n| *n < 3);
        cut.events.retain(|_, mark| mark.link.is_none_or(|n| n < 3));
        assert_eq!(findings(&cut), [Finding::LinksMissing { from: 3, to: 4 }]);
        let sk = "rechained".to_owned();
        append(&mut cut, vec![ChainedEvent { digest: digest(&sk), sk }], &ring("a"));
        assert_eq!(findings(&cut), [Finding::LinksMissing { from: 4, to: 4 }, Finding::AnchorDiffers { n: 3 }]);
    }

    fn tamper(log: &mut AuditLog, way: usize, pick: prop::sample::Index) {
        let sks: Vec<_> = log.claims.keys().cloned().collect();
        let sk = pick.get(&sks).clone();
        let n = log.claims[&sk];
        let mark = log.events[&sk];
        let mut put = |sk: &str, mark| {
            log.events.insert(sk.to_owned(), mark);
        };
        let link = log.links.get_mut(&n).unwrap();
        let anchor = &mut log.anchors.get_mut(&n).unwrap()[0];
        match way {
            0 => put(&sk, EventMark { digest: digest("other"), ..mark }),
            1 => put(&sk, EventMark { link: Some(n + 1), ..mark }),
            2 => put(&sk, EventMark { link: None, ..mark }),
            3 => put(&sk, EventMark { unchained: true, ..mark }),
            4 => put(&sk, EventMark { link: None, unchained: true, ..mark }),
            5 => drop(log.events.remove(&sk)),
            6 => drop(log.links.remove(&n)),
            7 => drop(log.claims.remove(&sk)),
            8 => drop(log.anchors.remove(&n)),
            9 => link.n += 1,
            10 => link.at = link.at.plus(std::time::Duration::from_millis(1)),
            11 => link.events.push(ChainedEvent { sk: "more".to_owned(), digest: digest("more") }),
            12 => drop(link.events.pop()),
            13 => link.previous = digest("other"),
            14 => link.hash = digest("other"),
            15 => link.kid.push('1'),
            16 => link.mac = digest("other"),
            17 => anchor.hash = digest("other"),
            18 => anchor.mac = digest("other"),
            19 => anchor.kid.push('1'),
            20 => anchor.at = anchor.at.plus(std::time::Duration::from_millis(1)),
            21 => *log.claims.get_mut(&sk).unwrap() += 1,
            22 => put("new", EventMark { link: Some(n), ..mark }),
            23 => put("new", EventMark { link: Some(99), ..mark }),
            24 => put("new", EventMark { link: None, unchained: false, ..mark }),
            25 => drop(log.claims.insert("new".to_owned(), n)),
            26 => put(&sk, EventMark { sound: false, ..mark }),
            27 => put(WAITING, EventMark { link: None, unchained: true, sound: false, ..mark }),
            28 => put("new", EventMark { link: None, unchained: true, ..mark }),
            _ => drop(log.unreadable.insert("new".to_owned())),
        }
    }

    proptest! {
        #[test]
        fn any_single_tampering_is_found(
            sizes in prop::collection::vec(1..4_usize, 1..5),
            way in 0..30_usize,
            pick: prop::sample::Index,
        ) {
            let mut log = log(&sizes, &ring("a"));
            tamper(&mut log, way, pick);
            prop_assert_ne!(findings(&log), []);
        }

        #[test]
        fn arbitrary_log_never_panics(
            sizes in prop::collection::vec(0..4_usize, 0..5),
            numbers in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..4),
        ) {
            let mut log = log(&sizes, &ring("a"));
            let mut other = self::log(&[1], &ring("b")).links[&1].clone();
            for (n, anchored, stored) in numbers {
                other.n = stored;
                log.links.insert(n, other.clone());
                log.anchors.insert(anchored, vec![Anchor::from(&other)]);
                log.claims.insert("0#0".to_owned(), stored);
                log.settled = stored;
            }
            check(organization(), &log, &ring("a"), now());
        }
    }
}
