use http::{HeaderMap, HeaderValue, header};

/// Lets browsers of any origin call a route. Lists are separated by commas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cors {
    /// Methods that the preflight allows.
    pub methods: &'static str,
    /// Request headers that the preflight allows.
    pub headers: &'static str,
    /// Response headers that scripts may read.
    pub exposed: &'static str,
}

impl Cors {
    /// Routes without a body or special headers.
    pub const PLAIN: Self =
        Self { methods: "GET, POST, OPTIONS", headers: "Authorization, Content-Type", exposed: "x-request-id" };
    /// Routes of the data plane.
    pub const DATA_PLANE: Self = Self {
        methods: "GET, POST, DELETE, OPTIONS",
        headers: "Authorization, Content-Type, Last-Event-ID, Idempotency-Key",
        exposed: "x-request-id, retry-after, x-should-retry",
    };

    pub(super) fn insert(self, headers: &mut HeaderMap) {
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, self.headers),
            (header::ACCESS_CONTROL_ALLOW_METHODS, self.methods),
            (header::ACCESS_CONTROL_EXPOSE_HEADERS, self.exposed),
            (header::ACCESS_CONTROL_MAX_AGE, "3600"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
}
