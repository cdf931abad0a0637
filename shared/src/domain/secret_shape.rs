//! Recognises credentials by their shape, in texts that are stored, shown or sent on.
//!
//! A shape is a brand and the least that follows it. Brands are long enough that ordinary text does not hold them by chance; the short ones
//! (`sk-`) also need characters that look random. Our own shapes come first. To add a shape, add a row to [`SHAPES`].

/// Which characters follow a brand.
#[derive(Debug, Clone, Copy)]
enum Body {
    Alphanumeric,
    /// Letters, digits, `_` and `-`.
    Word,
    /// Word characters, `+`, `/` and `=`.
    Base64,
    /// Upper-case letters and digits.
    Upper,
    /// Word characters that look random: a digit, and 16 letters and digits in a row.
    Random,
}

#[derive(Debug)]
struct Shape {
    brand: &'static str,
    body: Body,
    /// The fewest characters behind the brand.
    least: usize,
    /// Whether a letter or digit may come before the brand.
    anywhere: bool,
}

const fn ours(brand: &'static str, body: Body, least: usize) -> Shape {
    Shape { brand, body, least, anywhere: true }
}

const fn foreign(brand: &'static str, body: Body, least: usize) -> Shape {
    Shape { brand, body, least, anywhere: false }
}

const SHAPES: [Shape; 66] = [
    // The first 14 characters of an API key are public.
    ours("kt_live_", Body::Alphanumeric, 20),
    ours("whsec_", Body::Base64, 16),
    ours("karta_service_", Body::Word, 20),
    // Model providers.
    foreign("sk-ant-", Body::Word, 16),
    foreign("sk-or-", Body::Word, 16),
    foreign("sk-proj-", Body::Word, 16),
    foreign("sk-svcacct-", Body::Word, 16),
    foreign("sk-admin-", Body::Random, 20),
    foreign("sk-", Body::Random, 20),
    foreign("ABSK", Body::Base64, 40),
    foreign("AIza", Body::Word, 30),
    foreign("gsk_", Body::Alphanumeric, 30),
    foreign("xai-", Body::Alphanumeric, 30),
    foreign("pplx-", Body::Alphanumeric, 30),
    foreign("nvapi-", Body::Word, 30),
    foreign("hf_", Body::Alphanumeric, 30),
    foreign("r8_", Body::Alphanumeric, 30),
    foreign("tgp_v1_", Body::Word, 30),
    // Clouds.
    foreign("AKIA", Body::Upper, 16),
    foreign("ASIA", Body::Upper, 16),
    foreign("GOCSPX-", Body::Word, 20),
    foreign("ya29.", Body::Word, 20),
    foreign("dop_v1_", Body::Alphanumeric, 30),
    foreign("doo_v1_", Body::Alphanumeric, 30),
    foreign("dapi", Body::Alphanumeric, 32),
    foreign("hvs.", Body::Word, 20),
    foreign("hvb.", Body::Word, 20),
    foreign("sbp_", Body::Alphanumeric, 30),
    foreign("dp.pt.", Body::Alphanumeric, 30),
    foreign("pul-", Body::Alphanumeric, 40),
    // Code and packages.
    foreign("ghp_", Body::Alphanumeric, 20),
    foreign("gho_", Body::Alphanumeric, 20),
    foreign("ghu_", Body::Alphanumeric, 20),
    foreign("ghs_", Body::Alphanumeric, 20),
    foreign("ghr_", Body::Alphanumeric, 20),
    foreign("github_pat_", Body::Word, 20),
    foreign("glpat-", Body::Word, 16),
    foreign("glptt-", Body::Word, 16),
    foreign("gldt-", Body::Word, 16),
    foreign("glrt-", Body::Word, 16),
    foreign("npm_", Body::Alphanumeric, 30),
    foreign("pypi-", Body::Word, 50),
    foreign("rubygems_", Body::Alphanumeric, 40),
    foreign("dckr_pat_", Body::Word, 20),
    foreign("ATATT3", Body::Base64, 40),
    foreign("sntrys_", Body::Base64, 30),
    foreign("glsa_", Body::Word, 30),
    foreign("glc_", Body::Base64, 40),
    foreign("figd_", Body::Word, 30),
    foreign("lin_api_", Body::Alphanumeric, 30),
    foreign("PMAK-", Body::Word, 40),
    // Chat, mail and payments.
    foreign("xoxa-", Body::Word, 10),
    foreign("xoxb-", Body::Word, 10),
    foreign("xoxe-", Body::Word, 10),
    foreign("xoxp-", Body::Word, 10),
    foreign("xoxr-", Body::Word, 10),
    foreign("xoxs-", Body::Word, 10),
    foreign("xapp-", Body::Word, 10),
    foreign("sk_live_", Body::Alphanumeric, 10),
    foreign("sk_test_", Body::Alphanumeric, 10),
    foreign("rk_live_", Body::Alphanumeric, 10),
    foreign("rk_test_", Body::Alphanumeric, 10),
    foreign("shpat_", Body::Alphanumeric, 30),
    foreign("shpss_", Body::Alphanumeric, 30),
    foreign("sq0csp-", Body::Word, 30),
    foreign("AGE-SECRET-KEY-", Body::Upper, 40),
];
/// The shapes above that are this system's own; session tokens are the JWTs among the others.
const OURS: usize = 3;

/// Whether a text holds a credential: one of ours, or one of a well-known shape of another service. Also where it is percent-encoded.
pub fn finds_secret(text: &str) -> bool {
    is_in(text, |rest, alone| {
        has_shape(&SHAPES, rest, alone) || is_jwt(rest) || is_private_key(rest) || is_bearer(rest) || has_password(rest)
    })
}

/// The same for our own credentials alone: for texts that other services' may be part of, such as the query of a URL.
pub fn finds_own_secret(text: &str) -> bool {
    is_in(text, |rest, alone| has_shape(&SHAPES[..OURS], rest, alone) || is_jwt(rest))
}

/// Whether a credential starts anywhere in a text. `starts` takes the rest of the text, and whether no letter or digit stands before it.
fn is_in(text: &str, starts: impl Fn(&[u8], bool) -> bool) -> bool {
    let is_in = |text: &[u8]| {
        text.windows(2).enumerate().any(|(at, pair)| {
            let [high, low] = [pair[0], pair[1]].map(usize::from);
            let may_start = STARTS[4 * high + low / 64] >> (low % 64) & 1 == 1;
            may_start && starts(&text[at..], at == 0 || !text[at - 1].is_ascii_alphanumeric())
        })
    };
    is_in(text.as_bytes()) || decoded(text).is_some_and(|text| is_in(&text))
}

/// The first two bytes of each credential, one bit for each pair: one lookup skips almost every position of a text.
const STARTS: [u64; 1024] = {
    const OTHERS: [&[u8]; 7] = [b"ey", b"--", b"be", b"bE", b"Be", b"BE", b":/"];
    let (mut starts, mut at) = ([0; 1024], 0);
    while at < SHAPES.len() + OTHERS.len() {
        let start = if at < SHAPES.len() { SHAPES[at].brand.as_bytes() } else { OTHERS[at - SHAPES.len()] };
        starts[4 * start[0] as usize + start[1] as usize / 64] |= 1 << (start[1] % 64);
        at += 1;
    }
    starts
};

fn has_shape(shapes: &[Shape], rest: &[u8], alone: bool) -> bool {
    shapes.iter().any(|shape| {
        let body = rest.strip_prefix(shape.brand.as_bytes());
        (shape.anywhere || alone) && body.is_some_and(|body| shape.body.fits(body, shape.least))
    })
}

impl Body {
    fn fits(self, rest: &[u8], least: usize) -> bool {
        let run = run(rest, |byte| match self {
            Self::Alphanumeric => byte.is_ascii_alphanumeric(),
            Self::Word | Self::Random => is_word(byte),
            Self::Base64 => is_word(byte) || b"+/=".contains(&byte),
            Self::Upper => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
        });
        run.len() >= least && (!matches!(self, Self::Random) || looks_random(run))
    }
}

fn looks_random(run: &[u8]) -> bool {
    let mut parts = run.split(|byte| !byte.is_ascii_alphanumeric());
    run.iter().any(u8::is_ascii_digit) && parts.any(|part| part.len() >= 16)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// Maximum bytes of a credential that are checked. Without it, a text with many brands would take quadratic time.
const RUN_MAX: usize = 192;

fn run(text: &[u8], fits: impl Fn(u8) -> bool) -> &[u8] {
    let text = &text[..text.len().min(RUN_MAX)];
    let end = text.iter().position(|byte| !fits(*byte)).unwrap_or(text.len());
    &text[..end]
}

/// `eyJ….…`: a session token of ours, or any other JSON Web Token.
fn is_jwt(rest: &[u8]) -> bool {
    if !rest.starts_with(b"eyJ") {
        return false;
    }
    let header = run(rest, is_word);
    let claims = rest[header.len()..].strip_prefix(b".");
    header.len() >= 12 && claims.is_some_and(|claims| run(claims, is_word).len() >= 16)
}

/// `-----BEGIN … PRIVATE KEY`
fn is_private_key(rest: &[u8]) -> bool {
    let Some(rest) = rest.strip_prefix(b"-----BEGIN ") else { return false };
    let label = run(rest, |byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b' ');
    label.windows(11).any(|part| part == b"PRIVATE KEY")
}

/// `Bearer …`, with a token of 20 characters or more that holds a digit.
fn is_bearer(rest: &[u8]) -> bool {
    let Some((word, rest)) = rest.split_at_checked(7) else { return false };
    if !word.eq_ignore_ascii_case(b"bearer ") {
        return false;
    }
    let token = run(rest.trim_ascii_start(), |byte| is_word(byte) || b".~+/=".contains(&byte));
    token.len() >= 20 && token.iter().any(u8::is_ascii_digit)
}

/// `://user:password@`, or a token in the place of a user's name.
fn has_password(rest: &[u8]) -> bool {
    let Some(rest) = rest.strip_prefix(b"://") else { return false };
    let authority = run(rest, |byte| byte.is_ascii_graphic() && !b"/?#\"'\\".contains(&byte));
    let Some(end) = authority.iter().rposition(|byte| *byte == b'@') else { return false };
    let user = &authority[..end];
    let password = user.iter().position(|byte| *byte == b':').map_or(0, |colon| user.len() - colon - 1);
    password > 0 || user.len() >= 16
}

/// A text with what is percent-encoded in it decoded, if anything is.
fn decoded(text: &str) -> Option<Vec<u8>> {
    if !text.contains('%') {
        return None;
    }
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let (bytes, mut plain, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let pair = digit(bytes.get(at + 1)).zip(digit(bytes.get(at + 2))).filter(|_| *byte == b'%');
        let value = pair.and_then(|(high, low)| u8::try_from(16 * high + low).ok());
        plain.push(value.unwrap_or(*byte));
        at += if value.is_some() { 3 } else { 1 };
    }
    Some(plain)
}

/// One example of every shape, made of its own row: for tests.
#[cfg(any(test, feature = "testing"))]
pub fn secret_examples() -> Vec<String> {
    const LETTERS: &[u8] = b"7QxW9z3RkT5mVb2NpL8c";
    const UPPER: &[u8] = b"7QXW9Z3RKT5MVB2NPL8C";
    let body = |shape: &Shape| {
        let letters = if matches!(shape.body, Body::Upper) { UPPER } else { LETTERS };
        let length = shape.least.max(32);
        letters.iter().cycle().take(length).map(|byte| char::from(*byte)).collect::<String>()
    };
    let token = "7QxW9z3RkT5mVb2NpL8c7QxW9z3RkT5mVb2NpL8c";
    let others = [
        format!("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ{token}.{token}"),
        format!("-----BEGIN RSA PRIVATE KEY-----\n{token}"),
        format!("Bearer {token}"),
        format!("postgres://app:{token}@db.example.com/app"),
        format!("https://{token}@example.com/"),
    ];
    SHAPES.iter().map(|shape| format!("{}{}", shape.brand, body(shape))).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_shape_is_found_wherever_it_is() {
        for secret in secret_examples() {
            for text in [
                secret.clone(),
                format!("key {secret}"),
                format!("é\"{secret}\" and more"),
                format!("https://hooks.example.com/x/{}", secret.replace("://", ":/")),
                secret.bytes().fold(String::new(), |text, byte| format!("{text}%{byte:02x}")),
            ] {
                let is_hidden_url = text.starts_with("https://hooks") && secret.contains("://");
                assert!(finds_secret(&text) || is_hidden_url, "{text}");
            }
        }
    }

    #[test]
    fn own_and_foreign_credentials_are_distinguished() {
        let examples = secret_examples();
        assert!(examples[..OURS].iter().all(|secret| finds_own_secret(&format!("https://example.com/?k={secret}"))));
        assert!(finds_own_secret(&examples[SHAPES.len()]), "a session token");
        assert!(!examples[OURS..SHAPES.len()].iter().any(|secret| finds_own_secret(secret)));
    }

    #[test]
    fn ordinary_text_passes() {
        for text in [
            "",
            "kt_live_AbC123",
            "kt_live_production",
            "Key kt_live_AbC123 of the web shop",
            "task-management-12345678901234567890",
            "risk-assessment-2026-03-quarterly-review",
            "sk-learn-pipeline-for-training-2026",
            "The bearer of good news",
            "bearer tokens for 2026",
            "whsec_",
            "karta_service_eu",
            "eyJhbGci.only-two",
            "claude-opus-4-20250514",
            "us.anthropic.claude-sonnet-4-20250514-v1:0",
            "projects/p/locations/us/publishers/google/models/gemini-2.5-pro",
            "ft:gpt-4o-mini-2024-07-18:acme:custom-suffix:AbC12345",
            "chatcmpl-9xYzAbCdEfGhIjKlMnOpQrStUvWxYz12",
            "msg_01XFDUDYJgAACzvnptvVoYEL",
            "01890a5d-ac96-774b-bcce-b302099a8057",
            "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
            "registry.example.com/app@sha256:0a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef0123456789abcdef",
            "https://example.com:443/a@b?c=d:e@f",
            "ann@example.com",
            "50 % off, 100%zz",
            "no key: -----BEGIN CERTIFICATE-----",
            "Łódź 東京 می‌خواهم",
        ] {
            assert!(!finds_secret(text) && !finds_own_secret(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".*", at in 0_usize..80) {
            let examples = secret_examples();
            let secret = &examples[at % examples.len()];
            finds_secret(&text);
            let with_secret = format!("{text} {secret}");
            prop_assert!(finds_secret(&with_secret));
        }
    }
}
