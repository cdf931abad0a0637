use karta_shared::{
    auth::{self, Invalidity, SessionClaims, SessionTokenError, Undecided},
    config::Ring,
    http::AuthorizerContext,
};

use crate::Authorizer;

impl Authorizer {
    /// Verifies a session token and reads its organization and the key that minted it. A key that
    /// lost its access, or that does not exist, invalidates its tokens.
    pub(crate) async fn current_session(
        &self,
        token: &str,
    ) -> Result<Result<AuthorizerContext, &'static str>, Undecided> {
        let claims = match self.session(token).await? {
            Ok(claims) => claims,
            Err(why) => return Ok(Err(why)),
        };
        let Some(minted_by) = self.app.store.find_access(claims.org_id, claims.akid).await? else {
            return Ok(Err("unknown_key"));
        };
        let checked = auth::check_status(&minted_by, self.app.clock.now()).map_err(Invalidity::as_str);
        Ok(checked.map(|()| AuthorizerContext::session_of(claims, &minted_by)))
    }

    /// Verifies a session token. An unknown key id triggers a refetch of the ring, because the key
    /// may be new.
    pub(crate) async fn session(&self, token: &str) -> Result<Result<SessionClaims, &'static str>, Undecided> {
        let (now, secrets) = (self.app.clock.now().as_seconds(), &self.app.secrets);
        let mut verdict = auth::verify(&*secrets.ring(Ring::SessionSigning).await?, token, now);
        if verdict == Err(SessionTokenError::UnknownKid) {
            verdict = auth::verify(&*secrets.ring_refetched(Ring::SessionSigning).await?, token, now);
        }
        Ok(verdict.map_err(SessionTokenError::as_str))
    }
}
