//! `GET /docs`: a self-contained page that shows `openapi.json`. It loads nothing from other
//! origins.

use karta_shared::{
    App,
    http::{AnyQuery, ApiResponse, Call, Error, NoBody, Public, Route, Verbatim},
};

/// The page embeds the viewer, so that one route serves both. The viewer is Redoc's own file with
/// one change: the component that loads Redocly's logo renders nothing, because the policy below
/// would block it and the browser would report that.
const PAGE: &str = concat!(
    include_str!("../page/head.html"),
    include_str!("../page/redoc.standalone.js"),
    include_str!("../page/tail.html")
);

/// The hash is that of the page's only script. The viewer writes its styles into the page and
/// creates a worker for its search.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'sha256-ByItviY5l815yKfatm1rJVfDzVT7sUoZmcRCusjjRfw='; style-src 'unsafe-inline'; \
     img-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(Debug)]
pub struct DocsGet;

impl Route for DocsGet {
    const NAME: &'static str = "docs-get";
    const USES_STORE: bool = false;
    const CONTENT_TYPE: &'static str = "text/html; charset=utf-8";
    const HEADERS: &'static [(&'static str, &'static str)] = &[
        ("cache-control", "public, max-age=300"),
        ("content-security-policy", CONTENT_SECURITY_POLICY),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    ];
    type Access = Public;
    type Path = ();
    type Query = AnyQuery;
    type Body = NoBody;
    type Output = Verbatim;

    async fn handle(_: &App, _: &Call<Self>) -> Result<ApiResponse<Verbatim>, Error> {
        Ok(ApiResponse::verbatim(PAGE))
    }
}
