use serde::{Deserialize, Serialize};

use super::{
    EndpointUrl, Invalid, Reach,
    endpoint_url::{Outline, check_path},
};

/// A git commit: 7 to 64 hexadecimal digits, stored in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct CommitSha(String);

impl CommitSha {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for CommitSha {
    type Error = Invalid;

    fn try_from(mut text: String) -> Result<Self, Invalid> {
        if !(7..=64).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Invalid::new("must be 7 to 64 hexadecimal digits"));
        }
        text.make_ascii_lowercase();
        Ok(Self(text))
    }
}

/// The location of a release's code: an [`EndpointUrl`] without a query. A query may hold a
/// signature, which every reader of the release would see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ArtifactUrl(EndpointUrl);

impl ArtifactUrl {
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// See [`EndpointUrl::check_input`].
    pub fn check_input(&self) -> Result<(), Invalid> {
        self.0.check_input(Reach::Public)
    }
}

impl TryFrom<String> for ArtifactUrl {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if text.contains(['?', '#']) {
            return Err(Invalid::new("must not have a query or a fragment: every reader of the release sees it"));
        }
        Outline::checked(&text, Reach::Public)?;
        EndpointUrl::try_from(text).map(Self)
    }
}

/// A container image: `registry.example.com/app:1.4@sha256:…`, at most 512 characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ImageRef(String);

const NOT_AN_IMAGE: Invalid = Invalid::new(
    "must be an OCI image reference such as registry.example.com/app:1.4: a name in lower case, optionally with a tag and a sha256 digest, without scheme and credentials",
);

impl ImageRef {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks the grammar of an OCI reference: `host:port/name:tag@digest`, without which no client
    /// can pull the image. Only for input: parsing does not include it, because stored references are
    /// parsed too and must stay readable.
    pub fn check_grammar(&self) -> Result<(), Invalid> {
        let (name, digest) = self.0.split_once('@').map_or((&*self.0, None), |(name, digest)| (name, Some(digest)));
        // A colon before the last slash starts a port.
        let tag_at = name.rfind(':').filter(|at| !name[*at..].contains('/'));
        let (name, tag) = tag_at.map_or((name, None), |at| (&name[..at], Some(&name[at + 1..])));
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host == "localhost" || host.contains(['.', ':']) => (Some(host), path),
            _ => (None, name),
        };
        let is_valid = registry.is_none_or(is_registry)
            && path.split('/').all(is_path_component)
            && tag.is_none_or(is_tag)
            && digest.is_none_or(|digest| !digest.contains(|c: char| c.is_ascii_uppercase()));
        if is_valid { Ok(()) } else { Err(NOT_AN_IMAGE) }
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_label = |label: &str| {
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(inside) && !label.starts_with('-') && !label.ends_with('-')
    };
    host.split('.').all(is_label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Accepts small letters and digits, with `.`, `_`, `__` or hyphens between them.
fn is_path_component(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    text.starts_with(is_plain) && text.ends_with(is_plain) && text.split(is_plain).all(is_separator)
}

fn is_tag(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=128).contains(&text.len()) && text.bytes().all(inside) && !text.starts_with(['.', '-'])
}

impl TryFrom<String> for ImageRef {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let (name, digest) = text.split_once('@').map_or((&*text, None), |(name, digest)| (name, Some(digest)));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:".contains(&byte);
        let segment = |segment: &str| segment.starts_with(|first: char| first.is_ascii_alphanumeric());
        let is_name = name.split('/').all(segment) && name.bytes().all(plain);
        let is_digest = |digest: &str| {
            let hex = digest.strip_prefix("sha256:").unwrap_or_default();
            hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        if text.len() <= 512 && is_name && digest.is_none_or(is_digest) { Ok(Self(text)) } else { Err(NOT_AN_IMAGE) }
    }
}

/// The path of a release's template, from the root of its code: at most 1,024 characters. It has
/// only one form: no blanks, no `.`, `..` or empty segments, no backslashes, no drive letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct TemplatePath(String);

impl TemplatePath {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks the escapes, which a builder may decode. Only for input: stored paths must stay
    /// readable.
    pub fn check_input(&self) -> Result<(), Invalid> {
        check_path(&self.0)?;
        Self::try_from(decoded(&self.0)).map(drop)
    }
}

/// Decodes the valid percent escapes of a path once.
fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        bytes.extend(u8::from_str_radix(digits, 16));
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl TryFrom<String> for TemplatePath {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let odd = |c: char| c.is_whitespace() || c.is_control();
        let plain = text.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
        let drive = text.as_bytes().get(1) == Some(&b':');
        if text.chars().count() <= 1_024 && plain && !drive && !text.contains('\\') && !text.chars().any(odd) {
            Ok(Self(text))
        } else {
            Err(Invalid::new(
                "must be a relative path such as agents/app.yaml: 1 to 1024 characters, no leading, trailing or double slash, no . or .. segment, no blanks, backslashes or control characters",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::OutboundUrl;

    #[test]
    fn commit_sha_is_hexadecimal_and_stored_lower_case() {
        assert_eq!(CommitSha::try_from("ABCDEF0".to_owned()).unwrap().as_str(), "abcdef0");
        assert!(CommitSha::try_from("0".repeat(64)).is_ok());
        for text in ["", "abcdef", "abcdefg", "0x12345", " abcdef0", "abcdef0\n", "é234567", &"0".repeat(65)] {
            assert!(CommitSha::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn artifact_url_is_public_and_unsigned() {
        let path = "https://artifacts.example.com/app/abc@2/app.tar.gz";
        assert_eq!(ArtifactUrl::try_from(path.to_owned()).unwrap().as_str(), path);
        for text in [
            "http://artifacts.example.com/app.zip",
            "https://169.254.169.254/app.zip",
            "https://bucket.example.com/app.zip?X-Amz-Signature=abc",
            "https://bucket.example.com/app.zip?",
            "https://bucket.example.com/app.zip#sig",
            "https://account.blob.example.com/app.zip?sv=2024-11-04&sig=abc",
            "https://cdn.example.com/app.zip?token=abc",
            "https://user:secret@artifacts.example.com/app.zip",
            "https://token@artifacts.example.com/app.zip",
            "s3://bucket/app.zip",
        ] {
            assert!(ArtifactUrl::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn image_ref_has_a_name_and_no_credentials() {
        let digest = format!("app@sha256:{}", "a1".repeat(32));
        for text in ["app", "app:1.4", "localhost:5000/team/app", "ghcr.io/acme/app:sha-1", &digest] {
            assert!(ImageRef::try_from(text.to_owned()).is_ok(), "{text}");
        }
        for text in [
            "",
            "-app",
            "a b",
            "app\n",
            "app?x",
            "user:secret@ghcr.io/app",
            "ghcr.io/../app",
            "ghcr.io//app",
            "ghcr.io/app/",
            "https://ghcr.io/app",
            "docker://app",
            "/app",
            "app@sha256:abc",
            &format!("{digest}@"),
            &"a".repeat(513),
        ] {
            assert!(ImageRef::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn image_ref_follows_the_oci_grammar() {
        let digest = "a1".repeat(32);
        for text in [
            "app",
            "app:1.4",
            "app:_Build-1.X",
            "acme/app",
            "localhost/app",
            "localhost:5000/team/app:1",
            "Registry.Example.com:443/a.b/c_d/e__f/g---h",
            &format!("ghcr.io/acme/app:1@sha256:{digest}"),
            &format!("app:{}", "1".repeat(128)),
        ] {
            assert_eq!(ImageRef::try_from(text.to_owned()).unwrap().check_grammar(), Ok(()), "{text}");
        }
        for text in [
            "App",
            "Acme/app",
            "app:",
            "app:1:2",
            "app:-1",
            "app-",
            "a..b",
            "a___b",
            "a._b",
            "ghcr.io:/app",
            "ghcr.io:http/app",
            "ghcr.io:65536/app",
            "ghcr-.io/app",
            "ghcr..io/app",
            "oci:ghcr.io/app",
            "localhost:5000/",
            &format!("app@sha256:{}", digest.to_uppercase()),
            &format!("app:{}", "1".repeat(129)),
        ] {
            let checked = ImageRef::try_from(text.to_owned()).and_then(|image| image.check_grammar());
            assert_eq!(checked, Err(NOT_AN_IMAGE), "{text}");
        }
    }

    #[test]
    fn template_path_stays_inside_the_code() {
        for text in ["template.yaml", "a/b.yaml", "a..b/.c", "...", "é", &"a".repeat(1_024)] {
            assert!(TemplatePath::try_from(text.to_owned()).is_ok(), "{text}");
        }
        for text in [
            "",
            ".",
            "..",
            "/",
            "../a",
            "a/..",
            "a/../b",
            "./a",
            "a/./b",
            "a//b",
            "a/",
            "/srv/app/template.yaml",
            "//host/a",
            "\\a",
            "a\\b",
            "a\\..\\b",
            "C:/a",
            "c:a",
            "a b",
            "a\0",
            "a\n",
            &"a".repeat(1_025),
        ] {
            assert!(TemplatePath::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn every_path_of_a_request_is_read_alike() {
        type Check = fn(String, String) -> Result<(), Invalid>;
        let checks: [(&str, Check); 4] = [
            ("template_path", |path, _| TemplatePath::try_from(path)?.check_input()),
            ("artifact_url", |_, url| ArtifactUrl::try_from(url)?.check_input()),
            ("endpoint_url", |_, url| EndpointUrl::try_from(url)?.check_input(Reach::Public)),
            ("url", |_, url| OutboundUrl::parse(&url, Reach::Public).map(drop)),
        ];
        for (field, check) in checks {
            let check = |path: &str| check(path.to_owned(), format!("https://api.acme.com/{path}"));
            for path in ["a/b.yaml", "a..b/.c", "...", "a%C3%A9b", "a/%2e%2ea", "%25"] {
                assert_eq!(check(path), Ok(()), "{field}: {path}");
            }
            for path in ["../a", "a/./b", "a/%2e%2E/b", "a/.%2e", "%2e", "a%", "a%2", "%zz/b", "%%25"] {
                assert!(check(path).is_err(), "{field}: {path}");
            }
        }
        let stored: TemplatePath = serde_json::from_value("a/%2e%2e/100%".into()).unwrap();
        assert_eq!(stored.as_str(), "a/%2e%2e/100%");
    }
}
