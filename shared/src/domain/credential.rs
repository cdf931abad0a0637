/// The credentials that Karta issues, recognised by their first characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialKind {
    ApiKey,
    ServiceToken,
    /// A JWT: its header is a JSON object in base64url.
    SessionToken,
    WebhookSecret,
}

impl CredentialKind {
    pub const ALL: [Self; 4] = [Self::ApiKey, Self::ServiceToken, Self::SessionToken, Self::WebhookSecret];

    /// Returns the first characters. NEVER CHANGE: secret scanners, verification libraries and the
    /// log scrubber match them.
    pub const fn brand(self) -> &'static str {
        match self {
            Self::ApiKey => "kt_live_",
            Self::ServiceToken => "karta_service_",
            Self::SessionToken => "eyJ",
            Self::WebhookSecret => "whsec_",
        }
    }
}
