//! Model prices: the built-in list, overridden by the operator's prices.
//!
//! A name is priced by its own row, or by its family's: the same name without the spelling of a provider (`us.anthropic.…-v1:0`, `openai/…`,
//! `…@20250929`) and without a date. There are no patterns, so no family reaches a later version. To add a model, add its row to `prices.json`.

use std::{borrow::Cow, collections::HashMap, sync::LazyLock};

use serde::Deserialize;

use super::{Quantity, UsageKind};

/// The operator's name for every model that has no price.
const ANY_OTHER: &str = "*";
/// In front of the names that Amazon Bedrock sells dearer in a region than at its global endpoint.
const REGIONAL: &str = "bedrock/";
/// Path segments that name where a model is called and not which one.
const PLACES: [&str; 15] = [
    "amazon",
    "amazon-bedrock",
    "anthropic",
    "bedrock",
    "bedrock_converse",
    "converse",
    "gemini",
    "google",
    "google-vertex",
    "models",
    "openai",
    "openrouter",
    "publishers",
    "vertex",
    "vertex_ai",
];
/// Amazon Bedrock's prefixes for inference across regions.
const REGIONS: [&str; 12] = ["af", "apac", "au", "ca", "eu", "global", "in", "jp", "me", "sa", "us", "us-gov"];
const GLOBAL: &str = "global";
/// Amazon Bedrock's names for vendors that sell the same models under the same names themselves, and for the other vendors.
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
/// Variants and aliases that cost what the model costs.
const SAME_PRICE: [&str; 5] = [":beta", ":online", "-latest", "@default", "@latest"];

/// The prices of the list that comes with Karta, by model in lower case.
pub type PriceList = HashMap<&'static str, Price>;

/// What a token costs, in nano-cents: $0.075 for a million is 7,500.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    pub input: u32,
    pub output: u32,
    /// Of a token read from the provider's prompt cache.
    #[serde(default)]
    pub cache_read: Option<u32>,
    /// Of a token written to it.
    #[serde(default)]
    pub cache_write: Option<u32>,
}

impl Price {
    /// The cost of so many tokens, in nano-cents.
    pub fn cost(self, kind: UsageKind, quantity: Quantity) -> u128 {
        let each = match kind {
            UsageKind::InputTokens => self.input,
            UsageKind::OutputTokens => self.output,
        };
        u128::from(quantity.get()) * u128::from(each)
    }
}

/// A set of the operator's prices that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PricesError {
    #[error("is not a JSON object of prices by model, such as {{\"acme-1\": {{\"input\": 7500, \"output\": 30000}}}}")]
    Shape,
    #[error("has a name that contains `*`: use `*` only as the whole name; dated names get the price of their family")]
    Pattern,
}

/// Prices by model: the operator's, then the built-in list, which is parsed at its first use.
#[derive(Debug, Clone)]
pub struct PriceTable {
    listed: &'static LazyLock<PriceList>,
    own: HashMap<String, Price>,
    any_other: Option<Price>,
}

impl PriceTable {
    /// Puts the operator's prices over a list. `*` is every model without a price, and usage without a model.
    pub fn new(listed: &'static LazyLock<PriceList>, prices: HashMap<String, Price>) -> Result<Self, PricesError> {
        let mut own: HashMap<_, _> =
            prices.into_iter().map(|(name, price)| (name.to_ascii_lowercase(), price)).collect();
        let any_other = own.remove(ANY_OTHER);
        if own.keys().any(|name| name.contains(ANY_OTHER)) {
            return Err(PricesError::Pattern);
        }
        Ok(Self { listed, own, any_other })
    }

    /// The price of a model under any of its names; usage may name none.
    pub fn price(&self, model: Option<&str>) -> Option<Price> {
        model.and_then(|model| self.named(model)).or(self.any_other)
    }

    fn named(&self, model: &str) -> Option<Price> {
        let model = model.to_ascii_lowercase();
        let mut name = model.as_str();
        let spelled = loop {
            if let Some(price) = self.row(name) {
                return Some(price);
            }
            let Some((place, rest)) = name.split_once('/') else { break Bedrock::read(name) };
            if PLACES.contains(&place) {
                name = rest;
                continue;
            }
            // The ARN of a Bedrock profile, or a Vertex resource.
            if let bedrock @ Some(_) = Bedrock::read(last_segment(name)) {
                break bedrock;
            }
            let Some((_, rest)) = name.rsplit_once("/models/") else { break None };
            name = rest;
        };
        let family = spelled.as_ref().map_or(name, |bedrock| bedrock.model);
        let family = if family.starts_with("claude-") { dashed(family) } else { Cow::Borrowed(family) };
        let mut family = &*family;
        loop {
            let regional = spelled.as_ref().and_then(|bedrock| self.row(&bedrock.regional(family)?));
            let price = regional.or_else(|| self.row(family)).or_else(|| self.row(&claude_in_the_other_order(family)?));
            if price.is_some() {
                return price;
            }
            family = shorter(family, spelled.is_some())?;
        }
    }

    fn row(&self, name: &str) -> Option<Price> {
        self.own.get(name).or_else(|| self.listed.get(name)).copied()
    }
}

/// A name as Amazon Bedrock spells it: `us.anthropic.claude-sonnet-4-5-20250929-v1:0`.
struct Bedrock<'a> {
    region: Option<&'a str>,
    /// Without the vendor, if the vendor sells it under the same name.
    model: &'a str,
    is_sold_elsewhere: bool,
}

impl<'a> Bedrock<'a> {
    fn read(name: &'a str) -> Option<Self> {
        let (head, rest) = name.split_once('.')?;
        let (region, name) = if REGIONS.contains(&head) { (Some(head), rest) } else { (None, name) };
        let (vendor, model) = name.split_once('.')?;
        let is_sold_elsewhere = SELLERS.contains(&vendor);
        let model = if is_sold_elsewhere { model } else { name };
        (is_sold_elsewhere || VENDORS.contains(&vendor)).then_some(Self { region, model, is_sold_elsewhere })
    }

    /// The row that a region's price stands in, if it has one of its own.
    fn regional(&self, family: &str) -> Option<String> {
        if !self.is_sold_elsewhere {
            return self.region.map(|region| format!("{region}.{family}"));
        }
        (self.region != Some(GLOBAL)).then(|| format!("{REGIONAL}{family}"))
    }
}

fn last_segment(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, last)| last)
}

/// Versions as Anthropic writes them: `claude-opus-4.5` is `claude-opus-4-5`.
fn dashed(name: &str) -> Cow<'_, str> {
    if name.contains('.') { name.replace('.', "-").into() } else { name.into() }
}

/// `claude-4-5-opus` for `claude-opus-4-5`, and the reverse.
fn claude_in_the_other_order(name: &str) -> Option<String> {
    let rest = name.strip_prefix("claude-")?;
    let is_word = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphabetic());
    let (head, tail) = rest.split_once('-')?;
    if is_word(head) {
        return Some(format!("claude-{tail}-{head}"));
    }
    let (version, word) = rest.rsplit_once('-')?;
    is_word(word).then(|| format!("claude-{word}-{version}"))
}

/// The name without one of the endings that leave its price as it is.
fn shorter(name: &str, is_bedrock: bool) -> Option<&str> {
    if let Some(rest) = SAME_PRICE.iter().find_map(|end| name.strip_suffix(end)) {
        return Some(rest);
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

/// Without `:0`, `:48k` or `-v1`.
fn without_bedrock_version(name: &str) -> Option<&str> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((rest, end)) = name.rsplit_once(':') {
        return is_number(end.strip_suffix('k').unwrap_or(end)).then_some(rest);
    }
    let (rest, version) = name.rsplit_once("-v")?;
    is_number(version).then_some(rest)
}

/// Without the date or number that pins a version.
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
    let (rest, date) = ending("-MMDD").filter(|(rest, _)| rest.starts_with("gpt-"))?;
    is_day(&date[1..3], &date[3..5]).then_some(rest)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::config::prices::{LISTED, parse};

    fn own(json: &str) -> PriceTable {
        parse(json).unwrap()
    }

    /// Input and output for a million tokens, in thousandths of a dollar.
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
    fn every_listed_price_is_read_with_its_source() {
        let listed = listed();
        assert_eq!(LISTED.len(), listed.len(), "each name once");
        for (name, source) in &listed {
            assert!(source.starts_with("https://"), "{name}");
            assert_eq!(*name, name.to_ascii_lowercase(), "names are compared in lower case");
            assert_eq!(own("{}").price(Some(name)), Some(LISTED[name.as_str()]), "{name}");
            assert!(!name.contains('*'), "{name}");
        }
        let caches = LISTED.values().filter(|price| price.cache_read.is_some_and(|read| read < price.input));
        assert!(caches.count() > 300, "cache prices are columns of their own");
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
            (&["gpt-4", "gpt-4-0613"], (30_000, 60_000)),
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
            (&["anthropic/claude-opus-4.6:batch"], (2_500, 12_500)),
            (
                &[
                    "claude-sonnet-4-5",
                    "claude-sonnet-4-5-20250929",
                    "claude-sonnet-4-5@20250929",
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
    fn no_family_reaches_another_version() {
        // Whatever follows a listed name is another model, unless it is a date or a spelling.
        let endings =
            ["-9", ".9", "9", "-99", "-9-9", "-mini9", "-turbo9", "x", "-v9x", "-20991399", "-2099-13-01", ":free9"];
        for (name, _) in listed() {
            // What follows a fine-tuned model's colon names the tuning.
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
    fn a_listed_date_keeps_its_own_price() {
        let mut own_dates = 0;
        for (name, _) in listed() {
            let family = without_date(&name).and_then(|family| LISTED.get(family));
            own_dates += usize::from(family.is_some_and(|family| *family != LISTED[name.as_str()]));
            assert_eq!(own("{}").price(Some(&name)), Some(LISTED[name.as_str()]), "{name}");
        }
        assert!(own_dates > 0);
    }

    #[test]
    fn the_operators_prices_come_first() {
        let table = own(
            r#"{"Acme-1": {"input": 1, "output": 2}, "gpt-4o": {"input": 3, "output": 4}, "*": {"input": 5, "output": 6}}"#,
        );
        for (model, input) in [
            (Some("acme-1"), 1),
            (Some("acme-1-2026-01-01"), 1),
            (Some("gpt-4o"), 3),
            (Some("openai/gpt-4o-2024-08-06"), 3),
            (Some("gpt-4o-mini"), 15_000),
            (Some("unheard-of"), 5),
            (None, 5),
        ] {
            assert_eq!(table.price(model).map(|price| price.input), Some(input), "{model:?}");
        }
        assert_eq!(own("{}").price(None), None);
    }

    #[test]
    fn malformed_prices_are_refused() {
        for json in [
            "",
            "[]",
            "1",
            r#"{"a": 1}"#,
            r#"{"a": {"input": 1}}"#,
            r#"{"a": {"input": -1, "output": 1}}"#,
            r#"{"a": {"input": 1.5, "output": 1}}"#,
            r#"{"a": {"input": 4294967296, "output": 1}}"#,
            r#"{"a": {"input": 1, "output": 1, "cached": 1}}"#,
        ] {
            assert_eq!(parse(json).unwrap_err(), PricesError::Shape, "{json}");
        }
        assert_eq!(parse(r#"{"gpt-4*": {"input": 1, "output": 1}}"#).unwrap_err(), PricesError::Pattern);
    }
}
