//! Prints deliveries with which other implementations test their verification: a JSON list of
//! `{"what","is_genuine","secret","body","headers"}`. Some are genuine and some are tampered with. They are signed
//! with the current time, so they are valid for five minutes.

use std::{
    io::{Write, stdout},
    time::Duration,
};

use karta_shared::{
    clock::{Clock, SystemClock},
    domain::{Signatures, Timestamp, WebhookSecret},
    entropy::OsEntropy,
};
use serde_json::{Value, json};

const BODY: &str = r#"{"id":"evt_1","type":"ping","data":{"name":"Zwölf Schlüssel – 鍵 🔑","line":"\u0000\n"}}"#;
const TEN_MINUTES: Duration = Duration::from_mins(10);

fn signed(secrets: &[&WebhookSecret], at: Timestamp) -> Signatures {
    Signatures::sign(secrets, "evt_1", at, BODY.as_bytes())
}

fn case(what: &str, is_genuine: bool, secret: &WebhookSecret, body: &str, signatures: &Signatures) -> Value {
    json!({
        "what": what,
        "is_genuine": is_genuine,
        "secret": secret.expose(),
        "body": body,
        "headers": {
            "karta-signature": signatures.karta_signature,
            "webhook-id": signatures.webhook_id,
            "webhook-timestamp": signatures.webhook_timestamp,
            "webhook-signature": signatures.webhook_signature,
        },
    })
}

/// The same in both formats.
fn edited(signatures: &Signatures, edit: impl Fn(&str) -> String) -> Signatures {
    Signatures {
        karta_signature: edit(&signatures.karta_signature),
        webhook_signature: edit(&signatures.webhook_signature),
        ..signatures.clone()
    }
}

/// The first digit behind the last `v1=` or `v1,` replaced by another digit.
fn one_digit_changed(header: &str) -> String {
    let at = header.rfind("v1").map_or(0, |at| at + 3);
    let other = if header[at..].starts_with('a') { "b" } else { "a" };
    format!("{}{other}{}", &header[..at], &header[at + 1..])
}

fn main() -> std::io::Result<()> {
    let now = SystemClock.now();
    let [secret, retired, other] = [(); 3].map(|()| WebhookSecret::generate(&OsEntropy));
    let (fresh, rotating) = (signed(&[&secret], now), signed(&[&retired, &secret], now));
    let (late, early) = (signed(&[&secret], now.minus(TEN_MINUTES)), signed(&[&secret], now.plus(TEN_MINUTES)));
    let later = now.plus(Duration::from_secs(1)).as_seconds().to_string();
    let moved = Signatures {
        karta_signature: fresh.karta_signature.replace(&fresh.webhook_timestamp, &later),
        webhook_timestamp: later,
        ..fresh.clone()
    };
    let cases = [
        case("a delivery", true, &secret, BODY, &fresh),
        case("a delivery during a rotation", true, &secret, BODY, &rotating),
        case("a delivery during a rotation, under the old secret", true, &retired, BODY, &rotating),
        case("a delivery under another secret", false, &other, BODY, &fresh),
        case("a delivery during a rotation, under another secret", false, &other, BODY, &rotating),
        case("a body with one byte changed", false, &secret, &BODY.replace("evt_1", "evt_2"), &fresh),
        case("a body without its last byte", false, &secret, &BODY[..BODY.len() - 1], &fresh),
        case("a body with a line break behind it", false, &secret, &format!("{BODY}\n"), &fresh),
        case("an empty body", false, &secret, "", &fresh),
        case("a delivery of ten minutes ago", false, &secret, BODY, &late),
        case("a delivery in ten minutes", false, &secret, BODY, &early),
        case("a delivery under a later time", false, &secret, BODY, &moved),
        case("a signature with one digit changed", false, &secret, BODY, &edited(&fresh, one_digit_changed)),
        case(
            "a signature of another scheme",
            false,
            &secret,
            BODY,
            &edited(&fresh, |header| header.replace("v1", "v0")),
        ),
        case(
            "a signature cut short",
            false,
            &secret,
            BODY,
            &edited(&fresh, |header| header[..header.len() - 4].into()),
        ),
        case("no signature", false, &secret, BODY, &edited(&fresh, |_| String::new())),
    ];
    writeln!(stdout(), "{}", Value::from_iter(cases))
}
