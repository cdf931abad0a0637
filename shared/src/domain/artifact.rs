use serde::{Deserialize, Serialize};

use super::{EndpointUrl, Invalid};

/// A git commit: 7 to 64 hexadecimal digits, kept in lower case.
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

/// Where a release's code lies: an [`EndpointUrl`] without a query. What signs a URL stands there, and whoever may read a release would
/// read it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ArtifactUrl(EndpointUrl);

impl ArtifactUrl {
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl TryFrom<String> for ArtifactUrl {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if text.contains(['?', '#']) {
            return Err(Invalid::new("must not have a query or a fragment: every reader of the release sees it"));
        }
        EndpointUrl::try_from(text).map(Self)
    }
}

/// A container image: `registry.example.com/app:1.4@sha256:…`, at most 512 characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ImageRef(String);

impl ImageRef {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ImageRef {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let (name, digest) = text.split_once('@').map_or((&*text, None), |(name, digest)| (name, Some(digest)));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:".contains(&byte);
        let step = |step: &str| step.starts_with(|first: char| first.is_ascii_alphanumeric());
        let is_name = name.split('/').all(step) && name.bytes().all(plain);
        let is_digest = |digest: &str| {
            let hex = digest.strip_prefix("sha256:").unwrap_or_default();
            hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        if text.len() <= 512 && is_name && digest.is_none_or(is_digest) {
            Ok(Self(text))
        } else {
            Err(Invalid::new("must be an image such as registry.example.com/app:1.4, a sha256 digest behind it or not"))
        }
    }
}

/// Where in a release's code its template lies: a path from the code's root of at most 1,024 characters, without blanks, and written in the one
/// way that it can be: no `.`, `..` or empty steps, no backslashes, no drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct TemplatePath(String);

impl TemplatePath {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TemplatePath {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let odd = |c: char| c.is_whitespace() || c.is_control();
        let plain = text.split('/').all(|step| !matches!(step, "" | "." | ".."));
        let drive = text.as_bytes().get(1) == Some(&b':');
        if text.chars().count() <= 1_024 && plain && !drive && !text.contains('\\') && !text.chars().any(odd) {
            Ok(Self(text))
        } else {
            Err(Invalid::new(
                "must be a path from the code's root such as agents/app.yaml: 1 to 1024 characters, no / before or behind it, no . or .. between, no blanks, backslashes or control characters",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_hexadecimal_and_kept_in_lower_case() {
        assert_eq!(CommitSha::try_from("ABCDEF0".to_owned()).unwrap().as_str(), "abcdef0");
        assert!(CommitSha::try_from("0".repeat(64)).is_ok());
        for text in ["", "abcdef", "abcdefg", "0x12345", " abcdef0", "abcdef0\n", "é234567", &"0".repeat(65)] {
            assert!(CommitSha::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn an_artifact_is_public_and_unsigned() {
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
    fn an_image_has_a_name_and_no_password() {
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
            "/app",
            "app@sha256:abc",
            &format!("{digest}@"),
            &"a".repeat(513),
        ] {
            assert!(ImageRef::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_template_stays_where_the_code_is() {
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
}
