use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::Error as _};

use super::{Invalid, ObjectMembers, Provider, Reach, endpoint_url::Outline};

/// The operator's base URLs, which replace those of the providers: `{"openai":"https://…"}`. Each
/// is `https`, with any host, port and path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProviderBaseUrls(BTreeMap<Provider, String>);

/// Also allows `http` on loopback.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalProviderBaseUrls(pub ProviderBaseUrls);

/// Why a set of base URLs is invalid. Shows no part of a URL, which may hold a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum BaseUrlsError {
    #[error("it has a name other than anthropic, openai, bedrock, vertex and openrouter")]
    ProviderUnknown,
    #[error("it has more than one URL of {0}")]
    ProviderTwice(Provider),
    #[error("the URL of {provider} {problem}")]
    Url { provider: Provider, problem: Invalid },
}

impl ProviderBaseUrls {
    /// Returns the base URL without a trailing slash, if the operator replaced the provider's own.
    pub fn get(&self, provider: Provider) -> Option<&str> {
        self.0.get(&provider).map(String::as_str)
    }

    /// Replaces one provider's base URL with one of this process.
    #[must_use]
    pub fn with_loopback(mut self, provider: Provider, url: String) -> Self {
        self.0.insert(provider, url);
        self
    }

    fn checked(written: ObjectMembers<String>, reach: Reach) -> Result<Self, BaseUrlsError> {
        let mut urls = BTreeMap::new();
        for (name, url) in written {
            let provider = Provider::ALL.into_iter().find(|provider| provider.as_str() == name);
            let provider = provider.ok_or(BaseUrlsError::ProviderUnknown)?;
            let url = base_url(&url, reach).map_err(|problem| BaseUrlsError::Url { provider, problem })?;
            if urls.insert(provider, url).is_some() {
                return Err(BaseUrlsError::ProviderTwice(provider));
            }
        }
        Ok(Self(urls))
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D, reach: Reach) -> Result<Self, D::Error> {
        // The message of a wrong type would show the value.
        let written = ObjectMembers::deserialize(deserializer)
            .map_err(|_| D::Error::custom("it must be a JSON object of URLs by provider"))?;
        Self::checked(written, reach).map_err(D::Error::custom)
    }
}

fn base_url(text: &str, reach: Reach) -> Result<String, Invalid> {
    let outline = Outline::operated(text, reach)?;
    if outline.path_and_query.contains('?') {
        return Err(Invalid::new("must not have a query"));
    }
    let url = outline.normalised(text);
    Ok(url.strip_suffix('/').unwrap_or(&url).to_owned())
}

impl<'de> Deserialize<'de> for ProviderBaseUrls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(deserializer, Reach::Public)
    }
}

impl<'de> Deserialize<'de> for LocalProviderBaseUrls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ProviderBaseUrls::read(deserializer, Reach::Loopback).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployed(json: &str) -> Result<ProviderBaseUrls, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    fn local(json: &str) -> Result<ProviderBaseUrls, String> {
        serde_json::from_str(json).map(|LocalProviderBaseUrls(urls)| urls).map_err(|error| error.to_string())
    }

    #[test]
    fn base_url_is_kept_without_trailing_slash() {
        let urls = deployed(r#"{"openai":"HTTPS://Proxy.internal:8443/OpenAI/v1/","anthropic":"https://10.0.0.7"}"#);
        let urls = urls.unwrap();
        assert_eq!(urls.get(Provider::OpenAi), Some("https://proxy.internal:8443/OpenAI/v1"));
        assert_eq!(urls.get(Provider::Anthropic), Some("https://10.0.0.7"));
        assert_eq!(urls.get(Provider::OpenRouter), None);
        assert_eq!(deployed("{}"), Ok(ProviderBaseUrls::default()));
    }

    #[test]
    fn loopback_http_is_for_local_runs_only() {
        for url in ["http://127.0.0.1:9000", "http://localhost:9000/v1", "http://[::1]:9000"] {
            let json = format!(r#"{{"openai":"{url}"}}"#);
            assert_eq!(local(&json).unwrap().get(Provider::OpenAi), Some(url));
            assert!(deployed(&json).unwrap_err().contains("must start with https://"), "{url}");
        }
        assert!(local(r#"{"openai":"http://proxy.example.com"}"#).unwrap_err().contains("must start with https://"));
    }

    #[test]
    fn invalid_urls_are_named_but_not_shown() {
        for (json, problem) in [
            (r#"{"openai":"https://u:s3cret@example.com"}"#, "the URL of openai must not contain a user name"),
            (r#"{"openai":"https://example.com?key=s3cret"}"#, "the URL of openai must not have a query"),
            (r#"{"openai":"https://example.com/#s3cret"}"#, "the URL of openai must not have a fragment"),
            (r#"{"openai":"https:///s3cret"}"#, "the URL of openai must have a host name"),
            (r#"{"openai":"https://example.com:0/s3cret"}"#, "the URL of openai must have a port"),
            (r#"{"openai":"s3cret"}"#, "the URL of openai must start with https://"),
            (r#"{"s3cret":"https://example.com"}"#, "it has a name other than"),
            (r#"{"openai":"https://a.example","openai":"https://b.example"}"#, "it has more than one URL of openai"),
            (r#"{"openai":["s3cret"]}"#, "it must be a JSON object of URLs"),
            (r#"["s3cret"]"#, "it must be a JSON object of URLs"),
        ] {
            let error = deployed(json).unwrap_err();
            assert!(error.starts_with(problem), "{json}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
