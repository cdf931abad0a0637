//! Model prices: the built-in list, overridden by the operator's prices.
//!
//! A model has the price of its own row or of its family's row: the same name without a provider's
//! spelling (`us.anthropic.…-v1:0`, `openai/…`, `…@20250929`) and without a date. There are no
//! patterns, so a family never includes a later version. Every spelling of a name is looked up in
//! the operator's prices first, and then in the list. To add a model, add its row to `prices.json`.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    iter,
    sync::LazyLock,
};

use serde::{Deserialize, Serialize};

use super::{ModelId, Quantity, UsageKind, check_text};

/// The operator's name for all models without a price.
const ANY_OTHER: &str = "*";
/// Prefix of models that cost more in a region than at Amazon Bedrock's global endpoint.
const REGIONAL: &str = "bedrock/";
/// Prefixes, before `/` or `:`, that name where a model is called and not which model.
const HOSTS: [&str; 23] = [
    "amazon",
    "amazon-bedrock",
    "anthropic",
    "anthropic_bedrock",
    AZURE,
    "azure_ai",
    "azure_openai",
    "bedrock",
    "bedrock_converse",
    "converse",
    "gemini",
    "google",
    "google-gla",
    "google-vertex",
    "google_anthropic_vertex",
    "google_genai",
    "google_vertexai",
    "models",
    "openai",
    "openrouter",
    "publishers",
    "vertex",
    "vertex_ai",
];
const AZURE: &str = "azure";
/// Azure's deployments, which may follow the host: `azure/eu/gpt-4o`.
const AZURE_ZONES: [&str; 4] = ["eu", "global", "global-standard", "us"];
/// The hosts of Amazon Bedrock and of Amazon's own models.
const BEDROCK: [&str; 4] = ["amazon-bedrock", "anthropic_bedrock", "bedrock", "bedrock_converse"];
const AMAZON: &str = "amazon";
/// Amazon Bedrock's prefixes for inference across regions.
const REGIONS: [&str; 12] = ["af", "apac", "au", "ca", "eu", "global", "in", "jp", "me", "sa", "us", "us-gov"];
const GLOBAL: &str = "global";
/// Vendors that also sell their models under the same names themselves, and all others.
const SELLERS: [&str; 2] = ["anthropic", "openai"];
const VENDORS: [&str; 13] = [
    "ai21",
    "amazon",
    "cohere",
    "deepseek",
    "google",
    "meta",
    "minimax",
    "mistral",
    "moonshotai",
    "nvidia",
    "qwen",
    "writer",
    "zai",
];
/// Suffixes that do not change the price. No listed name has one.
const ROUTES: [&str; 5] = [":exacto", ":floor", ":nitro", ":online", "[1m]"];
const BETA: &str = ":beta";
/// An alias of the newest version. On a name without a version it names another model: `gemini-pro-latest` is
/// not `gemini-pro`.
const LATEST: &str = "-latest";
/// Priced separately in the list. The operator's price of the model includes them.
const VARIANTS: [&str; 3] = [":batch", ":extended", ":thinking"];
/// The depth of a key without region and vendor.
const BARE: usize = 2;
/// Other spellings, each with the list's spelling.
const RESPELLED: [(&str, &str); 5] = [
    ("codex-mini-latest", "codex-mini"),
    ("computer-use-preview", "computer-use"),
    ("gpt-35-", "gpt-3.5-"),
    ("gemini-flash-1.5", "gemini-1.5-flash"),
    ("gemini-pro-1.5", "gemini-1.5-pro"),
];
const FREE: &str = ":free";
const NO_COST: Price = Price { input: 0, output: 0, cache_read: None, cache_write: None };
/// Dates without a year, also of fine-tuned models. Other numbers name other models: `gpt-4-1106` is a GPT-4 Turbo.
const SHORT_DATES: [(&str, &[&str]); 5] = [
    ("gpt-3.5-turbo", &["-0125", "-0301", "-0613", "-1106"]),
    ("gpt-3.5-turbo-16k", &["-0613"]),
    ("gpt-3.5-turbo-instruct", &["-0914"]),
    ("gpt-4", &["-0314", "-0613"]),
    ("gpt-4-32k", &["-0314", "-0613"]),
];

/// Prices by model in lower case.
pub type PriceList = HashMap<&'static str, Price>;

/// Nano-cents per token: $0.075 for a million tokens is 7,500.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    pub input: u32,
    pub output: u32,
    /// Price of tokens read from the provider's prompt cache; `None` if they cost as input.
    #[serde(default)]
    pub cache_read: Option<u32>,
    /// Price of tokens written to the prompt cache; `None` if they cost as input.
    #[serde(default)]
    pub cache_write: Option<u32>,
}

impl Price {
    pub const MEMBERS: [&str; 4] = ["input", "output", Self::OPTIONAL[0], Self::OPTIONAL[1]];
    pub const OPTIONAL: [&str; 2] = ["cache_read", "cache_write"];

    /// Returns nano-cents.
    pub fn cost(self, kind: UsageKind, quantity: Quantity) -> u128 {
        let each = match kind {
            UsageKind::InputTokens => self.input,
            UsageKind::OutputTokens => self.output,
            UsageKind::CacheReadTokens => self.cache_read.unwrap_or(self.input),
            UsageKind::CacheWriteTokens => self.cache_write.unwrap_or(self.input),
        };
        u128::from(quantity.get()) * u128::from(each)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PricesError {
    #[error("is not a JSON object of prices by model, such as {{\"acme-1\": {{\"input\": 7500, \"output\": 30000}}}}")]
    Shape,
    /// `entry` is the model, or the entry's number if a model cannot have the name, which may be a
    /// secret.
    #[error("has an invalid entry {entry}: {problem}")]
    Entry { entry: String, problem: PriceProblem },
    #[error("has more than one price for {0}: names that differ only in case or in a provider's spelling are one name")]
    Duplicate(String),
}

/// Why an entry of the operator's prices is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PriceProblem {
    #[error("its price must be an object such as {{\"input\": 7500, \"output\": 30000}}")]
    NoObject,
    #[error("it has an unknown member: use {}", Price::MEMBERS.join(", "))]
    Unknown,
    #[error("each member must be given once")]
    Repeated,
    #[error("{0} is required")]
    Missing(&'static str),
    #[error("{0} must be an integer of nano-cents from 0 to {max}", max = u32::MAX)]
    Number(&'static str),
    #[error("use `*` only as the whole name; dated names get the price of their family")]
    Pattern,
    #[error("no usage event can hold its name: use 1 to 128 characters without blanks and invisible characters")]
    Name,
}

impl PricesError {
    /// Creates the error of the entry at an index.
    pub fn entry(at: usize, model: &str, problem: PriceProblem) -> Self {
        let entry = if is_model(model) { model.to_owned() } else { format!("number {}", at + 1) };
        Self::Entry { entry, problem }
    }
}

/// The operator's prices, then the built-in list, which is parsed at its first use.
#[derive(Debug, Clone)]
pub struct PriceTable {
    listed: &'static LazyLock<PriceList>,
    /// The operator's prices by [`Spelling::key`].
    own: BTreeMap<String, Price>,
    any_other: Option<Price>,
}

impl PriceTable {
    /// Combines the list with the operator's prices. `*` is the price of models that have none, and
    /// of usage without a model.
    pub fn new(
        listed: &'static LazyLock<PriceList>,
        prices: impl IntoIterator<Item = (String, Price)>,
    ) -> Result<Self, PricesError> {
        let (mut own, mut any_other) = (BTreeMap::new(), None);
        for (at, (name, price)) in prices.into_iter().enumerate() {
            let replaced = if name == ANY_OTHER {
                any_other.replace(price)
            } else {
                let key = own_key(&name).map_err(|problem| PricesError::entry(at, &name, problem))?;
                own.insert(key, price)
            };
            if replaced.is_some() {
                return Err(PricesError::Duplicate(name));
            }
        }
        Ok(Self { listed, own, any_other })
    }

    pub fn price(&self, model: Option<&str>) -> Option<Price> {
        model.and_then(|model| self.named(&model.to_ascii_lowercase())).or(self.any_other)
    }

    fn named(&self, name: &str) -> Option<Price> {
        let spelling = Spelling::read(name);
        // Only OpenRouter has free variants, and its names have a vendor.
        let is_free = || name.contains('/') && spelling.is_free();
        self.own(&spelling).or_else(|| self.listed(name, &spelling)).or_else(|| is_free().then_some(NO_COST))
    }

    fn own(&self, spelling: &Spelling<'_>) -> Option<Price> {
        if self.own.is_empty() {
            return None;
        }
        let model = word_first(&spelling.model);
        let mut family = &*model;
        let mut key = String::new();
        loop {
            for depth in spelling.depth()..=BARE {
                spelling.write_key(&mut key, depth, family);
                if let Some(price) = self.own.get(&key) {
                    return Some(*price);
                }
            }
            family = without_ending(family, &VARIANTS)
                .or_else(|| without_neutral_suffix(family, spelling.vendor.is_some()))?;
        }
    }

    fn listed(&self, name: &str, spelling: &Spelling<'_>) -> Option<Price> {
        let mut name = name;
        while let Some(rest) = without_ending(name, &ROUTES) {
            name = rest;
        }
        loop {
            if let Some(price) = self.row(name) {
                return Some(price);
            }
            let Some((_, _, rest)) = without_host(name) else { break };
            name = rest;
        }
        let (family, is_bedrock) = (&*spelling.listed_family(), spelling.vendor.is_some());
        let families = || iter::successors(Some(family), move |family| without_neutral_suffix(family, is_bedrock));
        let found = families().find_map(|family| {
            let regional = spelling.regional(family).and_then(|regional| self.row(&regional));
            regional.or_else(|| self.row(family)).or_else(|| self.row(&claude_in_other_order(family)?))
        });
        found.or_else(|| families().find_map(|family| self.row(&with_vendor_prefix(family)?)))
    }

    fn row(&self, name: &str) -> Option<Price> {
        self.listed.get(name).copied()
    }
}

fn own_key(name: &str) -> Result<String, PriceProblem> {
    if name.contains(ANY_OTHER) {
        return Err(PriceProblem::Pattern);
    }
    if !is_model(name) {
        return Err(PriceProblem::Name);
    }
    let key = Spelling::read(&name.to_ascii_lowercase()).key();
    if key.is_empty() { Err(PriceProblem::Name) } else { Ok(key) }
}

/// Returns whether a usage event can hold the name.
fn is_model(name: &str) -> bool {
    check_text(name).is_ok() && ModelId::try_from(name.to_owned()).is_ok()
}

/// A name in lower case, split into the parts that a provider adds and the model.
struct Spelling<'a> {
    /// Amazon Bedrock's region, as in `us.anthropic.claude-sonnet-4-5-20250929-v1:0`, or Azure's zone, as
    /// in `azure/eu/gpt-4o`.
    region: Option<&'a str>,
    /// The vendor, if this is one of Amazon Bedrock's names.
    vendor: Option<&'a str>,
    /// Has dashes in Claude's versions and before dates.
    model: Cow<'a, str>,
}

impl<'a> Spelling<'a> {
    fn read(name: &'a str) -> Self {
        let (mut name, mut is_bedrock, mut is_amazon, mut zone) = (name, false, false, None);
        loop {
            if let Some((host, in_zone, rest)) = without_host(name) {
                zone = zone.or(in_zone);
                is_bedrock |= BEDROCK.contains(&host);
                is_amazon = host == AMAZON;
                name = rest;
                continue;
            }
            // The ARN of a Bedrock profile, or a Vertex resource.
            if let Some(bedrock) = Self::at_bedrock(last_segment(name)) {
                return bedrock;
            }
            let Some((_, rest)) = name.rsplit_once("/models/") else { break };
            name = rest;
        }
        let vendor = if is_amazon {
            Some(AMAZON)
        } else if is_bedrock && name.starts_with("claude-") {
            Some("anthropic")
        } else if is_bedrock && name.starts_with("gpt-") {
            Some("openai")
        } else {
            None
        };
        Self::new(zone, vendor, name)
    }

    fn at_bedrock(name: &'a str) -> Option<Self> {
        let (head, rest) = name.split_once('.')?;
        let (region, name) = if REGIONS.contains(&head) { (Some(head), rest) } else { (None, name) };
        let (vendor, model) = name.split_once('.')?;
        let is_vendor = SELLERS.contains(&vendor) || VENDORS.contains(&vendor);
        is_vendor.then(|| Self::new(region, Some(vendor), model))
    }

    fn new(region: Option<&'a str>, vendor: Option<&'a str>, model: &'a str) -> Self {
        let model = match model.rsplit_once(':') {
            Some((rest, number)) if vendor.is_some() && is_number(number) => rest,
            _ => model,
        };
        let model = match model.rsplit_once('@') {
            Some((rest, "default" | "latest")) => rest.into(),
            Some((rest, date)) if is_number(date) => format!("{rest}-{date}").into(),
            _ => Cow::Borrowed(model),
        };
        Self { region, vendor, model: in_vendor_spelling(model) }
    }

    /// Returns the key of a price. A bare name applies everywhere, one of Amazon Bedrock's names
    /// there, and a regional name in its region.
    fn key(&self) -> String {
        let mut key = String::new();
        self.write_key(&mut key, self.depth(), &word_first(&self.model));
        key
    }

    /// Counts the missing ones of region and vendor.
    fn depth(&self) -> usize {
        match (self.region, self.vendor) {
            (Some(_), _) => 0,
            (None, Some(_)) => 1,
            (None, None) => BARE,
        }
    }

    /// Writes the key with region and vendor (depth 0), with the vendor (1), or bare (2).
    fn write_key(&self, key: &mut String, depth: usize, family: &str) {
        key.clear();
        for qualifier in [self.region, self.vendor].into_iter().skip(depth).flatten() {
            key.push_str(qualifier);
            key.push('.');
        }
        key.push_str(family);
    }

    /// Returns whether the name is of a free variant. A provider and the suffix name no model:
    /// `openai/:free`.
    fn is_free(&self) -> bool {
        let model = self.model.strip_suffix(FREE).map(|model| last_segment(model.trim_end_matches(FREE)));
        model.is_some_and(|model| model.chars().any(char::is_alphanumeric))
    }

    /// Returns whether the vendor also sells the model under the same name.
    fn is_sold_by_vendor(&self) -> bool {
        self.vendor.is_some_and(|vendor| SELLERS.contains(&vendor))
    }

    fn listed_family(&self) -> Cow<'_, str> {
        match self.vendor {
            Some(vendor) if !self.is_sold_by_vendor() => format!("{vendor}.{}", self.model).into(),
            _ => Cow::Borrowed(&*self.model),
        }
    }

    /// Returns the row of the region's price, if there can be one.
    fn regional(&self, family: &str) -> Option<String> {
        self.vendor?;
        if !self.is_sold_by_vendor() {
            return self.region.map(|region| format!("{region}.{family}"));
        }
        (self.region != Some(GLOBAL)).then(|| format!("{REGIONAL}{family}"))
    }
}

/// Splits a name into its host, Azure's zone, and the rest.
fn without_host(name: &str) -> Option<(&str, Option<&str>, &str)> {
    let (host, rest) = name.split_once(['/', ':']).filter(|(host, _)| HOSTS.contains(host))?;
    match rest.split_once('/').filter(|(zone, _)| host == AZURE && AZURE_ZONES.contains(zone)) {
        Some((zone, model)) => Some((host, Some(zone), model)),
        None => Some((host, None, rest)),
    }
}

fn last_segment(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, last)| last)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns `claude-opus-4-5` for `claude-opus-4.5`, `claude-opus-4` for `claude-opus-4-0`, and
/// `gpt-3.5-turbo` for `gpt-35-turbo`.
fn in_vendor_spelling(model: Cow<'_, str>) -> Cow<'_, str> {
    if model.starts_with("claude-") {
        let model = if model.contains('.') { model.replace('.', "-").into() } else { model };
        return match model.strip_suffix("-0") {
            Some(rest) => rest.to_owned().into(),
            None => model,
        };
    }
    let respelled = RESPELLED.iter().find_map(|(theirs, own)| Some(format!("{own}{}", model.strip_prefix(theirs)?)));
    respelled.map_or(model, Cow::Owned)
}

/// Returns `anthropic/claude-2.1` for `claude-2-1`.
fn with_vendor_prefix(name: &str) -> Option<String> {
    if name.starts_with("claude-") {
        return Some(format!("anthropic/{}", dotted(name)));
    }
    if name.starts_with("gemini-") {
        return Some(format!("google/{name}"));
    }
    // The weights of gpt-oss are open, so its price depends on the host.
    let is_openai = name.starts_with("gpt-") && !name.starts_with("gpt-oss-");
    (is_openai || ["o1", "o3", "o4"].iter().any(|series| name.starts_with(series))).then(|| format!("openai/{name}"))
}

/// Returns `claude-opus-4.6:batch` for `claude-opus-4-6:batch`.
fn dotted(name: &str) -> String {
    let is_digit = |part: &str| part.len() == 1 && is_number(part);
    let (model, variant) = name.split_at(name.find(':').unwrap_or(name.len()));
    let mut parts = model.split('-').peekable();
    let mut dotted = String::with_capacity(name.len());
    while let Some(part) = parts.next() {
        dotted.push_str(part);
        if let Some(next) = parts.peek() {
            dotted.push(if is_digit(part) && is_digit(next) { '.' } else { '-' });
        }
    }
    dotted + variant
}

/// Returns `claude-opus-4-5` for `claude-4-5-opus`. The rest of the name stays as it is.
fn word_first(name: &str) -> Cow<'_, str> {
    let split = || {
        let rest = name.strip_prefix("claude-")?;
        let (version, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '-')?);
        let (word, end) = tail.split_at(tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len()));
        let version = version.strip_suffix('-').filter(|version| !version.is_empty() && !word.is_empty())?;
        Some(format!("claude-{word}-{version}{end}"))
    };
    split().map_or(Cow::Borrowed(name), Cow::Owned)
}

/// Returns `claude-4-5-opus` for `claude-opus-4-5`, and the reverse.
fn claude_in_other_order(name: &str) -> Option<String> {
    let rest = name.strip_prefix("claude-")?;
    let is_word = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphabetic());
    let (head, tail) = rest.split_once('-')?;
    if is_word(head) {
        return Some(format!("claude-{tail}-{head}"));
    }
    let (version, word) = rest.rsplit_once('-')?;
    is_word(word).then(|| format!("claude-{word}-{version}"))
}

/// Removes one suffix that does not change the price.
fn without_neutral_suffix(name: &str, is_bedrock: bool) -> Option<&str> {
    if let Some(rest) = without_ending(name, &ROUTES).or_else(|| name.strip_suffix(BETA)) {
        return Some(rest);
    }
    if let Some(rest) = name.strip_suffix(LATEST) {
        return rest.bytes().any(|byte| byte.is_ascii_digit()).then_some(rest);
    }
    // `ft:gpt-4o-mini-2024-07-18:acme::7p4lURel`
    if let Some((base, _)) = name.strip_prefix("ft:").and_then(|tuned| tuned.split_once(':')) {
        return Some(&name[..3 + base.len()]);
    }
    if is_bedrock && let Some(rest) = without_bedrock_version(name) {
        return Some(rest);
    }
    without_date(name)
}

fn without_ending<'a>(name: &'a str, endings: &[&str]) -> Option<&'a str> {
    endings.iter().find_map(|end| name.strip_suffix(end))
}

/// Removes `:0`, `:48k` or `-v1`, and the `-1` of `gpt-oss-120b-1`.
fn without_bedrock_version(name: &str) -> Option<&str> {
    if let Some((rest, end)) = name.rsplit_once(':') {
        return is_number(end.strip_suffix('k').unwrap_or(end)).then_some(rest);
    }
    if let Some(rest) = name.strip_suffix("-1").filter(|rest| rest.starts_with("gpt-oss-")) {
        return Some(rest);
    }
    let (rest, version) = name.rsplit_once("-v")?;
    (version.len() == 1 && is_number(version)).then_some(rest)
}

/// Removes the date or number that pins a version.
fn without_date(name: &str) -> Option<&str> {
    let ending = |shape: &str| {
        let (rest, end) = name.split_at_checked(name.len().checked_sub(shape.len())?)?;
        let fits = |(byte, shape): (u8, u8)| match shape {
            b'-' => byte == b'-',
            b'@' => byte == b'-' || byte == b'@',
            _ => byte.is_ascii_digit(),
        };
        end.bytes().zip(shape.bytes()).all(fits).then_some((rest, end))
    };
    let is_day = |month: &str, day: &str| ("01"..="12").contains(&month) && ("01"..="31").contains(&day);
    if let Some((rest, date)) = ending("@20YYMMDD") {
        return (date[1..3] == *"20" && is_day(&date[5..7], &date[7..9])).then_some(rest);
    }
    if let Some((rest, date)) = ending("@20YY-MM-DD") {
        return (date[1..3] == *"20" && is_day(&date[6..8], &date[9..11])).then_some(rest);
    }
    if let Some((rest, _)) = ending("-MM-DD").filter(|(rest, _)| rest.ends_with("-preview")) {
        return Some(rest);
    }
    if let Some((rest, _)) = ending("-NNN").filter(|(rest, _)| rest.starts_with("gemini-")) {
        return Some(rest);
    }
    let (rest, date) = ending("-MMDD")?;
    let base = rest.strip_prefix("ft:").unwrap_or(rest);
    SHORT_DATES.iter().any(|(model, dates)| *model == base && dates.contains(&date)).then_some(rest)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::config::prices::{LISTED, parse};

    fn own(json: &str) -> PriceTable {
        parse(json).unwrap()
    }

    /// Returns input and output for a million tokens, in thousandths of a dollar.
    fn dollars(model: &str) -> Option<(u32, u32)> {
        let price = own("{}").price(Some(model))?;
        Some((price.input / 100, price.output / 100))
    }

    fn listed() -> Vec<(String, String)> {
        let groups: Vec<Value> = serde_json::from_str(include_str!("../../prices.json")).unwrap();
        let of_group = |group: &Value| {
            let source = group["source"].as_str().unwrap().to_owned();
            group["prices"]
                .as_object()
                .unwrap()
                .keys()
                .map(move |name| (name.clone(), source.clone()))
                .collect::<Vec<_>>()
        };
        groups.iter().flat_map(of_group).collect()
    }

    #[test]
    fn every_listed_price_has_a_source() {
        let listed = listed();
        assert_eq!(LISTED.len(), listed.len(), "each name once");
        for (name, source) in &listed {
            assert!(source.starts_with("https://"), "{name}");
            assert_eq!(*name, name.to_ascii_lowercase(), "names are compared in lower case");
            assert_eq!(own("{}").price(Some(name)), Some(LISTED[name.as_str()]), "{name}");
            assert!(!name.contains('*'), "{name}");
        }
        let caches = LISTED.values().filter(|price| price.cache_read.is_some_and(|read| read < price.input));
        assert!(caches.count() > 300, "cache prices have their own columns");
        let first = LISTED["claude-opus-5-5"];
        let row = Price { input: 400_000, output: 2_000_000, cache_read: Some(20_000), cache_write: Some(500_000) };
        assert_eq!(first, row);
    }

    #[test]
    fn every_spelling_of_a_model_has_its_price() {
        for (names, price) in [
            (
                &["gpt-4o", "GPT-4o", "gpt-4o-2024-08-06", "openai/gpt-4o", "openai/gpt-4o-2024-11-20"][..],
                (2_500, 10_000),
            ),
            (&["gpt-4o-2024-05-13", "openai/gpt-4o-2024-05-13"], (5_000, 15_000)),
            (&["gpt-4o-mini", "gpt-4o-mini-2024-07-18"], (150, 600)),
            (&["ft:gpt-4o-mini", "ft:gpt-4o-mini-2024-07-18:acme::7p4lURel"], (300, 1_200)),
            (&["gpt-4.1", "gpt-4.1-2025-04-14", "openrouter/openai/gpt-4.1"], (2_000, 8_000)),
            (&["gpt-4", "gpt-4-0314", "gpt-4-0613"], (30_000, 60_000)),
            (&["gpt-4-1106-preview", "gpt-4-turbo", "gpt-4-turbo-2024-04-09"], (10_000, 30_000)),
            (&["google/gemini-2.5-flash-preview:thinking"], (150, 3_500)),
            (&["gpt-5.1", "gpt-5.1-2025-11-13", "gpt-5.1-codex"], (1_250, 10_000)),
            (&["o3", "o3-2025-04-16"], (2_000, 8_000)),
            (&["gemini-1.5-flash", "gemini-1.5-flash-002", "models/gemini-1.5-flash-001"], (75, 300)),
            (
                &[
                    "gemini-2.5-pro",
                    "google/gemini-2.5-pro",
                    "gemini-2.5-pro-preview-06-05",
                    "publishers/google/models/gemini-2.5-pro",
                    "projects/p/locations/global/publishers/google/models/gemini-2.5-pro",
                ],
                (1_250, 10_000),
            ),
            (&["claude-opus-4", "claude-opus-4-20250514", "claude-opus-4@20250514"], (15_000, 75_000)),
            (&["anthropic.claude-opus-4-1-20250805-v1:0", "claude-opus-4-1", "claude-opus-4.1"], (15_000, 75_000)),
            (
                &[
                    "claude-opus-4-6",
                    "anthropic/claude-opus-4.6",
                    "anthropic/claude-4.6-opus-20260205",
                    "anthropic/claude-opus-4.6:beta",
                    "global.anthropic.claude-opus-4-6-v1",
                    "Claude-Opus-4-6",
                ],
                (5_000, 25_000),
            ),
            (&["anthropic/claude-opus-4.6:batch", "claude-opus-4-6:batch"], (2_500, 12_500)),
            (
                &[
                    "claude-sonnet-4-5",
                    "claude-sonnet-4-5-20250929",
                    "claude-sonnet-4-5@20250929",
                    "claude-sonnet-4-5[1m]",
                    "anthropic/claude-sonnet-4.5",
                    "vertex_ai/claude-sonnet-4-5@20250929",
                    "publishers/anthropic/models/claude-sonnet-4-5@20250929",
                    "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
                ],
                (3_000, 15_000),
            ),
            // A region costs a tenth more than the global endpoint.
            (
                &[
                    "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
                    "anthropic.claude-sonnet-4-5-20250929-v1:0",
                    "bedrock/eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
                    "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
                ],
                (3_300, 16_500),
            ),
            (
                &[
                    "claude-3-5-sonnet-20241022",
                    "claude-3-5-sonnet-latest",
                    "claude-3-5-sonnet-v2@20241022",
                    "anthropic/claude-3.5-sonnet",
                    "anthropic.claude-3-5-sonnet-20241022-v2:0",
                    "us.anthropic.claude-3-5-sonnet-20241022-v2:0",
                ],
                (3_000, 15_000),
            ),
            (&["us.amazon.nova-pro-v1:0", "amazon.nova-pro-v1:0", "amazon/nova-pro-v1"], (800, 3_200)),
            (&["us.amazon.nova-2-lite-v1:0", "amazon.nova-2-lite-v1:0"], (330, 2_750)),
            (&["global.amazon.nova-2-lite-v1:0"], (300, 2_500)),
            (&["openai.gpt-oss-120b-1:0"], (150, 600)),
            (&["us.openai.gpt-6-sol"], (2_200, 11_000)),
            (&["us.meta.llama3-3-70b-instruct-v1:0"], (720, 720)),
            (&["deepseek/deepseek-r1", "openrouter/deepseek/deepseek-r1"], (700, 2_500)),
        ] {
            for name in names {
                assert_eq!(dollars(name), Some(price), "{name}");
            }
        }
    }

    #[test]
    fn names_of_routers_and_resellers_have_prices() {
        for (names, price) in [
            (
                &[
                    "openai:gpt-4o",
                    "azure/gpt-4o",
                    "gpt-4o:nitro",
                    "openai/gpt-4o:floor",
                    "openrouter/openai/gpt-4o:online",
                ][..],
                (2_500, 10_000),
            ),
            (&["gpt-4o:batch", "openai/gpt-4o:batch"], (1_250, 5_000)),
            (&["openai/gpt-oss-120b:nitro"], (100, 500)),
            (&["google/gemini-pro", "google/gemini-pro:nitro"], (500, 1_500)),
            (&["gpt-3.5-turbo", "gpt-3.5-turbo-0125", "azure/gpt-35-turbo-0125"], (500, 1_500)),
            (&["gpt-3.5-turbo-1106", "azure/gpt-35-turbo-1106"], (1_000, 2_000)),
            (
                &[
                    "ft:gpt-3.5-turbo",
                    "ft:gpt-3.5-turbo:acme::x",
                    "ft:gpt-3.5-turbo-0125:acme::x",
                    "ft:gpt-3.5-turbo-0613:acme::x",
                    "ft:gpt-3.5-turbo-1106:acme:support:AbC12345",
                    "ft:gpt-3.5-turbo-1106",
                    "openai/ft:gpt-3.5-turbo-0125:acme::x",
                    "openai:ft:gpt-3.5-turbo-0125:acme::x",
                ],
                (3_000, 6_000),
            ),
            (&["codex-mini", "codex-mini-latest", "openai/codex-mini-latest", "azure/codex-mini"], (1_500, 6_000)),
            (
                &[
                    "computer-use",
                    "computer-use-preview",
                    "computer-use-preview-2025-03-11",
                    "azure/computer-use-preview",
                    "openai/computer-use-preview-2025-03-11",
                ],
                (3_000, 12_000),
            ),
            (
                &[
                    "azure_openai:gpt-4o",
                    "azure_openai:gpt-4o-2024-08-06",
                    "azure/eu/gpt-4o-2024-08-06",
                    "azure/us/gpt-4o",
                    "azure/global/gpt-4o-2024-11-20",
                    "azure/global-standard/gpt-4o",
                ],
                (2_500, 10_000),
            ),
            (
                &[
                    "google_genai:gemini-2.5-pro",
                    "google_genai:models/gemini-2.5-pro",
                    "google_vertexai:gemini-2.5-pro",
                    "google_vertexai/gemini-2.5-pro",
                ],
                (1_250, 10_000),
            ),
            (&["anthropic:claude-sonnet-4-5", "google_anthropic_vertex:claude-sonnet-4-5@20250929"], (3_000, 15_000)),
            (&["anthropic_bedrock:us.anthropic.claude-sonnet-4-5-20250929-v1:0"], (3_300, 16_500)),
            (&["gemini-2.5-flash-lite-preview-09-2025"], (100, 400)),
            (&["claude-2.1", "claude-2.0", "anthropic/claude-2.1", "anthropic.claude-v2:1"], (8_000, 24_000)),
        ] {
            for name in names {
                assert_eq!(dollars(name), Some(price), "{name}");
            }
        }
    }

    #[test]
    fn family_never_includes_another_version() {
        // A listed name with a suffix is another model, unless the suffix is a date or a spelling.
        let endings =
            ["-9", ".9", "9", "-99", "-9-9", "-mini9", "-turbo9", "x", "-v9x", "-20991399", "-2099-13-01", ":free9"];
        for (name, _) in listed() {
            // The text after a fine-tuned model's colon names the tuning.
            let endings = endings.iter().filter(|ending| !(name.starts_with("ft:") && ending.starts_with(':')));
            for ending in endings {
                let other = format!("{name}{ending}");
                let own_row = LISTED.get(other.as_str()).copied();
                assert_eq!(own("{}").price(Some(&other)), own_row, "{other}");
            }
        }
        for unknown in [
            "claude-opus-4-9",
            "claude-opus-6",
            "gpt-4o-2",
            "gpt-4.2",
            "gpt-4-1106",
            "gpt-4-0125",
            "ft:gpt-3.5-turbo-0999:acme::x",
            "ft:gpt-3.5-turbo-16k-0613:acme::x",
            "ft:gpt-4-0613:acme::x",
            "codex-latest",
            "codex-mini-latest-2",
            "codex-mini-preview",
            "computer-use-latest",
            "computer-use-preview-mini",
            "computer-use-preview-2",
            "eu/gpt-4o",
            "us:gpt-4o",
            "azure/eu/acme-1",
            "azure/sweden/gpt-4o",
            "openai/eu/gpt-4o",
            "azure_openai:acme-1",
            "gpt-oss-120b",
            "gpt-4o[2m]",
            "acme/gpt-4o",
            "us.anthropic.claude-opus-4-9-v1:0",
            "",
            "/",
            "-",
            "claude-",
            "é",
            "ft:",
            "x@20250101",
            "😀-2024-08-06",
        ] {
            assert_eq!(own("{}").price(Some(unknown)), None, "{unknown}");
        }
    }

    #[test]
    fn listed_date_keeps_its_own_price() {
        let mut own_dates = 0;
        for (name, _) in listed() {
            let family = without_date(&name).and_then(|family| LISTED.get(family));
            own_dates += usize::from(family.is_some_and(|family| *family != LISTED[name.as_str()]));
            assert_eq!(own("{}").price(Some(&name)), Some(LISTED[name.as_str()]), "{name}");
        }
        assert!(own_dates > 0);
    }

    #[test]
    fn zone_of_azure_may_have_its_own_price() {
        let table = own(
            r#"{"gpt-4o": {"input": 1, "output": 2}, "azure/eu/gpt-4o": {"input": 3, "output": 4}, "azure/us/o9": {"input": 5, "output": 6}}"#,
        );
        for (model, input) in [
            ("gpt-4o", Some(1)),
            ("azure/gpt-4o", Some(1)),
            ("azure/us/gpt-4o", Some(1)),
            ("azure/eu/gpt-4o-2024-08-06", Some(3)),
            ("Azure/EU/gpt-4o", Some(3)),
            ("azure/us/o9", Some(5)),
            ("azure/eu/o9", None),
            ("o9", None),
        ] {
            assert_eq!(table.price(Some(model)).map(|price| price.input), input, "{model}");
        }
    }

    #[test]
    fn operator_prices_come_first() {
        let table = own(
            r#"{"Acme-1": {"input": 1, "output": 2}, "gpt-4o": {"input": 3, "output": 4}, "*": {"input": 5, "output": 6}}"#,
        );
        for (model, input) in [
            (Some("acme-1"), 1),
            (Some("acme-1-2026-01-01"), 1),
            (Some("gpt-4o"), 3),
            (Some("openai/gpt-4o-2024-08-06"), 3),
            (Some("gpt-4o-2024-05-13"), 3),
            (Some("gpt-4o-mini"), 15_000),
            (Some("unheard-of"), 5),
            (None, 5),
        ] {
            assert_eq!(table.price(model).map(|price| price.input), Some(input), "{model:?}");
        }
        assert_eq!(own("{}").price(None), None);
    }

    /// Prices input at 1 for the first name, 2 for the next, and so on.
    fn numbered(names: &[&str]) -> Result<PriceTable, PricesError> {
        let rows = names.iter().zip(1..).map(|(name, input)| format!(r#""{name}": {{"input": {input}, "output": 9}}"#));
        parse(&format!("{{{}}}", rows.collect::<Vec<_>>().join(",")))
    }

    #[test]
    fn own_prices_apply_to_every_spelling() {
        for (name, used) in [
            (
                "claude-sonnet-4-5",
                &[
                    "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
                    "arn:aws:bedrock:us-east-1:1:inference-profile/eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
                    "anthropic/claude-sonnet-4.5:batch",
                    "claude-4.5-sonnet-20250929",
                    "claude-sonnet-4-5@20250929",
                    "claude-sonnet-4-5[1m]",
                ][..],
            ),
            ("claude-opus-4.6", &["claude-opus-4-6", "anthropic/claude-4.6-opus-20260205", "Claude-Opus-4-6@default"]),
            (
                "Anthropic/Claude-3.5-Sonnet",
                &["claude-3-5-sonnet-20241022", "claude-sonnet-3-5", "claude-3-5-sonnet-latest"],
            ),
            ("claude-3-7-sonnet", &["anthropic/claude-3.7-sonnet:thinking"]),
            ("claude-opus-4-1@20250805", &["claude-opus-4-1-20250805", "us.anthropic.claude-opus-4-1-20250805-v1:0"]),
            ("openai/gpt-4.1", &["gpt-4.1", "gpt-4.1-2025-04-14", "openai:gpt-4.1", "azure/gpt-4.1", "gpt-4.1:nitro"]),
            ("gpt-3.5-turbo", &["gpt-3.5-turbo-1106", "openai/gpt-3.5-turbo-0613", "azure/gpt-35-turbo-0125"]),
            ("ft:gpt-3.5-turbo", &["ft:gpt-3.5-turbo-0125:acme::x", "openai/ft:gpt-3.5-turbo-1106:acme::x"]),
            ("codex-mini", &["codex-mini-latest", "openai/codex-mini-latest"]),
            ("codex-mini-latest", &["codex-mini"]),
            ("computer-use-preview", &["computer-use", "azure/computer-use-preview-2025-03-11"]),
            ("gpt-4o", &["azure_openai:gpt-4o", "azure/eu/gpt-4o-2024-08-06", "azure/us/gpt-4o"]),
            ("claude-opus-4", &["claude-opus-4-0", "anthropic.claude-opus-4-20250514-v1:0"]),
            ("claude-opus-4-0", &["claude-opus-4", "claude-opus-4-20250514"]),
            ("gemini-1.5-flash", &["google/gemini-flash-1.5", "gemini-1.5-flash-002"]),
            (
                "amazon.nova-2-lite",
                &["global.amazon.nova-2-lite-v1:0", "amazon/nova-2-lite-v1", "bedrock/us.amazon.nova-2-lite-v1:0"],
            ),
            ("amazon/nova-2-lite-v1", &["amazon.nova-2-lite-v1:0", "global.amazon.nova-2-lite-v1:0"]),
            (
                "anthropic.claude-opus-4-1-20250805-v1:0",
                &["us.anthropic.claude-opus-4-1-20250805-v1:0", "anthropic.claude-opus-4-1-20250805-v1:0"],
            ),
            ("bedrock/claude-opus-4-5", &["us.anthropic.claude-opus-4-5-20251101-v1:0"]),
            ("openai.gpt-oss-120b", &["openai.gpt-oss-120b-1:0"]),
        ] {
            let table = numbered(&[name]).unwrap();
            for used in used.iter().chain([&name]) {
                assert_eq!(table.price(Some(used)).map(|price| price.input), Some(1), "{used} under {name}");
            }
        }
    }

    #[test]
    fn own_price_of_a_listed_name_wins() {
        for (name, _) in listed() {
            assert_eq!(numbered(&[&name]).unwrap().price(Some(&name)).map(|price| price.input), Some(1), "{name}");
        }
    }

    #[test]
    fn own_prices_apply_to_no_other_model() {
        for (name, used) in [
            (
                "us.anthropic.claude-sonnet-4-5",
                &["claude-sonnet-4-5", "global.anthropic.claude-sonnet-4-5-20250929-v1:0"][..],
            ),
            ("claude-sonnet-4", &["claude-sonnet-4-5", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"]),
            ("gpt-4o-2024-08-06", &["gpt-4o", "gpt-4o-2024-11-20"]),
            ("gpt-4o", &["gpt-4o-mini", "ft:gpt-4o:acme::1", "acme/gpt-4o", "gpt-4o:free"]),
            ("gpt-4", &["gpt-4-1106", "gpt-4-1106-preview", "gpt-4.1"]),
            ("gemini-pro", &["gemini-pro-latest"]),
            ("openai/gpt-4.1:batch", &["gpt-4.1", "gpt-4.1-mini"]),
        ] {
            let table = numbered(&[name]).unwrap();
            for used in used {
                assert_eq!(table.price(Some(used)), own("{}").price(Some(used)), "{used} under {name}");
            }
        }
    }

    #[test]
    fn the_closest_own_price_wins() {
        let table = numbered(&[
            "claude-sonnet-4-5",
            "anthropic.claude-sonnet-4-5",
            "us.anthropic.claude-sonnet-4-5",
            "claude-sonnet-4-5-20250929",
            "claude-sonnet-4-5:batch",
        ])
        .unwrap();
        for (used, input) in [
            ("anthropic/claude-sonnet-4.5", 1),
            ("eu.anthropic.claude-sonnet-4-5", 2),
            ("us.anthropic.claude-sonnet-4-5-v1:0", 3),
            ("claude-sonnet-4-5@20250929", 4),
            ("anthropic/claude-sonnet-4.5:batch", 5),
        ] {
            assert_eq!(table.price(Some(used)).unwrap().input, input, "{used}");
        }
    }

    #[test]
    fn names_with_two_own_prices_are_rejected() {
        for names in [
            ["acme-1", "acme-1"],
            ["acme-1", "Acme-1"],
            ["claude-opus-4-6", "anthropic/claude-opus-4.6"],
            ["claude-3-5-sonnet", "claude-sonnet-3-5"],
            ["gpt-4.1", "azure/gpt-4.1"],
            ["claude-opus-4-1@20250805", "claude-opus-4-1-20250805"],
            ["amazon.nova-pro-v1:0", "amazon/nova-pro-v1"],
            ["*", "*"],
        ] {
            let refused = numbered(&names).unwrap_err();
            assert_eq!(refused, PricesError::Duplicate(names[1].to_owned()), "{names:?}");
        }
    }

    #[test]
    fn names_that_no_event_can_have_are_rejected() {
        let long = "a".repeat(129);
        for name in
            ["", " gpt-4o", "gpt-4o ", "gpt 4o", "gpt-4o\\n", "gpt-4o\\u200b", "\\ufeffgpt-4o", "openai/", &long]
        {
            let Err(PricesError::Entry { problem, .. }) = numbered(&[name]) else { panic!("accepted: {name}") };
            assert_eq!(problem, PriceProblem::Name, "{name}");
        }
        let credential = format!("kt_live_{}", "a1".repeat(12));
        let refused = numbered(&["gpt-4o", &credential]).unwrap_err().to_string();
        assert!(refused.starts_with("has an invalid entry number 2: no usage event can hold its name"), "{refused}");
        assert!(!refused.contains("a1a1"), "{refused}");
        assert!(numbered(&[&long[1..]]).is_ok());
    }

    #[test]
    fn byte_order_mark_is_ignored() {
        let table = own("\u{FEFF}{\"gpt-4o\": {\"input\": 1, \"output\": 2}}");
        assert_eq!(table.price(Some("gpt-4o")).unwrap().input, 1);
    }

    #[test]
    fn free_variants_cost_nothing() {
        let table = own(r#"{"acme/paid:free": {"input": 1, "output": 2}, "*": {"input": 5, "output": 6}}"#);
        assert_eq!(table.price(Some("acme/new-1:free")), Some(NO_COST));
        assert_eq!(table.price(Some("google/gemma-3-27b-it:free")).unwrap().input, 0);
        assert_eq!(table.price(Some("acme/paid:free")).unwrap().input, 1);
        for unnamed in [
            ":free",
            ":free:free",
            "/:free",
            "-:free",
            "openai/:free",
            "openai:free",
            "OpenRouter/OpenAI/:free",
            "acme/:free",
            "acme/:free:free",
            "models/:free",
            "acme/models/:free",
            "gpt-9:free",
            "claude-9:free",
            "my-model:free",
        ] {
            assert_eq!(table.price(Some(unnamed)).unwrap().input, 5, "{unnamed}");
            assert_eq!(own("{}").price(Some(unnamed)), None, "{unnamed}");
        }
        assert_eq!(table.price(Some("Acme/新型:free")), Some(NO_COST));
    }

    #[test]
    fn malformed_prices_are_rejected() {
        for json in ["", "[]", "1", r#"{"a": {"input": 1, "output": 1}"#] {
            assert_eq!(parse(json).unwrap_err(), PricesError::Shape, "{json}");
        }
        for (json, problem) in [
            (r#"{"a": 1}"#, PriceProblem::NoObject),
            (r#"{"a": [1, 2]}"#, PriceProblem::NoObject),
            (r#"{"a": [1, 2, 3, 4]}"#, PriceProblem::NoObject),
            (r#"{"a": null}"#, PriceProblem::NoObject),
            (r#"{"a": {"output": 1}}"#, PriceProblem::Missing("input")),
            (r#"{"a": {"input": 1}}"#, PriceProblem::Missing("output")),
            (r#"{"a": {"input": -1, "output": 1}}"#, PriceProblem::Number("input")),
            (r#"{"a": {"input": null, "output": 1}}"#, PriceProblem::Number("input")),
            (r#"{"a": {"input": "1", "output": 1}}"#, PriceProblem::Number("input")),
            (r#"{"a": {"input": 1, "output": 1.5}}"#, PriceProblem::Number("output")),
            (r#"{"a": {"input": 1, "output": 1, "cache_read": 4294967296}}"#, PriceProblem::Number("cache_read")),
            (r#"{"a": {"input": 1, "output": 1, "cache_write": true}}"#, PriceProblem::Number("cache_write")),
            (r#"{"a": {"input": 1, "output": 1, "cached": 1}}"#, PriceProblem::Unknown),
            (r#"{"a": {"input": 1, "input": 1, "output": 1}}"#, PriceProblem::Repeated),
        ] {
            let expected = PricesError::Entry { entry: "a".to_owned(), problem };
            assert_eq!(parse(json).unwrap_err(), expected, "{json}");
        }
        let own = own(r#"{"a": {"input": 1, "output": 4294967295, "cache_read": null, "cache_write": 3}}"#);
        let price = Price { input: 1, output: u32::MAX, cache_read: None, cache_write: Some(3) };
        assert_eq!(own.price(Some("a")), Some(price));
        let message = |json: &str| parse(json).unwrap_err().to_string();
        assert_eq!(
            message(r#"{"acme-1": {"input": 7.5, "output": 1}}"#),
            "has an invalid entry acme-1: input must be an integer of nano-cents from 0 to 4294967295"
        );
        assert_eq!(
            message(r#"{"gpt-4*": {"input": 1, "output": 1}}"#),
            "has an invalid entry gpt-4*: use `*` only as the whole name; dated names get the price of their family"
        );
        assert!(message(r#"{"*": 5}"#).starts_with("has an invalid entry *: its price must be an object"));
    }
}
